"""The formats of results: our own records, OpenAI's envelopes, or training data.

Training data is what ``mlx_lm.lora --train`` reads: ``chat`` is ``{"messages": [...]}`` with the answer as the
last message, ``completions`` is ``{"prompt", "completion"}``. Both hold one line per choice, only of lines that
succeeded, and without choices that nothing good is learned from, see :func:`left_out`. A plain prompt becomes one user
message in ``chat``; ``completions`` takes a conversation only if it is one user message, because mlx-lm puts the prompt
back into exactly that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from jobs.batch import Batch
from jobs.errors import RefusedError
from jobs.lines.line import Job
from jobs.record_head import ChoiceHead, whole
from jobs.store.store import Store
from submit.results.openai_format import choices_of, endpoint_of, envelope
from submit.results.prompts import Inputs
from submit.results.read import StoredRecord

__all__ = ["FORMATS", "TRAINING", "Format", "check_keep_cut", "left_out", "make_format", "plain_format"]

TRAINING = ("chat", "completions")
FORMATS = ("native", "openai", *TRAINING)
THINKING = (
    ("<think>", "</think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|think:start|>", "<|think:end|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
)
"""How models mark their thinking, as mlx-lm knows it."""


def left_out(choice: ChoiceHead, *, keep_cut: bool) -> str | None:
    """Why a choice is no example to learn from: ``empty``, ``cut`` by a limit (unless ``keep_cut``), or ``cancelled``;
    None for one that is."""
    if choice.finish_reason is None:
        return "cancelled"
    if choice.blank:
        return "empty"
    return "cut" if choice.finish_reason == "length" and not keep_cut else None


def check_keep_cut(fmt: str, *, keep_cut: bool) -> None:
    """See that ``--keep-cut`` was given with a format that leaves something out.

    Raises:
        RefusedError: it was not.
    """
    if keep_cut and fmt not in TRAINING:
        raise RefusedError(f"--keep-cut goes with --format chat or completions: '{fmt}' leaves nothing out")


@dataclass(frozen=True, slots=True)
class Format:
    """How one record is written. ``render`` gives its lines, each with its newline, or nothing at all."""

    name: str
    render: Callable[[StoredRecord], bytes]
    errors_apart: bool
    """Whether records of failed lines go to a file of their own."""


def make_format(name: str, store: Store, batch: Batch, *, keep_cut: bool = False) -> Format:
    """The format ``name`` for the records of ``batch``; with ``keep_cut`` training data has texts that a limit cut.

    Raises:
        RefusedError: there is no such format.
    """
    inputs = Inputs(store, batch)
    if plain := plain_format(name, lambda record: endpoint_of(inputs.job(record).prompt)):
        return plain
    examples = {"chat": _chat, "completions": _completion}.get(name)
    if examples is None:
        raise RefusedError(f"no format '{name}': take one of {', '.join(FORMATS)}")
    training = _Training(inputs, examples, keep_cut)
    return Format(name, training.render, errors_apart=False)


def plain_format(name: str, endpoint: Callable[[StoredRecord], str]) -> Format | None:
    """A format that needs no prompts; None for the others. ``endpoint(record)`` is asked where the line was not
    in OpenAI's format."""
    if name == "native":
        return Format(name, _native, errors_apart=True)
    if name == "openai":
        return Format(name, lambda record: _openai(record, endpoint), errors_apart=False)
    return None


def _native(record: StoredRecord) -> bytes:
    return record.raw + b"\n"


def _openai(record: StoredRecord, endpoint: Callable[[StoredRecord], str]) -> bytes:
    wrapped = envelope(whole(record.raw), lambda: endpoint(record))
    return orjson.dumps(wrapped, option=orjson.OPT_APPEND_NEWLINE)


Example = Callable[[Job, str, str], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Training:
    """Records as examples to learn from."""

    inputs: Inputs
    example: Example
    keep_cut: bool

    def render(self, record: StoredRecord) -> bytes:
        if not record.ok:
            return b""
        job = self.inputs.job(record)
        lines = (self.example(job, *answer) for answer in self._answers(job, whole(record.raw)))
        return b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines)

    def _answers(self, job: Job, record: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """The whole turn of each choice to learn from: what it says, and its thought, empty where there is none."""
        for choice in choices_of(record):
            ended = ChoiceHead(choice["stop_reason"], choice["finish_reason"], choice["text"])
            if left_out(ended, keep_cut=self.keep_cut) is None:
                yield _turn(job.turn["content"] if job.turn else "", choice)


def _turn(begun: str, choice: dict[str, Any]) -> tuple[str, str]:
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


def _chat(job: Job, text: str, thought: str) -> dict[str, Any]:
    answer = {**(job.turn or {"role": "assistant"}), "content": text}
    if thought:
        # Where templates of thinking models look for it; others leave it out.
        answer["reasoning_content"] = thought
    return {"messages": [*_conversation(job), answer]}


def _completion(job: Job, text: str, _thought: str) -> dict[str, Any]:
    if job.prompt is not None:
        return {"prompt": job.prompt, "completion": text}
    conversation = _conversation(job)
    if len(conversation) == 1 and conversation[0]["role"] == "user":
        return {"prompt": conversation[0]["content"], "completion": text}
    raise RefusedError(
        f"line {job.line} ('{job.id}') is a conversation of {len(conversation)} messages, which --format "
        "completions cannot hold: take --format chat"
    )
