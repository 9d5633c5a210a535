"""Rows of a table that nothing says how to make lines of: known by their columns, answered with the flag that does."""

from __future__ import annotations

import keyword
import shlex
from collections.abc import Container, Iterable, Mapping
from itertools import islice
from typing import Any

import orjson

from jobs.errors import LineError
from jobs.lines.fields import is_field
from jobs.lines.foreign_names import COLUMNS, WRAPPERS, renamed
from jobs.lines.foreign_rows import ROWS, cure_of_row
from jobs.params import ALIASES, PARAMETERS, did_you_mean
from submit.data.tables.table import MOST_COLUMNS
from submit.status.text import printable

SEEN_ROWS = 20
"""So many rows at a file's start say what it is."""
SHOWN_COLUMNS = 30
_PROMPT_COLUMNS = ("question", "instruction", "prompt", "text", "input", "query", "problem", "sentence", "article")
"""Columns that a prompt is likely made of, the likeliest first."""
_CHAT_COLUMNS = ("messages", "conversations", "conversation", "chat")
_NOT_PLAIN = frozenset("\"'$`!\\")
"""What a shell, or Python, reads as more than itself in double quotes."""
_ID_COLUMNS = frozenset(("id", "_id", "idx", "index", "uuid", "key", "task_id", "custom_id"))

_LINE_FIELDS = ("prompt", "messages", "body", "custom_id")
_PROMPTS = frozenset(("prompts", "contents", "prompt_token_ids", "input_ids"))
"""What other tools call a prompt, and no table its column of texts."""
_PARAMETERS = frozenset((*PARAMETERS, *ALIASES)) - {"seed", "n", "stop"}
"""Parameters of decoding, but for names that columns of tables have too."""


def columns_of_rows(lines: Iterable[tuple[int, bytes | LineError]]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The columns of the first lines, and those that all of them have; None where they are not rows of a table, but
    lines, good or bad."""
    rows = []
    for _, raw in islice(lines, SEEN_ROWS):
        row = _object(raw)
        if not row or len(row) > MOST_COLUMNS or not _is_row(row):
            return None
        rows.append(row)
    if not rows:
        return None
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return columns, tuple(name for name in columns if all(name in row for row in rows)) or columns


def no_template(
    name: str, columns: tuple[str, ...], usable: tuple[str, ...], binary: Container[str] = frozenset()
) -> str:
    """What to say of a table that nothing says how to make lines of. ``usable`` are columns that rows have, whatever
    the row; those that are ``binary`` no template can show."""
    shown = printable(", ".join(columns[:SHOWN_COLUMNS])) + (", ..." if len(columns) > SHOWN_COLUMNS else "")
    flag = printable(_example_flag(tuple(column for column in usable if column not in binary)))
    return f"{name}: rows of a table (columns {shown:.2000}); say what to ask of each, such as {flag}"


def _example_flag(columns: tuple[str, ...]) -> str:
    """The flag that makes lines of rows with these columns."""
    for names, _, cure in ROWS:
        if cure.startswith("--") and set(names.split()) <= set(columns):
            return cure if "id" in columns else cure.removeprefix("--id-column id ")
    lower = {name.lower(): name for name in columns}
    if (chat := next((lower[name] for name in _CHAT_COLUMNS if name in lower), None)) is not None:
        return f'--template FILE.toml with messages = "{{{{ {chat} }}}}"'
    likely = (lower[name] for name in _PROMPT_COLUMNS if name in lower)
    others = (name for name in columns if name.lower() not in _ID_COLUMNS)
    name = next(likely, None) or next(others, None) or (columns[0] if columns else "text")
    if _is_word(name):
        return f"--user '{{{{ {name} }}}}'"
    text = f"{{{{ row[{name!r}] }}}}"
    return f'--user "{text}"' if _NOT_PLAIN.isdisjoint(name) else f"--user {shlex.quote(text)}"


def _is_word(name: str) -> bool:
    """Whether an expression may name the column as it stands: keywords it may not, nor ``none`` and ``true``."""
    return name.isidentifier() and not keyword.iskeyword(name) and not keyword.iskeyword(name.capitalize())


def _is_row(fields: Mapping[str, Any]) -> bool:
    """Whether an object is a row of data: no field is one that makes a line, or was meant to be."""
    cure = cure_of_row(fields)
    if cure is not None and "--" not in cure[1]:
        return False  # another tool's envelope, or an object around rows
    if all(map(is_line_field, fields)):
        return False
    return not any(_is_of_a_line(name, value) for name, value in fields.items())


def is_line_field(name: str) -> bool:
    """Whether a line may have a field of this name."""
    return name in ("id", "custom_id", "method", "url", "body") or is_field(name)


def _is_of_a_line(name: str, value: Any) -> bool:
    if name in COLUMNS:
        return False
    if name in ("body", "message") and isinstance(value, str):
        return False  # of a mail, say
    meant = renamed(name, (*_LINE_FIELDS, *_PARAMETERS)) or name
    if meant in _LINE_FIELDS or meant in _PARAMETERS or name in _PROMPTS:
        return True
    return (name in WRAPPERS and isinstance(value, dict)) or bool(did_you_mean(name, _LINE_FIELDS))


def _object(raw: bytes | LineError) -> dict[str, Any] | None:
    try:
        value = None if isinstance(raw, LineError) else orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
