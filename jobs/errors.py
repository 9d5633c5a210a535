"""One error root; each error carries the code that records and exit statuses are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MOST_PROBLEMS = 20
"""Of one line; what has more is no line, and the rest of it is not looked at."""


class PromptmillError(Exception):
    """Something the user can act on. The message names what is wrong and the remedy."""

    code = "internal_error"
    exit_status = 1


class RefusedError(PromptmillError):
    """A request that makes no sense as it stands: a bad flag, a bad setting, a changed input."""

    code = "refused"
    exit_status = 2


class BatchNotFoundError(RefusedError):
    """No batch of this id or name is known to the Redis at hand."""

    code = "batch_not_found"


class BatchPausedError(RefusedError):
    """A batch is held back: nothing of it may begin now."""

    code = "batch_paused"


class RedisError(PromptmillError):
    """Redis cannot be reached or refuses what is asked; the message names the address and the remedy."""

    code = "redis_unavailable"
    exit_status = 3


class LoadingError(RedisError):
    """Redis is there, and is still loading its data from disk; ``state`` says how far it is."""

    def __init__(self, state: str) -> None:
        super().__init__(f"{state}; try again in a moment")
        self.state = state


class WaitTimeoutError(PromptmillError):
    """A batch did not end within the time the user was willing to wait."""

    code = "timeout"
    exit_status = 4


class ModelLoadError(PromptmillError):
    """A model, tokenizer or adapter cannot be loaded on this host; ``field`` of a line is what names the culprit."""

    code = "model_load_failed"
    exit_status = 5

    def __init__(self, message: str, field: str = "model") -> None:
        super().__init__(message)
        self.field = field


class SickModelError(PromptmillError):
    """A model that worked fails whatever it is given, as when its device was lost: its process must start afresh."""

    code = "internal_error"


class StaleAttemptError(PromptmillError):
    """A write came from an attempt whose lease was taken over: it was refused and nothing was stored."""

    code = "stale_attempt"


@dataclass(frozen=True, slots=True)
class ProblemLine:
    """What is wrong with one line of the input: 1-based line number, code, field and a message with the remedy."""

    line: int
    code: str
    field: str | None
    message: str

    @property
    def text(self) -> str:
        """Place and message, as error records have them: the code is a field of its own there."""
        return f"line {self.line}, {self.said}" if self.field else f"line {self.line}: {self.message}"

    @property
    def said(self) -> str:
        """The same without the line: the field and the message."""
        return f"field '{self.field}': {self.message}" if self.field else self.message

    def __str__(self) -> str:
        return f"{self.text} [{self.code}]"

    def as_dict(self) -> dict[str, int | str | None]:
        return {"line": self.line, "code": self.code, "field": self.field, "message": self.message}


class LineError(PromptmillError):
    """One line (or one set of defaults) breaks the contract of job lines.

    ``also`` is what else is wrong with it. ``line_id`` is the user's id of a line whose bytes are not at hand, and
    ``metadata`` what its error record is to carry.
    """

    exit_status = 2

    def __init__(self, code: str, field: str | None, message: str, *, line_id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.message = message
        self.line_id = line_id
        self.also: tuple[LineError, ...] = ()
        self.metadata: dict[str, Any] = {}

    def at(self, line: int) -> ProblemLine:
        return ProblemLine(line, self.code, self.field, self.message)

    def all_at(self, line: int) -> tuple[ProblemLine, ...]:
        """All that is wrong with the line of this number."""
        return tuple(error.at(line) for error in (self, *self.also))


def raise_all(problems: Sequence[LineError]) -> None:
    """Raise the first of ``problems``, if there is one, with the others in its ``also``."""
    if problems:
        first, *others = (part for problem in problems for part in (problem, *problem.also))
        first.also = tuple(others)
        raise first


class InputError(PromptmillError):
    """An input file was rejected whole: nothing of it was enqueued.

    ``count`` is the number of bad lines, ``problems`` those that were kept for display. ``what`` says in a word what is
    wrong with the input as a whole, where its lines need not be listed. An input that was not to be enqueued is refused
    with ``checked_only``.
    """

    code = "invalid_input"
    exit_status = 2

    def __init__(
        self,
        source: str,
        problems: list[ProblemLine],
        count: int | None = None,
        *,
        what: str | None = None,
        checked_only: bool = False,
    ) -> None:
        self.source = source
        self.problems = problems
        self.count = len(problems) if count is None else count
        self.what = what
        lines = "1 bad line" if self.count == 1 else f"{self.count} bad lines"
        super().__init__(f"{source}: {what or lines}{'' if checked_only else '; nothing was enqueued'}")
