"""Lines that ask for a shape of text: from the line to its tokens, and what a model that cannot do it is told."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from jobs.errors import LineError
from jobs.guided.constraint import Constraint
from jobs.lines.line import Defaults, Job, check_line
from tests.engine.chat_families import tokenizer_of
from tests.engine.guided_models import PERSON, GuidedModel, of_bytes, of_pieces
from tests.engine.test_detokenizer import words
from worker.engine.engine import Engine
from worker.engine.guided.grammars import Grammars
from worker.engine.guided.guide import Phase
from worker.engine.guided.maker import GuideMaker, vocabulary_of
from worker.engine.guided.vocabulary import GrammarError, Vocabulary, no_panics
from worker.engine.loading.model import LoadedModel
from worker.engine.prompts.prepare import Preparer
from worker.engine.text.completion import TextAssembler

SCHEMA = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
ASKED: dict[str, dict[str, Any]] = {
    "schema": {"response_format": SCHEMA},
    "object": {"response_format": {"type": "json_object"}, "max_tokens": 400},
    "regex": {"guided_regex": "[A-Z]{2}-[0-9]{1,3}"},
    "choice": {"guided_choice": ["yes", "no", "\u65e5\u672c"]},
    "grammar": {"guided_grammar": 'start: "a" middle "b"\nmiddle: /[0-9]+/'},
}


@pytest.fixture(scope="module", params=["chatml", "metaspace"])
def chat(request: pytest.FixtureRequest, tiny: Any) -> LoadedModel:
    return GuidedModel.of(tiny("qwen3", vocab_size=640), tokenizer_of(request.param)).model


def job(**fields: Any) -> Job:
    given = {"id": "x", "temperature": 1.0, "max_tokens": 60, "seed": 3, **fields}
    if "prompt" not in fields:
        given["messages"] = fields.get("messages", [{"role": "user", "content": "Who?"}])
    line = check_line(json.dumps(given).encode())
    return line.job(index=0, line=1, batch_id="b", defaults=Defaults({"model": "m"}))


def fits(name: str, text: str) -> bool:
    if name == "schema":
        jsonschema.validate(json.loads(text), PERSON)
        return True
    if name == "object":
        return isinstance(json.loads(text), dict)
    if name == "choice":
        return text in ASKED["choice"]["guided_choice"]
    pattern = ASKED["regex"]["guided_regex"] if name == "regex" else "a[0-9]+b"
    jsonschema.validate(text, {"type": "string", "pattern": f"^{pattern}$"})
    return True


def test_lines_of_every_kind(chat: LoadedModel) -> None:
    """Each field, in one batch, gives texts of its shape; the record's choice says that they are valid."""
    preparer, assembler, engine = Preparer(chat), TextAssembler(chat.tokenizer), Engine(chat)
    for name, fields in ASKED.items():
        for seed in range(4):
            engine.add(preparer.prepare(job(**fields, seed=seed), key=(name, seed)))
    seen = 0
    while engine.has_work:
        for finished in engine.step():
            (row,) = finished.sequences
            choice = assembler.assemble(row)
            assert choice.as_dict()["valid"] is choice.valid is (row.stop_reason == "eos")
            if choice.valid:
                seen += 1
                assert fits(finished.key[0], choice.text), choice.text
    assert seen >= 15


