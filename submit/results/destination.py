"""Where results go, and in which format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import RefusedError

STDOUT = Path("-")
TRAINING = ("chat", "completions")
TABLES = ("parquet", "csv", "flat")
FORMATS = ("native", "openai", *TRAINING, *TABLES)
WHOLE = ("parquet", "csv")
"""Formats that are written at the end: they have a head or a foot, and the order of the input."""
BY_SUFFIX = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv"}
NOT_WRITTEN = (".tsv", ".xlsx", ".arrow", ".feather")
"""Suffixes of tables that are none of the formats."""


@dataclass(frozen=True, slots=True)
class Destination:
    """What ``-o``, ``--errors``, ``--format`` and ``--keep-cut`` say: OUT (None or ``-``: stdout), the file of errors
    (None: as :attr:`errors_file` says), the format, and whether training data has texts that a limit cut.

    Raises:
        RefusedError: these do not go together.
    """

    out: Path | None = None
    errors: Path | None = None
    fmt: str = "native"
    keep_cut: bool = False
    shard_bytes: int | None = None
    """Of Parquet: about so many bytes a file, in files OUT-00000-of-00002."""
    json_columns: bool = False
    """Of a table: whether keys of texts that are JSON objects are columns."""
    card: bool = False
    """Of a table: whether a README.md is written beside it, as a data set on the Hub has one."""

    def __post_init__(self) -> None:
        if self.out == STDOUT:
            object.__setattr__(self, "out", None)
        if self.keep_cut and not self.training:
            raise RefusedError(f"--keep-cut goes with --format chat or completions: '{self.fmt}' leaves nothing out")
        if self.shard_bytes is not None and self.fmt != "parquet":
            raise RefusedError(f"--shard-size goes with Parquet: '{self.fmt}' is one file")
        if self.json_columns and not self.table:
            raise RefusedError(f"--json-columns are columns of a table: '{self.fmt}' has none")
        if self.card and (self.out is None or not self.table):
            raise RefusedError(
                "--card is written beside a table: give -o OUT.parquet, or --format parquet, csv or flat"
            )
        if self.errors is not None and self.table:
            raise RefusedError(f"--errors goes with --format native or openai: '{self.fmt}' has errors in their rows")
        if self.errors is not None and self.training:
            raise RefusedError(f"--errors goes with --format native or openai: '{self.fmt}' has no failed lines")
        if self.errors is not None and self.out is not None and self.errors.resolve() == self.out.resolve():
            raise RefusedError(f"OUT and the file of errors are both {self.out}; give --errors another path")

    @property
    def written_to(self) -> str:
        """OUT as users find it: of shards the pattern that finds them all."""
        if self.out is None or self.shard_bytes is None:
            return str(self.out)
        return str(self.out.with_name(f"{self.out.stem}-*-of-*{self.out.suffix}"))

    @property
    def table(self) -> bool:
        """Whether the format is a table: rows with their columns, results beside them, errors among them."""
        return self.fmt in TABLES

    @property
    def whole(self) -> bool:
        """Whether it is written at the end alone, and not as lines finish."""
        return self.fmt in WHOLE

    @property
    def training(self) -> bool:
        """Whether the format is training data, which leaves out what nothing good is learned from."""
        return self.fmt in TRAINING

    @property
    def errors_file(self) -> Path | None:
        """Where the records of failed lines go: ``results.jsonl`` -> ``results.errors.jsonl``. None: with the others,
        on stdout, and in OpenAI's format where no file is named."""
        if self.out is None or self.fmt != "native":
            return self.errors
        return self.errors or self.out.with_name(f"{self.out.stem}.errors{self.out.suffix}")

    @property
    def flags(self) -> list[str]:
        """The flags that say this; without ``-o`` where it is stdout."""
        named: dict[str, Any] = {"-o": self.out, "--errors": self.errors, "--shard-size": self.shard_bytes}
        named["--format"] = None if self.fmt == format_for(self.out, None) else self.fmt
        flags = [text for flag, value in named.items() if value is not None for text in (flag, str(value))]
        switches = {"--keep-cut": self.keep_cut, "--json-columns": self.json_columns, "--card": self.card}
        return flags + [flag for flag, given in switches.items() if given]


def format_for(out: Path | None, fmt: str | None) -> str:
    """The format as it is given, or else as the suffix of OUT says.

    Raises:
        RefusedError: the suffix is that of a table which is not written.
    """
    if fmt is not None or out is None:
        return fmt or "native"
    suffix = out.suffix.lower()
    if suffix in NOT_WRITTEN:
        raise RefusedError(f"{out}: tables are written as .parquet or .csv, not {suffix}; --format says it otherwise")
    return BY_SUFFIX.get(suffix, "native")
