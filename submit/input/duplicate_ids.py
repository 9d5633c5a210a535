"""Duplicate ids in a file: every one is found, in memory that does not grow with the file."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence

from jobs.errors import PromptmillError

CACHE_KIB = 32 * 1024

SETUP = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA cache_size = -{CACHE_KIB};
CREATE TABLE seen (id TEXT PRIMARY KEY, line INTEGER NOT NULL) WITHOUT ROWID;
BEGIN;
"""

_LIKE_DEFAULT = re.compile(r"line-([1-9][0-9]{0,17})")


class UsedIds:
    """Which line used an id first. A context manager; its file is temporary and nameless.

    Default ids (``line-42`` of line 42) are not stored: a bit per line says where they are, and only
    explicit ids of that form are compared with them.
    """

    def __init__(self) -> None:
        # The empty name makes SQLite keep the database in its cache and spill it to a file without a name.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(SETUP)
        self._defaults = bytearray()
        self._like_defaults = False

    def __enter__(self) -> UsedIds:
        return self

    def __exit__(self, *error: object) -> None:
        self._database.close()

    def add(self, lines: Sequence[tuple[int, str | None]]) -> dict[int, int]:
        """Take in (line number, id or None for the default) of further lines, in the file's order.

        Returns the lines among them whose id was used before: line number -> line that used it first.

        Raises:
            PromptmillError: the temporary folder is full.
        """
        try:
            return self._add(lines)
        except sqlite3.OperationalError as error:
            raise PromptmillError(
                f"the temporary file of ids cannot be written: {error}; set TMPDIR to a folder with space"
            ) from None

    def _add(self, lines: Sequence[tuple[int, str | None]]) -> dict[int, int]:
        explicit = [(name, line) for line, name in lines if name is not None]
        clashes = self._repeated(explicit)
        defaults = [line for line, name in lines if name is None]
        self._mark(defaults)
        for name, line in explicit:
            if name.startswith("line-") and (found := _LIKE_DEFAULT.fullmatch(name)):
                self._like_defaults = True
                if (other := int(found[1])) < line and self._is_default(other):
                    clashes.setdefault(line, other)
        if self._like_defaults:
            for line in defaults:
                first = self._first(f"line-{line}")
                if first is not None and first < line:
                    clashes[line] = first
        return clashes

    def _repeated(self, explicit: list[tuple[str, int]]) -> dict[int, int]:
        before = self._database.total_changes
        self._database.executemany("INSERT INTO seen VALUES (?, ?) ON CONFLICT DO NOTHING", explicit)
        if self._database.total_changes - before == len(explicit):
            return {}
        firsts = ((line, self._first(name)) for name, line in explicit)
        return {line: first for line, first in firsts if first is not None and first != line}

    def _first(self, name: str) -> int | None:
        row = self._database.execute("SELECT line FROM seen WHERE id = ?", (name,)).fetchone()
        return None if row is None else int(row[0])

    def _mark(self, defaults: list[int]) -> None:
        if not defaults:
            return
        self._defaults.extend(bytes((defaults[-1] >> 3) + 1 - len(self._defaults)))
        for line in defaults:
            self._defaults[line >> 3] |= 1 << (line & 7)

    def _is_default(self, line: int) -> bool:
        return line >> 3 < len(self._defaults) and bool(self._defaults[line >> 3] & 1 << (line & 7))
