"""The formats of results: our own records, OpenAI's envelopes, or training data.

Training data is what ``mlx_lm.lora --train`` reads: ``chat`` is ``{"messages": [...]}`` with the answer as the
last message, ``completions`` is ``{"prompt", "completion"}``. Both hold one line per choice, only of lines that
succeeded, and without choices that nothing good is learned from, see :func:`left_out`. A plain prompt becomes one user
message in ``chat``; ``completions`` takes a conversation only if it is one user message without tools, because mlx-lm
puts the prompt back into exactly that. ``chat`` has the line's ``tools`` beside its messages, and calls with their
arguments as objects, which most templates want.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from jobs.batch import Batch
from jobs.errors import RefusedError
from jobs.lines.line import Job
from jobs.record_head import ChoiceHead, head_of, whole
from jobs.store.store import Store
from submit.results.destination import TRAINING, Destination
from submit.results.openai_format import choices_of, endpoint_of, envelope, json_line
from submit.results.prompts import Inputs
from submit.results.read import StoredRecord
from submit.results.tables.columns import Facts
from submit.results.tables.text import flat_renderer

THINKING = (
    ("<think>", "</think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|think:start|>", "<|think:end|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
)
"""How models mark their thinking, as mlx-lm knows it."""

Render = Callable[[StoredRecord], bytes]
"""Gives the lines of a record, each with its newline, or nothing at all."""


def left_out(choice: ChoiceHead, *, keep_cut: bool) -> str | None:
    """Why a choice is no example to learn from: ``cancelled``, ``invalid`` (not what its constraint asks for),
    ``unparsed`` (with a call that cannot be read), ``empty``, or ``cut`` by a limit (unless ``keep_cut``); None for one
    that is."""
    if choice.finish_reason is None:
        return "cancelled"
    if choice.valid is False:
        return "invalid"
    if choice.tool_call_error is not None:
        return "unparsed"
    if choice.blank:
        return "empty"
    return "cut" if choice.finish_reason == "length" and not keep_cut else None


def renderer(destination: Destination, store: Store, batch: Batch) -> Render:
    """How the records of ``batch`` are written."""
    inputs = Inputs(store, batch)
    if destination.training:
        example = _chat if destination.fmt == "chat" else _completion
        return partial(_examples, inputs=inputs, example=example, keep_cut=destination.keep_cut)
    return plain_renderer(destination, lambda record: endpoint_of(inputs.job(record)))


def plain_renderer(destination: Destination, endpoint: Callable[[StoredRecord], str]) -> Render:
    """How records are written in a format that needs no prompts. ``endpoint(record)`` is asked where the line was not
    in OpenAI's format.

    Raises:
        RefusedError: the format needs the prompts.
    """
    if destination.fmt in TRAINING:
        raise RefusedError(
            f"--format {destination.fmt} needs the prompts, which are in Redis: with --from-spool take native or openai"
        )
    if destination.whole:
        raise RefusedError(
            f"--format {destination.fmt} needs what Redis knows of the columns: with --from-spool take native or flat"
        )
    if destination.fmt == "flat":
        return flat_renderer(Facts(None, judged=False, choices=False), keys=destination.json_columns)
    if destination.fmt == "native":
        return lambda record: record.raw + b"\n"
    return lambda record: json_line(envelope(whole(record.raw), lambda: endpoint(record)))


def _examples(
    record: StoredRecord, *, inputs: Inputs, example: Callable[[Job, Turn], dict[str, Any]], keep_cut: bool
) -> bytes:
    """The examples to learn from in a record: one for each choice that is not left out."""
    if not record.ok:
        return b""
    if head_of(record.raw).unexpected:
        return b""
    job = inputs.job(record)
    if job.prompts or job.echo:
        what = "repeats its prompt ('echo')" if job.echo else "has its prompt as a list"
        raise RefusedError(
            f"line {job.line} ('{job.id}') {what}, which training data cannot hold: take --format native"
        )
    turns = _turns(job, record.raw, keep_cut)
    return b"".join(json_line(example(job, turn)) for turn in turns)


@dataclass(frozen=True, slots=True)
class Turn:
    """The whole turn of a choice: what it says, its thought (empty where there is none), and its calls."""

    text: str
    thought: str
    calls: tuple[dict[str, Any], ...] = ()


def _turns(job: Job, record: bytes, keep_cut: bool) -> Iterator[Turn]:
    """The turn of each choice to learn from."""
    begun = job.turn["content"] if job.turn else ""
    for choice, ended in zip(choices_of(whole(record)), head_of(record).completions, strict=True):
        if left_out(ended, keep_cut=keep_cut) is None:
            text, thought = _said(begun, choice)
            yield Turn(text, thought, tuple(map(_with_object, choice.get("tool_calls") or ())))


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    """A call with its arguments as an object in place of its JSON text."""
    function = call["function"]
    with contextlib.suppress(orjson.JSONDecodeError):  # one nested too deeply stays text
        function = {**function, "arguments": orjson.loads(function["arguments"])}
    return {**call, "function": function}


def _said(begun: str, choice: dict[str, Any]) -> tuple[str, str]:
    """What a turn says and its thought. ``begun``, which the model went on from, may end within the thought."""
    text, thought = choice["text"], choice.get("reasoning") or ""
    for start, end in THINKING:
        before, marker, opened = begun.rpartition(start)
        if marker and end not in opened and end not in text:
            return before + text, (opened + thought).strip()
    return begun + text, thought


def _conversation(job: Job) -> list[dict[str, Any]]:
    if job.messages is None:
        return [{"role": "user", "content": job.prompt}]
    return list(job.history)


def _chat(job: Job, turn: Turn) -> dict[str, Any]:
    answer = {**(job.turn or {"role": "assistant"}), "content": turn.text}
    if turn.thought:
        # Where templates of thinking models look for it; others leave it out.
        answer["reasoning_content"] = turn.thought
    if turn.calls:
        answer["tool_calls"] = turn.calls
    example: dict[str, Any] = {"messages": [*_conversation(job), answer]}
    if job.tools:
        example["tools"] = job.tools
    return example


def _completion(job: Job, turn: Turn) -> dict[str, Any]:
    if job.prompt is not None:
        return {"prompt": job.prompt, "completion": turn.text}
    conversation = _conversation(job)
    if len(conversation) == 1 and conversation[0]["role"] == "user" and not job.tools:
        return {"prompt": conversation[0]["content"], "completion": turn.text}
    what = "has tools" if job.tools else f"is a conversation of {len(conversation)} messages"
    raise RefusedError(
        f"line {job.line} ('{job.id}') {what}, which --format completions cannot hold: take --format chat"
    )
