"""What a batch came to: exit statuses and the summary."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from jobs.batch import Batch, Usage
from submit.results.destination import Destination
from submit.results.read import StoredRecord
from submit.results.summary import Tally, exit_status, summary

NOW = 1_790_000_300.0


def tally(*codes: str | None, out: str | None = None) -> Tally:
    """A tally of lines that failed with these codes; None succeeded."""
    counted = Tally(Destination(None if out is None else Path(out)))
    for index, code in enumerate(codes):
        fields = {"text": "a", "stop_reason": "eos"} if code is None else {"error": {"code": code}}
        counted.add(StoredRecord(index, orjson.dumps({"index": index, **fields}), shard=0))
    return counted


@pytest.mark.parametrize(
    ("status", "codes", "expected"),
    [
        ("completed", [None, None], 0),
        ("completed", [None, "internal_error"], 1),
        ("completed", [None, "model_load_failed"], 1),
        ("completed", ["model_load_failed", "model_load_failed"], 5),
        ("cancelled", [None], 1),
        ("in_progress", [None], 1),
    ],
)
def test_exit_statuses(status: str, codes: list[str | None], expected: int) -> None:
    """0 only when every line succeeded, 5 when each failed for its model, 1 for everything between."""
    counted = tally(*codes)
    failed = sum(counted.failures.values())
    batch = Batch("b_1", status, total=2, completed=len(codes) - failed, failed=failed)
    assert exit_status(batch, counted) == expected


def test_the_summary_counts_what_happened() -> None:
    """Lines by outcome, completions by stop reason, tokens with their speed, and where the files are."""
    batch = Batch(
        "b_1", "cancelled", total=1500, completed=3, failed=3, usage=Usage(12_000, 34_000, 1_000),
        times={"started": NOW - 80, "cancelled": NOW},
    )  # fmt: skip
    counted = tally(None, None, None, "internal_error", "timeout", "internal_error", out="o.jsonl")
    lines = summary(batch, counted, seconds=90, now=NOW + 5)
    assert lines == [
        "1,500 lines: 3 succeeded, 3 failed (2 internal_error, 1 timeout), 1,494 not run (cancelled)",
        "ended by: 3 eos",
        "tokens: 12.0k prompt (1,000 cached), 34.0k generated; 425 tok/s over 1m20s from the first line's start to its "
        "end; 1m30s in all",
        "results: o.jsonl",
        "errors: o.errors.jsonl",
    ]


def test_the_rate_of_a_short_batch_has_its_time() -> None:
    """Also one of less than a second is said over what it was measured; one that still runs has its rate until now."""
    times = {"started": NOW, "completed": NOW + 0.25}
    batch = Batch("b_1", "completed", total=1, completed=1, usage=Usage(5, 10), times=times)
    lines = summary(batch, tally(None), seconds=3, now=NOW + 60)
    assert lines[-1] == (
        "tokens: 5 prompt, 10 generated; 40.0 tok/s over 0.25s from the first line's start to its end; 3s in all"
    )
    running = Batch("b_1", "in_progress", total=2, completed=1, usage=Usage(5, 10), times={"started": NOW})
    lines = summary(running, tally(None), seconds=20, now=NOW + 20)
    assert "; 0.50 tok/s over 20s from the first line's start to now; 20s in all" in lines[-1]


def ended(max_tokens: int, *stops: str) -> StoredRecord:
    """The record of a line whose completions ended so."""
    choices = [{"index": index, "text": "a", "stop_reason": stop} for index, stop in enumerate(stops)]
    ends = choices[0] if len(choices) == 1 else {"choices": choices}
    raw = orjson.dumps({"index": 0, **ends, "sampling": {"max_tokens": max_tokens}})
    return StoredRecord(0, raw, shard=0)


def test_the_summary_says_how_many_lines_the_default_cap_cut() -> None:
    """A line counts once, whatever its completions; ends of other kinds and other caps do not count."""
    counted = Tally(Destination(Path("o")))
    several = ended(512, "eos", "max_tokens", "max_tokens")
    for record in (ended(512, "max_tokens"), several, ended(512, "eos"), ended(9, "max_tokens")):
        counted.add(record)
    batch = Batch("b_1", "completed", total=4, completed=4)
    lines = summary(batch, counted, seconds=1, now=NOW)
    assert lines[-2:] == ["2 lines were cut at 512 tokens, the default of max_tokens: give --max-tokens", "results: o"]


def test_a_cap_that_the_batch_gave_is_no_default() -> None:
    """Who said --max-tokens 512 is not told to say it."""
    counted = Tally()
    counted.add(ended(512, "max_tokens"))
    batch = Batch("b_1", "completed", total=1, completed=1, defaults={"max_tokens": 512})
    assert not any("cut by" in line for line in summary(batch, counted, seconds=1, now=NOW))
