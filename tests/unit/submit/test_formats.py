"""Formats of results: OpenAI's envelopes and training data, from records as workers write them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.errors import LineError, RefusedError
from jobs.lines.line import Job
from jobs.record import Choice
from jobs.store.store import Store
from submit.results import prompts as inputs
from submit.results.destination import Destination
from submit.results.formats import renderer
from submit.results.read import ordered_records
from submit.results.summary import Tally
from tests.pool import NOON, echo, make_batch, prompts, work

CHAT = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("destination", "flags"),
    [
        (Destination(Path("a.parquet"), fmt="parquet", shard_bytes=4096, json_columns=True, card=True),
         "-o a.parquet --shard-size 4096 --json-columns --card"),
        (Destination(Path("a.jsonl"), fmt="flat", json_columns=True), "-o a.jsonl --format flat --json-columns"),
        (Destination(Path("a.csv"), Path("b.jsonl")), "-o a.csv --errors b.jsonl --format native"),
        (Destination(fmt="chat", keep_cut=True), "--format chat --keep-cut"),
        (Destination(), ""),
    ],
)  # fmt: skip
def test_a_destination_knows_the_flags_that_say_it(destination: Destination, flags: str) -> None:
    """Whoever interrupts reads a command that writes the rest as the rest was written."""
    assert destination.flags == flags.split()


def written(store: Store, batch_id: str, fmt: str) -> list[dict[str, Any]]:
    """All lines of a batch's results in a format."""
    render = renderer(Destination(fmt=fmt), store, store.batch(batch_id))
    data = b"".join(render(record) for record in ordered_records(store.connection, batch_id))
    return [orjson.loads(line) for line in data.splitlines()]


def failing(code: str, field: str | None = None) -> Any:
    def answer(_job: Job) -> Sequence[Choice]:
        raise LineError(code, field, "it went wrong")

    return answer


