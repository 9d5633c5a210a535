"""What commands show while they read prompts, and what `--json` prints when the input is refused."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import click
import orjson

from jobs.errors import InputError, PromptmillError
from submit.status.progress import is_terminal
from submit.status.text import plural

SHOW_EVERY_S = 0.2


@dataclass(slots=True)
class JsonOutput:
    """Whether a command has printed its JSON object already; it prints one and no more."""

    printed: bool = False


@contextlib.contextmanager
def json_errors(as_json: bool) -> Iterator[JsonOutput]:
    """With ``--json``, an error is an object on stdout too, with all problems of the input."""
    output = JsonOutput()
    try:
        yield output
    except PromptmillError as error:
        if as_json and not output.printed:
            click.echo(orjson.dumps(_shown(error)).decode())
        raise


def _shown(error: PromptmillError) -> dict[str, object]:
    shown: dict[str, object] = {"error": {"code": error.code, "message": str(error)}}
    if isinstance(error, InputError):
        shown["bad_lines"] = error.count
        shown["problems"] = [problem.as_dict() for problem in error.problems]
    return shown


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