def test_lines_without_make_no_table(chat: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of free lines pays nothing: no table is made of its tokens, and rows have no guide."""
    monkeypatch.setattr("worker.engine.guided.maker.vocabulary_of", lambda *_: pytest.fail("made a table"))
    line = Preparer(chat).prepare(job())
    assert line.guide is None
    engine = Engine(chat)
    engine.add(line)
    while engine.has_work:
        for finished in engine.step():
            assert finished.sequences[0].guide is None
            assert "valid" not in TextAssembler(chat.tokenizer).assemble(finished.sequences[0]).as_dict()


def test_a_model_that_does_not_think(tiny: Any) -> None:
    """A budget for what it does not do is refused, and says what does it."""
    model = GuidedModel.of(tiny("qwen3", vocab_size=640), tokenizer_of("metaspace")).model
    with pytest.raises(LineError, match=r"marks no thinking.*max_tokens") as refused:
        Preparer(model).prepare(job(thinking_budget=4))
    assert (refused.value.code, refused.value.field) == ("unsupported", "thinking_budget")


def test_a_grammar_that_cannot_be_compiled(chat: LoadedModel) -> None:
    """Whatever slipped through the check of the line ends it with its field, and not the worker."""
    broken = replace(job(), constraint=Constraint("grammar", "start: nothing_of_this_name"))
    with pytest.raises(LineError, match="nothing_of_this_name") as refused:
        Preparer(chat).prepare(broken)
    assert (refused.value.code, refused.value.field) == ("invalid_schema", "guided_grammar")


def test_a_tokenizer_without_bytes(tiny: Any) -> None:
    """Where nobody knows what a token adds to a text, no shape can be promised: the line is refused."""
    with pytest.raises(ValueError, match="does not tell the bytes of its tokens"):
        vocabulary_of(words(), 64)


@pytest.mark.parametrize(
    ("asked", "begins"),
    [
        ({}, Phase.OPENING),
        ({"prefill_response": "<think>\nso"}, Phase.THINKING),
        ({"prefill_response": "<think>\nso\n</think>\n\n"}, Phase.ANSWER),
        ({"prefill_response": "Here it is:"}, Phase.ANSWER),
        ({"prompt": "a <think> b"}, Phase.THINKING),
        ({"prompt": "a <think> b </think>\n"}, Phase.ANSWER),
    ],
)
def test_where_an_answer_begins(asked: dict[str, Any], begins: Phase, tiny: Any) -> None:
    """It may think first unless the prompt has closed the thinking, or begun the answer."""
    model = GuidedModel.of(tiny("qwen3", vocab_size=640), tokenizer_of("chatml")).model
    line = Preparer(model).prepare(job(**asked, guided_regex="[a-z]+"))
    assert line.guide is not None
    assert line.guide.phase is begins


# -- tables and grammars ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [of_bytes, of_pieces])
def test_every_byte_of_a_text_is_that_of_its_tokens(make: Any) -> None:
    """What a grammar leaves no choice about is tokenised without a space that tokenizers put before it, and without
    normalising."""
    tokenizer = make()
    vocabulary = vocabulary_of(tokenizer, 512)
    for text in ("{", '{"name": ', " yes", "caf\u00e9 \U0001f642", "  \n"):
        assert b"".join(vocabulary.tokens[token] for token in vocabulary(text)) == text.encode()
    assert b"" in vocabulary.tokens  # those that pad the vocabulary


def test_tokens_that_the_library_does_not_take() -> None:
    """Some vocabularies have very long tokens: they are left out, and the others are as ever."""
    vocabulary = Vocabulary([b"a", b"b" * 400, b"b"], [], lambda text: [])
    matcher = Grammars(vocabulary).matcher(Constraint("regex", "[ab]+").grammar())
    (mask,), _ = vocabulary.compute([matcher])
    assert mask.tolist() == [0b101]


def test_a_panic_is_an_error() -> None:
    """What would end the thread that prepares lines, or the one that computes, ends a line."""

    class PanicException(BaseException):
        pass

    with pytest.raises(GrammarError, match="the grammar library fails: assertion failed"), no_panics():
        raise PanicException("assertion failed")
    with pytest.raises(KeyboardInterrupt), no_panics():
        raise KeyboardInterrupt


def test_a_grammar_is_compiled_once(tiny: Any) -> None:
    """However many lines have it; the latest used are kept, as many as there is room for."""
    grammars = Grammars(vocabulary_of(of_bytes(), 512), most_bytes=3 * 64 * 1024 + 20_000)
    texts = [Constraint("regex", f"a{{{size}}}").grammar() for size in range(1, 5)]
    for text in (*texts[:3], texts[0], texts[3], texts[0]):
        grammars.matcher(text)
    assert grammars.compiled == 4
    grammars.matcher(texts[1])  # it gave way to the fourth
    assert grammars.compiled == 5
    assert grammars.nbytes <= 3 * 64 * 1024 + 20_000
    with pytest.raises(GrammarError):
        grammars.matcher('{"grammars": [{"lark_grammar": "start: x"}]}')


def test_lines_share_no_state(tiny: Any, run: Any) -> None:
    """Two lines of one grammar, and two choices of one line, each go their own way; the grammar stays at its start."""
    guided = GuidedModel.of(tiny("qwen3", vocab_size=512), of_bytes())
    regex = Constraint("regex", "[a-z]{1,9}")
    lines = [guided.line(index, regex, n=3, seed=index) for index in range(4)]
    assert len({id(line.guide.matcher) for line in lines if line.guide is not None}) == 1
    done = run(guided.model, lines)
    assert len({text for one in done.values() for text in guided.texts(one.sequences)}) > 6
    assert all(row.valid for one in done.values() for row in one.sequences)
    fresh = guided.line("again", regex, n=3, seed=1)
    assert [row.tokens for row in run(guided.model, [fresh])["again"].sequences] == [
        row.tokens for row in done[1].sequences
    ]


def test_several_threads_make_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines may be prepared in several threads: the table is made by the first."""
    made: list[Vocabulary] = []

    def counting(*given: Any) -> Vocabulary:
        made.append(vocabulary_of(*given))
        return made[-1]

    monkeypatch.setattr("worker.engine.guided.maker.vocabulary_of", counting)
    maker = GuideMaker(of_bytes(), 512)
    threads = [threading.Thread(target=maker._tables) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
