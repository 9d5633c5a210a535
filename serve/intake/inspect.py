"""What OpenAI asks of a batch's lines beyond our own checks, and its words for what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import msgspec

from jobs.errors import ProblemLine
from jobs.lines.line import CHAT_URL
from jobs.lines.line_id import readable_id
from submit.input.validate import BadLine, Chunk, GoodLine

MOST_PROBLEMS = 1000
"""So many problems of a batch are kept."""
LONGEST_MESSAGE = 500
ENVELOPE = ("custom_id", "method", "url", "body")
LACKING = tuple(("missing_field", name) for name in ("model", "messages", "prompt"))
CODES = {"missing_field": "missing_required_parameter", "unsupported": "invalid_request"}


class _Envelope(msgspec.Struct):
    """What stands around a line's body, which is there: the body is passed over."""

    custom_id: Any = None
    method: Any = None
    url: Any = None


_decode = msgspec.json.Decoder(_Envelope).decode


class Inspector:
    """Finds more wrong with lines that are good as such: an envelope that is not whole, another url than the batch's, a
    model that is not served. ``served(model, adapter)`` tells whether one is. Without an endpoint lines may be any that
    `promptmill submit` takes."""

    def __init__(
        self,
        endpoint: str | None,
        most_lines: int,
        served: Callable[[str, str | None], bool],
        *,
        see: Callable[[], object],
    ) -> None:
        self._endpoint, self._most_lines, self._served, self._see = endpoint, most_lines, served, see
        self._known: dict[object, bool] = {}
        self.lines = 0

    def __call__(self, chunk: Chunk) -> Chunk:
        """The chunk, with lines that are not good after all among the bad ones."""
        self._see()
        self.lines += len(chunk.good) + len(chunk.bad)
        if self.lines > self._most_lines:
            raise TooManyLinesError(self._most_lines)
        good, bad = [], [self._judged(line) for line in chunk.bad]
        for line in chunk.good:
            problem = self._problem(line)
            if problem is None:
                good.append(line)
            else:
                bad.append(BadLine(line.place.index, readable_id(line.place.raw) or "", (problem,)))
        bad.sort(key=lambda line: line.index)
        return chunk if len(good) == len(chunk.good) and not chunk.bad else Chunk(good, bad, chunk.own_models)

    def _problem(self, line: GoodLine) -> ProblemLine | None:
        known = self._known.get(line.group)
        if known is None:
            known = self._known[line.group] = self._served(line.group.model, line.group.adapter_path)
        number = line.place.line
        if self._endpoint is not None:
            envelope = _decode(line.place.raw)
            if (found := _lacking(envelope, number)) is not None:
                return found
            if envelope.url != self._endpoint:
                return _mismatch(number)
        if not known:
            message = f"The provided model '{line.group.model[:100]}' is not supported: no worker serves it."
            return ProblemLine(number, "model_not_found", "body.model", message)
        return None

    def _judged(self, line: BadLine) -> BadLine:
        """A bad line, with the one problem that OpenAI would name where that hides the others."""
        if self._endpoint is None:
            return line
        number = line.problems[0].line
        for problem in line.problems:
            if problem.field == "url":
                return BadLine(line.index, line.id, (_mismatch(number),))
            if problem.field in ENVELOPE and problem.code == "missing_field":
                return BadLine(line.index, line.id, (_missing(problem.field, number),))
        problems = tuple(map(_of_chat, line.problems)) if self._endpoint == CHAT_URL else line.problems
        return replace(line, problems=problems, alone=all(map(_of_line, problems)))


class TooManyLinesError(Exception):
    """A file has more lines than a batch may have."""

    def __init__(self, most: int) -> None:
        super().__init__(f"The file has more than {most:,} lines, the most that are taken: split it.")


def _of_chat(problem: ProblemLine) -> ProblemLine:
    """A problem of a chat line: where there is no prompt at all, messages are what is missing."""
    lacks_prompt = (problem.code, problem.field) == ("missing_field", "prompt")
    return replace(problem, field="messages") if lacks_prompt else problem


def _of_line(problem: ProblemLine) -> bool:
    """Whether a problem lets only its line fail: a value in a body that has what it needs. What makes a file no batch
    is something else: lines that are no requests, ids twice, streams, models that are not served."""
    field = problem.field
    return field not in (None, "id", "stream", *ENVELOPE) and (problem.code, field) not in LACKING


def _lacking(envelope: _Envelope, number: int) -> ProblemLine | None:
    for name in ENVELOPE[:3]:
        if not getattr(envelope, name):
            return _missing(name, number)
    return None


def _missing(name: str, number: int) -> ProblemLine:
    return ProblemLine(number, "missing_required_parameter", name, f"Missing required parameter: '{name}'.")


def _mismatch(number: int) -> ProblemLine:
    message = "The URL provided for this request does not match the batch endpoint."
    return ProblemLine(number, "invalid_url", "url", message)


def as_openai(problem: ProblemLine) -> dict[str, Any]:
    """A problem as an entry of a batch's errors."""
    code, param, message = problem.code, problem.field, problem.message
    if param is not None and param not in ENVELOPE and not param.startswith("body"):
        param = f"body.{param}"
    if param == "body.stream":
        code, message = "streaming_unsupported", "Streaming is not supported in batches: leave 'stream' out."
    elif code == "missing_field" and param is not None and param.startswith("body."):
        code, message = "invalid_request", f"Missing required parameter: '{param}'."
    else:
        code = CODES.get(code, code)
    return {"code": code, "line": problem.line, "message": _sentence(param, message), "param": param}


def _sentence(param: str | None, message: str) -> str:
    """A message that stands by itself."""
    text = message if param is None or message[:1].isupper() or param in message else f"'{param}': {message}"
    return text[:LONGEST_MESSAGE]


def problems_of(found: Collection[ProblemLine], *, plain: bool = False) -> list[dict[str, Any]]:
    """The errors of a batch, the first of each line first; those of ``plain`` lines in our own words."""
    return [_as_ours(problem) if plain else as_openai(problem) for problem in list(found)[:MOST_PROBLEMS]]


def _as_ours(problem: ProblemLine) -> dict[str, Any]:
    return {
        "code": problem.code,
        "line": problem.line,
        "message": problem.message[:LONGEST_MESSAGE],
        "param": problem.field,
    }
