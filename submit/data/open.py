"""Opening what is submitted: a file of lines, or a table and what to make of its rows."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.errors import RefusedError
from submit.data.order import TableOrder
from submit.input.reader import PromptFile, Prompts, digest_of, open_prompts

if TYPE_CHECKING:
    from submit.data.lines import TableLines

NO_TABLE = TableOrder()
NAMES = (
    "template", "prompt", "user", "system", "input_format", "delimiter", "encoding", "where", "offset", "limit",
    "sample", "sample_seed", "repeat", "id_column", "keep_columns",
)  # fmt: skip
"""What commands and methods call it that is said of a table."""


@contextlib.contextmanager
def open_input(
    source: str, order: TableOrder = NO_TABLE, *, name: str | None = None, model: str | None = None
) -> Iterator[PromptFile | TableLines]:
    """The lines of a source: a path, a folder, a glob, ``hf://datasets/NAME``, or ``-`` for standard input.
    ``model`` is the batch's, by whose tokenizer templates may cut texts.

    Raises:
        RefusedError: it cannot be opened, or what is said of its rows does not fit them.
    """
    from submit.data.formats import is_table
    from submit.data.sources import open_table

    if not is_table(source, order):
        with PromptFile(source) as prompts:
            prompts.name = name or prompts.name
            yield prompts
        return
    from submit.data.lines import TableLines

    with _file_of(source) as path, TableLines(open_table(path, order), order, model) as lines:
        lines.name = name or ("standard input" if source == "-" else lines.name)
        yield lines


@contextlib.contextmanager
def open_any(given: Any, order: TableOrder = NO_TABLE, *, model: str | None = None) -> Iterator[Prompts]:
    """The lines of a source as :func:`open_input` takes it, of a data frame, or of dicts.

    Raises:
        RefusedError: as from :func:`open_input`; or what is given is nothing of it.
    """
    if isinstance(given, str | os.PathLike):
        with open_input(os.fspath(given), order, model=model) as prompts:
            yield prompts
        return
    from submit.data.tables.objects import is_frame, table_of

    if not is_frame(given) and not order.asks:
        with open_prompts(given) as objects:
            yield objects
        return
    from submit.data.lines import TableLines

    with TableLines(table_of(given), order, model) as lines:
        yield lines


def order_of(given: dict[str, Any]) -> TableOrder:
    """Take what is said of a table out of the arguments of a command or a method, by the names in NAMES.

    Raises:
        RefusedError: they do not go together, or the template's file is none.
    """
    own = {name: given.pop(name, None) for name in NAMES}
    template, keep = own.pop("template"), own.pop("keep_columns")
    if isinstance(keep, list | tuple):
        keep = ",".join(map(str, keep)) or "none"
    texts = {name: own.pop(name) for name in ("prompt", "user", "system")}
    rest = {name: value for name, value in own.items() if value is not None}
    if template is None and not any(value is not None for value in texts.values()):
        return TableOrder(keep=keep, **rest)
    from submit.templates.file import template_of

    path = Path(template) if isinstance(template, str | os.PathLike) else None
    named = str(path) if path is not None else "--prompt" if texts["prompt"] is not None else "--user"
    if template is not None and path is None:
        named = "the template"
        if not isinstance(template, Mapping) or any(value is not None for value in texts.values()):
            raise RefusedError("a template is the path of a file, or a dict with the fields of a line, and that alone")
        return TableOrder(template=dict(template), keep=keep, named=named, **rest)
    return TableOrder(template=template_of(path, **texts), keep=keep, named=named, **rest)


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
    from submit.data.formats import is_table
    from submit.data.sources import open_table

    if not is_table(source, order):
        return digest_of(source)
    table = open_table(source, order)
    try:
        return table.digest()
    finally:
        table.close()
