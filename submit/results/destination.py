"""Where results go, and in which format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobs.errors import RefusedError

STDOUT = Path("-")
TRAINING = ("chat", "completions")
FORMATS = ("native", "openai", *TRAINING)


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

    def __post_init__(self) -> None:
        if self.out == STDOUT:
            object.__setattr__(self, "out", None)
        if self.keep_cut and not self.training:
            raise RefusedError(f"--keep-cut goes with --format chat or completions: '{self.fmt}' leaves nothing out")
        if self.errors is not None and self.training:
            raise RefusedError(f"--errors goes with --format native or openai: '{self.fmt}' has no failed lines")
        if self.errors is not None and self.out is not None and self.errors.resolve() == self.out.resolve():
            raise RefusedError(f"OUT and the file of errors are both {self.out}; give --errors another path")

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
