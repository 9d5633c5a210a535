"""Opening what is submitted: a file of lines, or a table and what to make of its rows."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from submit.data.order import TableOrder
from submit.input.reader import PromptFile, digest_of

if TYPE_CHECKING:
    from submit.data.lines import TableLines

NO_TABLE = TableOrder()


@contextlib.contextmanager
def open_input(source: str, order: TableOrder = NO_TABLE, *, name: str | None = None) -> Iterator[PromptFile | TableLines]:
    """The lines of a source: a path, a folder, a glob, ``hf://datasets/NAME``, or ``-`` for standard input.

    Raises:
        RefusedError: it cannot be opened, or what is said of its rows does not fit them.
    """
    from submit.data.formats import is_table, open_table

    if not is_table(source, order):
        with PromptFile(source) as prompts:
            prompts.name = name or prompts.name
            yield prompts
        return
    from submit.data.lines import TableLines

    with _file_of(source) as path, TableLines(open_table(path, order), order) as lines:
        lines.name = name or ("standard input" if source == "-" else lines.name)
        yield lines


@contextlib.contextmanager
def _file_of(source: str) -> Iterator[str]:
    """A path to the source: standard input is copied, for a table may be read twice, and from its end."""
    if source != "-":
        yield source
        return
    with tempfile.NamedTemporaryFile(prefix="promptmill-") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield file.name


def input_digest(source: str, order: TableOrder = NO_TABLE) -> str:
    """The digest that submitting the source would give its batch.

    Raises:
        RefusedError: it cannot be read.
    """
    from submit.data.formats import is_table, open_table

    if not is_table(source, order):
        return digest_of(source)
    table = open_table(source, order)
    try:
        return table.digest()
    finally:
        table.close()
