"""The card of a table of results: a README.md beside it, as data sets on the Hub have one, true in every figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from jobs.batch import Batch, timestamp
from jobs.errors import RefusedError
from submit.results.output import explained
from submit.results.tables.cells import read_record

if TYPE_CHECKING:
    from submit.results.read import StoredRecord

MARK = "<!-- card of promptmill: written anew with the table -->"
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


class Card:
    """What is counted while the records of a batch are written."""

    def __init__(self, out: Path) -> None:
        self._path = out.with_name("README.md")
        self.rows = self.lines = self.failed = self.judged = self.passed = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.models: Counter[tuple[str, str]] = Counter()
        self.stops: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    def see_that_it_may_be_written(self) -> None:
        """Refuse to write over what somebody else wrote.

        Raises:
            RefusedError: there is a README.md that is none of ours.
        """
        try:
            text = self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        except OSError as error:
            raise RefusedError(f"{self._path}: cannot be read: {error.strerror}") from None
        if MARK not in text:
            raise RefusedError(f"{self._path} is there already, and no card of ours: give OUT a folder of its own")

    def add(self, record: StoredRecord) -> None:
        """Count one record that is written."""
        read = read_record(record.raw)
        self.lines += 1
        if read.error is not None:
            self.failed += 1
            self.rows += 1
            self.errors[read.error.code] += 1
            return
        choices: list[Any] = [read] if read.choices is None else list(read.choices)
        self.rows += len(choices)
        self.stops.update(choice.stop_reason or "none" for choice in choices)
        self.models[read.model or "unknown", read.model_revision or "unknown"] += 1
        self.prompt_tokens += read.usage.prompt_tokens
        self.completion_tokens += read.usage.completion_tokens
        if read.judged is not None:
            self.judged += 1
            self.passed += read.judged.passed

    def write(self, batch: Batch, files: Iterable[str], columns: Iterable[tuple[str, str]], now: float) -> None:
        """Write the card of a batch's table: its files and its columns, with their types."""
        with explained(self._path):
            self._path.write_text("\n".join(self._text(batch, list(files), list(columns), now)), encoding="utf-8")

    def _text(self, batch: Batch, files: list[str], columns: list[tuple[str, str]], now: float) -> list[str]:
        size = next((name for most, name in SIZES if self.rows < most), "1M<n<10M" if self.rows < 10**7 else "n>10M")
        lines = ["---", "tags:", "- synthetic", "- promptmill", "size_categories:", f"- {size}", "configs:"]
        lines += ["- config_name: default", "  data_files:", "  - split: train", "    path:"]
        lines += [f"    - {orjson.dumps(name).decode()}" for name in files]
        lines += ["---", "", MARK, "", f"# {_plain(batch.name or files[0])}", ""]
        lines.append(
            f"{self.rows:,} rows of {self.lines:,} lines, {self.failed:,} of which failed; written {timestamp(now)}."
        )
        lines += ["", "| what | value |", "|---|---|"]
        facts: list[tuple[str, str]] = [("batch", batch.id), ("source", batch.source)]
        facts += [
            (f"model ({count:,} lines)", f"{model}, revision {revision}")
            for (model, revision), count in self.models.most_common()
        ]
        facts += [("tokens of prompts", f"{self.prompt_tokens:,}"), ("tokens of texts", f"{self.completion_tokens:,}")]
        facts.append(("texts ended by", _counts(self.stops)))
        if self.failed:
            facts.append(("failed lines", _counts(self.errors)))
        if self.judged:
            facts.append(("as expected", f"{self.passed:,} of {self.judged:,} lines"))
        lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in facts]
        lines += ["", "## Columns", "", "| column | type |", "|---|---|"]
        lines += [f"| {_cell(name)} | {_cell(kind)} |" for name, kind in columns]
        lines += ["", "## How it was made", "", *_block("Parameters of the batch", dict(batch.defaults))]
        lines += _block("The order of the table", dict(batch.dataset.get("order", {})))
        return lines


def _block(title: str, value: dict[str, Any]) -> list[str]:
    if not value:
        return []
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    fence = "```" if "```" not in text else "`" * 12
    return [f"{title}:", "", f"{fence}json", text, fence, ""]


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counter.most_common()) or "none"


def _plain(text: str) -> str:
    return " ".join(text.split())[:200]


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|").replace("<", "&lt;")
