"""What a user says of a table: its format, the template of its lines, which rows, and which columns come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from jobs.errors import RefusedError

KEEP_BYTES = 64 << 10
"""Cells longer than this do not come back unless their columns are named."""
FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "folder", "hf")
MOST_REPEATS = 10_000


@dataclass(frozen=True, slots=True)
class TableOrder:
    """How lines are made of a table. It travels as JSON: with a schedule, and in a batch, by which a run sees changes.

    ``template`` is the fields of a line with templates for texts; None where the columns are a line's fields already.
    ``keep`` is ``all``, ``none``, column names with commas between them, or None: all but cells over 64 KiB.

    Raises:
        RefusedError: a number is out of range.
    """

    template: Mapping[str, Any] | None = None
    input_format: str | None = None
    delimiter: str | None = None
    encoding: str | None = None
    where: str | None = None
    offset: int = 0
    limit: int | None = None
    sample: int | None = None
    sample_seed: int = 0
    repeat: int = 1
    id_column: str | None = None
    keep: str | None = None
    named: str = field(default="--template", compare=False)
    """What messages call the template."""

    def __post_init__(self) -> None:
        for name, low, high in (("offset", 0, 2**48), ("limit", 1, 2**48), ("sample", 1, 2**48),
                                ("sample_seed", -(2**63), 2**63), ("repeat", 1, MOST_REPEATS)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not (type(value) is int and low <= value <= high):
                raise RefusedError(f"{name} must be an integer from {low} to {high}, not {value!r:.40}")
        for name in ("where", "delimiter", "encoding", "id_column"):
            if not isinstance(value := getattr(self, name), str | None):
                raise RefusedError(f"{name} must be a text, not {value!r:.40}")
        if self.input_format is not None and self.input_format not in FORMATS:
            raise RefusedError(f"the format of a table is one of {', '.join(FORMATS)}, not {self.input_format!r:.40}")

    @property
    def asks(self) -> bool:
        """Whether anything is said: lines of JSON are not read as a table unless."""
        return self != TableOrder()

    def as_dict(self) -> dict[str, Any]:
        """What differs from the defaults."""
        given = asdict(self)
        return {row.name: given[row.name] for row in fields(self) if row.compare and given[row.name] != row.default}

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> TableOrder:
        """The order of :meth:`as_dict`.

        Raises:
            RefusedError: it is none.
        """
        try:
            return TableOrder(**stored)
        except TypeError as error:
            raise RefusedError(f"what is kept of a table is damaged: {error!s:.200}") from None
