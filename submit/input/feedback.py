"""What commands show while they read prompts, and what `--json` prints when the input is refused."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import orjson

from jobs.errors import InputError, PromptmillError
from submit.status.progress import is_terminal
from submit.status.text import plural

__all__ = ["Answer", "going_on_if_interrupted", "json_errors", "read_display"]

SHOW_EVERY_S = 0.2


@dataclass(slots=True)
class Answer:
    """Whether a command has printed its JSON object already; it prints one and no more."""

    given: bool = False


@contextlib.contextmanager
def json_errors(as_json: bool) -> Iterator[Answer]:
    """With ``--json``, an error is an object on stdout too, with all problems of the input."""
    answer = Answer()
    try:
        yield answer
    except PromptmillError as error:
        if as_json and not answer.given:
            click.echo(orjson.dumps(_shown(error)).decode())
        raise


def _shown(error: PromptmillError) -> dict[str, object]:
    shown: dict[str, object] = {"error": {"code": error.code, "message": str(error)}}
    if isinstance(error, InputError):
        shown["bad_lines"] = error.count
        shown["problems"] = [problem.as_dict() for problem in error.problems]
    return shown


@contextlib.contextmanager
def going_on_if_interrupted(batch_id: str, out: Path | None) -> Iterator[None]:
    """Around following a batch: whoever interrupts it reads that the batch goes on, and how to get the rest."""
    try:
        yield
    except KeyboardInterrupt:
        file = "OUT" if out is None else shlex.quote(str(out))
        click.echo(f"\nthe batch goes on; `promptmill results {batch_id} -o {file}` writes the rest", err=True)
        raise


@contextlib.contextmanager
def read_display(size: int | None, clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[int, int], None]]:
    """Shows on a terminal how far a file of ``size`` bytes is read: to be called with lines and bytes so far."""
    if not is_terminal(sys.stderr):
        yield lambda lines, read: None
        return
    shown_at = clock()

    def show(lines: int, read: int) -> None:
        nonlocal shown_at
        if clock() - shown_at >= SHOW_EVERY_S:
            shown_at = clock()
            share = f", {min(read * 100 // size, 100)}%" if size else ""
            click.echo(f"\rreading: {plural(lines, 'line')}{share}\x1b[K", nl=False, err=True)

    try:
        yield show
    finally:
        click.echo("\r\x1b[K", nl=False, err=True)