def test_a_chat_line_becomes_a_chat_completion(store: Store) -> None:
    """An OpenAI line's envelope has the shape of OpenAI's Batch API, its body that of a chat completion."""
    line = {"custom_id": "row-1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": CHAT}}
    batch_id = make_batch(store, [line])
    work(store, batch_id)
    (envelope,) = written(store, batch_id, "openai")
    assert set(envelope) == {"id", "custom_id", "response", "error"}
    assert envelope["custom_id"] == "row-1"
    assert envelope["error"] is None
    assert set(envelope["response"]) == {"status_code", "request_id", "body"}
    assert envelope["response"]["status_code"] == 200
    body = envelope["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["created"] == int(NOON)
    assert body["model"] == "pocket"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "answer to row-1", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "total_tokens": 30,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


def test_an_envelope_names_the_adapter(store: Store) -> None:
    """Beside the model in the body, as mlx-lm's server takes it; lines without one have no such field."""
    batch_id = make_batch(store, [{"messages": CHAT, "adapter_path": "lora"}, {"prompt": "a", "adapter_path": "lora"}])
    work(store, batch_id)
    bodies = [line["response"]["body"] for line in written(store, batch_id, "openai")]
    assert [(body["object"], body["model"], body["adapter_path"]) for body in bodies] == [
        ("chat.completion", "pocket", "lora"),
        ("text_completion", "pocket", "lora"),
    ]
    plain = make_batch(store, prompts(1))
    work(store, plain)
    assert "adapter_path" not in written(store, plain, "openai")[0]["response"]["body"]


def test_reasoning_and_logprobs_lie_where_clients_look(store: Store) -> None:
    """Reasoning is the message's reasoning_content; logprobs are the choice's logprobs.content."""
    entry = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": []}
    batch_id = make_batch(store, [{"prompt": "a"}, {"messages": CHAT, "logprobs": True}])
    work(store, batch_id, answer=lambda job: [Choice(0, "Hi", "max_tokens", reasoning="hm", logprobs=[entry])])
    envelope = written(store, batch_id, "openai")[1]
    (choice,) = envelope["response"]["body"]["choices"]
    assert choice["index"] == 0  # not the line's
    assert choice["message"]["reasoning_content"] == "hm"
    assert choice["logprobs"] == {"content": [entry], "refusal": None}
    assert choice["finish_reason"] == "length"


def test_a_prompt_line_becomes_a_text_completion(store: Store) -> None:
    """A native prompt line gets the body of a completion, with logprobs as parallel lists."""
    entries = [
        {"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": [{"token": "a", "logprob": -0.1}]},
        {"token": "bc", "logprob": -0.2, "bytes": [98, 99], "top_logprobs": []},
        {"token": "d", "logprob": -0.3, "bytes": [100], "top_logprobs": []},
    ]
    batch_id = make_batch(store, [{"id": "p", "prompt": "Once", "logprobs": True, "top_logprobs": 1}])
    work(store, batch_id, answer=lambda job: [Choice(0, "abcd", "eos", logprobs=entries)])
    (envelope,) = written(store, batch_id, "openai")
    body = envelope["response"]["body"]
    assert body["object"] == "text_completion"
    assert body["choices"] == [
        {
            "text": "abcd",
            "index": 0,
            "logprobs": {
                "tokens": ["a", "bc", "d"],
                "token_logprobs": [-0.1, -0.2, -0.3],
                "top_logprobs": [{"a": -0.1}, {}, {}],
                "text_offset": [0, 1, 3],
            },
            "finish_reason": "stop",
        }
    ]


def test_completions_logprobs_of_half_an_emoji(store: Store) -> None:
    """Tokens that are parts of a character keep their bytes, alternatives never share a key, and offsets are places in
    the text: the character's for each of its parts."""

    def entry(data: bytes, number: int) -> dict[str, Any]:
        try:
            token = data.decode()
        except UnicodeDecodeError:
            token = "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
        return {"token": token, "id": number, "logprob": -number / 10, "bytes": list(data)}

    smile = "\U0001f642".encode()
    parts = [b" a", smile[:2], smile[2:3], smile[3:], b"b", b"\xc4", b"\xc8", b"c"]
    entries: list[dict[str, Any]] = [{**entry(data, place), "top_logprobs": []} for place, data in enumerate(parts)]
    entries[1]["top_logprobs"] = [
        entry(data, place) for place, data in enumerate([b"\xf0\x9f", b"\xe6", b"\xe7", b"\xff", b"b", b"b"])
    ]
    batch_id = make_batch(store, [{"prompt": "Once", "logprobs": True, "top_logprobs": 5}])
    work(store, batch_id, answer=lambda job: [Choice(0, " a\U0001f642b\ufffd\ufffdc", "eos", logprobs=entries)])
    (envelope,) = written(store, batch_id, "openai")
    shown = envelope["response"]["body"]["choices"][0]["logprobs"]
    assert shown["tokens"][:5] == [" a", "bytes:\\xf0\\x9f", "bytes:\\x99", "bytes:\\x82", "b"]
    assert shown["text_offset"] == [0, 2, 2, 2, 3, 4, 5, 6]
    assert list(shown["top_logprobs"][1]) == [
        "bytes:\\xf0\\x9f",
        "bytes:\\xe6",
        "bytes:\\xe7",
        "bytes:\\xff",
        "b",
        "token_id:5",
    ]


def test_offsets_are_those_of_the_text_behind_a_thought(store: Store) -> None:
    """Tokens of a thought stand before the text; a stop string behind it."""
    pieces = ["<think>", "x", "</think>", "\n\n", "an", "s", ". Stop"]
    entries = [
        {"token": piece, "id": 1, "logprob": -0.1, "bytes": list(piece.encode()), "top_logprobs": []}
        for piece in pieces
    ]
    batch_id = make_batch(store, [{"prompt": "Once", "logprobs": True}])
    answer = Choice(0, "ans.", "stop_string", stop_string=" Stop", reasoning="x", logprobs=entries)
    work(store, batch_id, answer=lambda job: [answer])
    (envelope,) = written(store, batch_id, "openai")
    shown = envelope["response"]["body"]["choices"][0]["logprobs"]
    assert shown["text_offset"] == [0, 0, 0, 0, 0, 2, 3]


def test_no_offset_is_beyond_the_text(store: Store) -> None:
    """Also where a thought stands in the midst of a text, whose tokens have no place in what is left."""
    pieces = ["Oh ", "<think>", "hm", "</think>", "yes"]
    entries = [
        {"token": piece, "id": 1, "logprob": -0.1, "bytes": list(piece.encode()), "top_logprobs": []}
        for piece in pieces
    ]
    batch_id = make_batch(store, [{"prompt": "Once", "logprobs": True}])
    answer = Choice(0, "Oh\nyes", "eos", reasoning="hm", logprobs=entries)
    work(store, batch_id, answer=lambda job: [answer])
    (envelope,) = written(store, batch_id, "openai")
    assert envelope["response"]["body"]["choices"][0]["logprobs"]["text_offset"] == [0, 3, 6, 6, 6]


def test_native_lines_get_the_body_of_their_kind(store: Store) -> None:
    """Records of native lines do not say what they were: the prompt itself tells, over several shards and models."""
    lines = [
        {"id": str(n), "model": f"m{n % 3}", **({"prompt": "x"} if n % 2 else {"messages": CHAT})} for n in range(300)
    ]
    batch_id = make_batch(store, lines)
    work(store, batch_id)
    envelopes = written(store, batch_id, "openai")
    assert [envelope["custom_id"] for envelope in envelopes] == [str(n) for n in range(300)]
    kinds = [envelope["response"]["body"]["object"] for envelope in envelopes]
    assert kinds == ["text_completion" if n % 2 else "chat.completion" for n in range(300)]


def test_several_choices_share_one_body(store: Store) -> None:
    """n completions are n choices of one body, numbered."""
    batch_id = make_batch(store, [{"messages": CHAT, "n": 3}])
    work(store, batch_id)
    (envelope,) = written(store, batch_id, "openai")
    assert [choice["index"] for choice in envelope["response"]["body"]["choices"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("context_length_exceeded", 400, "invalid_request_error"),
        ("out_of_range", 400, "invalid_request_error"),
        ("model_load_failed", 503, "server_error"),
        ("worker_crashed", 500, "server_error"),
        ("internal_error", 500, "server_error"),
    ],
)
def test_a_failed_line_is_a_response_with_an_error(store: Store, code: str, status: int, kind: str) -> None:
    """Failures are 4xx and 5xx responses with body.error, and the envelope's own error is null."""
    batch_id = make_batch(store, prompts(1))
    work(store, batch_id, answer=failing(code, "prompt"))
    (envelope,) = written(store, batch_id, "openai")
    assert envelope["error"] is None
    assert envelope["response"]["status_code"] == status
    assert envelope["response"]["body"] == {
        "error": {"message": "it went wrong", "type": kind, "param": "prompt", "code": code}
    }


@pytest.mark.parametrize(
    ("code", "shown"),
    [("cancelled", "batch_cancelled"), ("expired", "batch_expired"), ("timeout", "request_timeout")],
)
def test_an_unanswered_line_has_an_error_and_no_response(store: Store, code: str, shown: str) -> None:
    """Only lines that were cancelled, expired or timed out have a top-level error, under OpenAI's codes."""
    batch_id = make_batch(store, prompts(1))
    work(store, batch_id, answer=failing(code))
    (envelope,) = written(store, batch_id, "openai")
    assert envelope["response"] is None
    assert envelope["error"] == {"code": shown, "message": "it went wrong"}


def test_a_rejected_line_is_a_400(store: Store) -> None:
    """A line refused at submission has status 400 and says which field is wrong."""
    bad = {"id": "bad", "prompt": "x", "temperature": -1}
    batch_id = make_batch(store, [*prompts(1), bad], on_bad_line="skip")
    work(store, batch_id)
    good, rejected = written(store, batch_id, "openai")
    assert good["response"]["status_code"] == 200
    assert rejected["custom_id"] == "bad"
    assert rejected["response"]["status_code"] == 400
    assert rejected["response"]["body"]["error"]["code"] == "out_of_range"
    assert rejected["response"]["body"]["error"]["param"] == "temperature"
    assert rejected["error"] is None


@pytest.mark.parametrize("fmt", ["openai", "completions"])
def test_a_line_is_one_line_by_any_rule(store: Store, fmt: str) -> None:
    """Clients split results with Python's ``splitlines``, which knows more breaks than JSON escapes."""
    said = "one\u2028two\u2029three\x85four\x0bfive\x1c\r"
    batch_id = make_batch(store, prompts(2))
    work(store, batch_id, answer=lambda _job: [Choice(0, said, "eos")])
    render = renderer(Destination(fmt=fmt), store, store.batch(batch_id))
    text = b"".join(render(record) for record in ordered_records(store.connection, batch_id)).decode()
    lines = [orjson.loads(line) for line in text.splitlines()]
    texts = [
        line["response"]["body"]["choices"][0]["text"] if "response" in line else line["completion"] for line in lines
    ]
    assert texts == [said] * 2


def test_chat_training_data_holds_the_whole_conversation(store: Store) -> None:
    """System prompt (the batch's), messages, and the answer with what it was made to start with."""
    lines = [{"id": "a", "messages": CHAT, "prefill_response": "Well, "}, {"id": "b", "prompt": "Once"}]
    batch_id = make_batch(store, lines, defaults={"system_prompt": "Be brief."})
    work(store, batch_id)
    assert written(store, batch_id, "chat") == [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Well, answer to a"},
            ]
        },
        {"messages": [{"role": "user", "content": "Once"}, {"role": "assistant", "content": "answer to b"}]},
    ]


