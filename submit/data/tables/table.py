"""A table: rows with named columns, read one after the other, again and again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from jobs.errors import LineError

MOST_COLUMNS = 10_000

Row = tuple[int, dict[str, Any] | LineError]
"""The 1-based number of a row, and its cells by column, or why there are none."""


class Table(Protocol):
    """What each format gives. ``columns`` and ``types`` are None where rows may differ.

    ``types`` is an Arrow schema as bytes, by which columns get their types back in the results.
    """

    name: str
    columns: tuple[str, ...] | None
    types: bytes | None
    size: int | None
    """Bytes as they lie on disk, if that is known."""

    @property
    def bytes_read(self) -> int:
        """Of ``size``, so far."""

    def rows(self) -> Iterator[Row]:
        """All rows, from the beginning, each time.

        Raises:
            RefusedError: it cannot be read, or is damaged.
        """

    def digest(self) -> str:
        """Names the content.

        Raises:
            RefusedError: it cannot be read.
        """

    def close(self) -> None:
        """Let go of files."""


def digest_of_files(paths: list[str]) -> str:
    """Names what is in files, and how they are called.

    Raises:
        RefusedError: one cannot be read.
    """
    import hashlib
    from pathlib import Path

    from jobs.errors import RefusedError

    total = hashlib.blake2b(digest_size=16)
    for path in paths:
        total.update(f"{Path(path).name}\0".encode("utf-8", "surrogateescape"))
        try:
            with open(path, "rb") as file:  # noqa: PTH123 (file_digest takes it)
                total.update(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest())
        except OSError as error:
            raise RefusedError(f"{path}: cannot be read: {error.strerror or error}") from None
    return total.hexdigest()
