"""Twins: lines that are not run because an earlier one is equal, and which get its record under their own ids.

They are equal in all but id and metadata, and their text is determined: it is greedy, or has a seed. Which lines are
equal is found on disk, in memory that does not grow with the file.
"""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import dataclass
from typing import Any

import orjson

from jobs.errors import PromptmillError
from jobs.lines.line import CheckedLine, Defaults
from jobs.params import OPENAI_DEFAULTS
from submit.input.duplicate_ids import CACHE_KIB

SETUP = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA cache_size = -{CACHE_KIB};
CREATE TABLE seen (line BLOB PRIMARY KEY, place INTEGER NOT NULL) WITHOUT ROWID;
BEGIN;
"""


@dataclass(frozen=True, slots=True)
class Own:
    """What a line has of its own (its id, None for the default, and its metadata), and the name of the rest."""

    same: bytes
    id: str | None
    metadata: dict[str, Any]


def own_of(line: CheckedLine, defaults: Defaults) -> Own | None:
    """What a line has of its own; None where its text is not determined: it is drawn with a seed of its own."""
    if not _determined(line, defaults):
        return None
    rest = {name: value for name, value in line.fields.items() if name != "metadata"}
    written = orjson.dumps([line.endpoint, rest], option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    return Own(hashlib.blake2b(written, digest_size=16).digest(), line.id, line.fields.get("metadata", {}))


def _determined(line: CheckedLine, defaults: Defaults) -> bool:
    usual = OPENAI_DEFAULTS if line.endpoint is not None else {}
    given = {**usual, **defaults.fields, **line.fields}
    if given.get("seed") is not None:
        return True
    return given.get("temperature", 0) == 0 or given.get("do_sample") is False


class Firsts:
    """Where lines stood first. A context manager; its file is temporary and nameless."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(SETUP)

    def __enter__(self) -> Firsts:
        return self

    def __exit__(self, *error: object) -> None:
        self._database.close()

    def first(self, same: bytes, place: int) -> int | None:
        """The place at which an equal line stood before; None where this one, at ``place``, is the first.

        Raises:
            PromptmillError: the temporary folder is full.
        """
        try:
            before = self._database.total_changes
            self._database.execute("INSERT INTO seen VALUES (?, ?) ON CONFLICT DO NOTHING", (same, place))
            if self._database.total_changes > before:
                return None
            return int(self._database.execute("SELECT place FROM seen WHERE line = ?", (same,)).fetchone()[0])
        except sqlite3.OperationalError as error:
            raise PromptmillError(
                f"the temporary file of lines cannot be written: {error}; set TMPDIR to a folder with space"
            ) from None