def test_chat_training_data_keeps_reasoning_apart(store: Store) -> None:
    """Reasoning goes where templates of thinking models look for it, not into the content."""
    batch_id = make_batch(store, [{"messages": CHAT}])
    work(store, batch_id, answer=lambda job: [Choice(0, "Hi", "eos", reasoning="hm")])
    (example,) = written(store, batch_id, "chat")
    assert example["messages"][-1] == {"role": "assistant", "content": "Hi", "reasoning_content": "hm"}


@pytest.mark.parametrize(
    ("begun", "answer", "content", "reasoning"),
    [
        ("<think>\nOkay,", Choice(0, "Yes", "eos", reasoning=" so."), "Yes", "Okay, so."),
        ("<think>\nOkay.\n", Choice(0, "Yes", "eos"), "Yes", "Okay."),
        ("Sure. <think>\nOkay,", Choice(0, "Yes", "eos", reasoning=" so."), "Sure. Yes", "Okay, so."),
        ("<think>\n\n</think>\n\nI", Choice(0, " do", "eos"), "<think>\n\n</think>\n\nI do", None),
        ("<think>Okay", Choice(0, "</think>Yes", "eos"), "<think>Okay</think>Yes", None),
        ("I say:", Choice(0, " Yes", "eos", reasoning="hm"), "I say: Yes", "hm"),
    ],
)
def test_a_thought_that_the_line_began_is_no_part_of_the_answer(
    store: Store, begun: str, answer: Choice, content: str, reasoning: str | None
) -> None:
    """A turn that begins within the thought is told apart as a whole, wherever the model went on from."""
    batch_id = make_batch(store, [{"messages": CHAT, "prefill_response": begun}])
    work(store, batch_id, answer=lambda job: [answer])
    (example,) = written(store, batch_id, "chat")
    assert example["messages"][-1]["content"] == content
    assert example["messages"][-1].get("reasoning_content") == reasoning


def test_training_data_has_a_line_per_choice_and_none_for_failures(store: Store) -> None:
    """n choices are n lines; a failed line, and a choice that was cut off from outside, is none."""

    def answer(job: Job) -> Sequence[Choice]:
        if job.id == "fails":
            raise LineError("internal_error", None, "no")
        return [Choice(0, "cut", "cancelled")] if job.id == "cut" else echo(job)

    lines = [
        {"id": "two", "prompt": "x", "n": 2},
        {"id": "fails", "prompt": "y"},
        {"id": "cut", "prompt": "z"},
        {"id": "last", "messages": CHAT},
    ]
    batch_id = make_batch(store, lines)
    work(store, batch_id, answer=answer)
    assert written(store, batch_id, "completions") == [
        {"prompt": "x", "completion": "answer to two"},
        {"prompt": "x", "completion": "answer to two"},
        {"prompt": "Hello", "completion": "answer to last"},
    ]


def test_training_data_leaves_out_cut_and_empty_answers(store: Store) -> None:
    """Nothing is learned from answers that a limit cut or that are empty, thoughts without an answer among them; both
    are counted, and --keep-cut keeps those that were cut and are not empty."""
    answers = [
        Choice(0, "All of it.", "eos"),
        Choice(0, "As far as", "max_tokens"),
        Choice(0, "Half a", "context_length"),
        Choice(0, " \n", "eos"),
        Choice(0, "", "max_tokens", reasoning="Well"),
    ]
    batch_id = make_batch(store, [{"id": str(n), "messages": CHAT} for n in range(len(answers))])
    work(store, batch_id, answer=lambda job: [answers[int(job.id)]])
    for fmt in ("chat", "completions"):
        for keep_cut, kept, notes in (
            (False, 1, "2 cut by max_tokens or the context (--keep-cut keeps them), 2 empty"),
            (True, 3, "2 empty"),
        ):
            destination = Destination(fmt=fmt, keep_cut=keep_cut)
            render = renderer(destination, store, store.batch(batch_id))
            tally = Tally(destination)
            data = b""
            for record in ordered_records(store.connection, batch_id):
                data += render(record)
                tally.add(record)
            assert data.count(b"\n") == tally.written == kept
            assert tally.notes({"max_tokens": 512}) == [
                "1 line thought and gave no answer: raise max_tokens, or give them chat_template_kwargs "
                '{"enable_thinking": false}',
                f"left out of the training data: {notes}",
            ]


def test_completions_refuse_a_longer_conversation(store: Store) -> None:
    """A conversation does not fit prompt and completion: the message names the line and the remedy."""
    batch_id = make_batch(store, [{"id": "talk", "messages": [{"role": "system", "content": "s"}, *CHAT]}])
    work(store, batch_id)
    with pytest.raises(RefusedError, match=r"line 1 \('talk'\) is a conversation of 2 messages.*--format chat"):
        written(store, batch_id, "completions")


def test_prompts_that_are_gone_are_named(store: Store) -> None:
    """Without the shards' payloads there is no training data, and the message says what there still is."""
    batch_id = make_batch(store, prompts(1))
    work(store, batch_id)
    store.connection.delete(f"promptmill:b:{batch_id}:s:0")
    with pytest.raises(RefusedError, match="no longer in Redis: take --format native"):
        written(store, batch_id, "chat")


def test_prompts_of_large_shards_are_not_all_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of them is bounded by their bytes, not their number: it is read again, and the data is the same."""
    lines = [{"prompt": f"{number} " * 2000, "model": f"m{number % 3}"} for number in range(300)]
    batch_id = make_batch(store, lines)
    work(store, batch_id)
    kept = written(store, batch_id, "completions")
    monkeypatch.setattr(inputs, "CACHED_BYTES", 1)
    assert written(store, batch_id, "completions") == kept
    assert [line["prompt"].split()[0] for line in kept] == [str(number) for number in range(300)]
    reader = inputs.Inputs(store, store.batch(batch_id))
    records = list(ordered_records(store.connection, batch_id))[::50]
    tracemalloc.start()
    for record in records:
        assert reader.job(record).index == record.index
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 1_000_000


@pytest.mark.parametrize("line", [{"prompt": ["a", "b"]}, {"prompt": [5, 6]}, {"prompt": "a", "echo": True}])
def test_training_data_is_not_made_of_prompts_in_other_forms(store: Store, line: dict[str, Any]) -> None:
    """It would lack the prompt, or have it twice; as envelopes such lines are completions."""
    batch_id = make_batch(store, [line])
    work(store, batch_id)
    for fmt in ("chat", "completions"):
        with pytest.raises(RefusedError, match="take --format native"):
            written(store, batch_id, fmt)
    assert written(store, batch_id, "openai")[0]["response"]["body"]["object"] == "text_completion"


def test_scores_are_in_openais_choices(store: Store) -> None:
    """Beside what OpenAI has, under our names."""
    batch_id = make_batch(store, [{"prompt": "a", "continuation": "b"}])
    score = {"logprob": -1.5, "tokens": 1, "is_greedy": True}
    work(store, batch_id, answer=lambda job: [Choice(0, "", "scored", score=score)])
    (choice,) = written(store, batch_id, "openai")[0]["response"]["body"]["choices"]
    assert (choice["score"], choice["finish_reason"], choice["text"]) == (score, "length", "")
