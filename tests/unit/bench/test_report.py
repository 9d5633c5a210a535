"""What the benchmarks show of their results; nothing is timed here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from bench.realtext.questions import questions_of
from bench.realtext.task import TextTask
from bench.record import Machine, Measurement, append, read
from bench.report.page import render
from bench.task import Task
from bench.work import make_work, text_of

MACHINE = Machine(
    run="2026-01-02T03-04-05Z",
    date="2026-01-02 03:04 UTC",
    cpu="Abacus 3000",
    cores=2,
    memory_gib=16.0,
    system="Linux",
    python="3.11.0",
    device="cpu",
    blas="libopenblas.so.0",
    load=0.1,
    quick=False,
    versions={"mlx": "0.32.4"},
)
TEXT_RATES = {"limit": 100, "mlx_lm_batch": 30}


def measured(side: str, rate: float, *, model: str = "small", bench: str = "engine", round: int = 0) -> Measurement:
    """A side that made a hundred lines of 10 tokens at ``rate`` tokens/s, at an occupancy of 0.97."""
    return Measurement(MACHINE.run, bench, model, side, round, 100, 10, 1000, 1000 / rate, occupancy=0.97)


def cells(page: str, start: str) -> list[str]:
    """The cells of the row of a table that begins with ``start``."""
    row = next(line for line in page.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Results of one run, as they lie on disk."""
    path = tmp_path / "results.jsonl"
    append(path, [MACHINE])
    append(path, [measured("limit", 1000, round=number) for number in range(3)])
    append(path, [measured("mlx_lm_warm", rate, round=number) for number, rate in enumerate((290, 300, 350))])
    append(path, [measured("promptmill_own", rate, round=number) for number, rate in enumerate((800, 900, 910))])
    append(path, [measured("promptmill_own", 900, bench="endtoend"), measured("end_to_end", 810, bench="endtoend")])
    return path


def test_the_report_has_medians_spreads_and_ratios(results: Path) -> None:
    """Rows are models, columns are sides that were measured; ratios are those of the medians."""
    page = render(read(results))
    assert cells(page, "model")[1:] == ["limit", "same, compiled before", "promptmill, rows' own params"]
    assert cells(page, "small") == ["small", "1,000 ± 0.0", "300 ± 30.0", "900 ± 55.0"]
    assert "| small | 0.90 | 0.90 | — | 3.00 | 0.970 |" in page


def test_the_report_says_which_goals_are_met(results: Path) -> None:
    """Each goal stands with what was measured."""
    page = render(read(results))
    assert cells(page, "small: rows' own params, of the limit")[1:] == ["≥ 0.88", "0.900", "met"]
    assert cells(page, "small: end to end, of the engine alone")[1:] == ["≥ 0.95", "0.900", "**missed**"]


def test_the_whole_way_is_compared_with_the_limit(results: Path) -> None:
    """End to end stands beside the bare loop of the same rounds."""
    append(results, [measured("limit", 900, bench="endtoend")])
    page = render(read(results))
    assert cells(page, "small: end to end, of the limit")[1:] == ["≥ 0.85", "0.900", "met"]
    assert "| small | 100 | 900 | 900 | 810 | 0.90 | 0.90 | 0.970 |" in page


def test_the_report_of_real_text(results: Path) -> None:
    """Real text has a table beside that of equal lines: rates, and what the engine's steps cost besides tokens."""
    assert "Real text" not in render(read(results))
    costs = {"padding": 1.2, "host_reads": 1.0, "repeated_rows": 3, "waited_s": 0.25, "source": "asked.jsonl"}
    ours = dataclasses.replace(measured("promptmill", 90, model="tiny", bench="realtext"), extra=costs)
    others = [measured(side, rate, model="tiny", bench="realtext") for side, rate in TEXT_RATES.items()]
    append(results, [ours, *others])
    page = render(read(results))
    assert cells(page, "promptmill's engine") == ["promptmill's engine", "100", "10", "90.0", "0.11", "0.90", "3.00"]
    assert cells(page, "engine")[:5] == ["engine", "0.970", "1.20", "3", "1.00"]
    assert cells(page, "real text: of the limit")[1:] == ["≥ 0.8", "0.900", "met"]
    assert cells(page, "real text: columns computed over needed")[1:] == ["≤ 1.15", "1.200", "**missed**"]
    assert "asked.jsonl" in page


def test_questions_come_from_a_file_or_are_our_own(tmp_path: Path) -> None:
    """A file's rows have a question, a prompt or messages; without a file there are questions of unlike lengths."""
    file = tmp_path / "asked.jsonl"
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    rows = [{"question": "How many?", "answer": "2"}, {"prompt": "Say it."}, {"messages": chat}]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    asked = [[{"role": "user", "content": "How many?"}], [{"role": "user", "content": "Say it."}], chat]
    assert questions_of(file, 4, skip=4) == [asked[1], asked[2], asked[0], asked[1]]
    sizes = [len(own[-1]["content"]) for own in questions_of(None, 96)]
    assert max(sizes) > 5 * min(sizes)
    assert questions_of(None, 5) == questions_of(None, 5)
    file.write_text('{"text": "Hm."}')
    with pytest.raises(ValueError, match=r"asked.jsonl:1 has none of"):
        questions_of(file, 1)


def test_lines_of_real_text_have_parameters_of_their_own() -> None:
    """The same task has the same lines in every process, a warm-up has others."""
    task = TextTask("model", "", lines=8, skip=0, new_tokens=16, seed=0, lengths=((5, 3), (4, 2)))
    assert TextTask.from_json(task.to_json()) == task
    lines = task.job_lines()
    assert len({line["temperature"] for line in lines}) == len({line["seed"] for line in lines}) == 8
    assert not {line["seed"] for line in task.warm_up(8, 4).job_lines()} & {line["seed"] for line in lines}
    assert [row.fields for row in task.rows([[1]] * 8)] == [row.fields for row in task.rows()]


def test_the_report_names_the_machine(results: Path) -> None:
    """A number without its machine says nothing."""
    page = render(read(results))
    assert "2026-01-02 03:04 UTC on Abacus 3000, 2 cores, 16 GiB" in page
    assert "mlx 0.32.4" in page
    assert "quick" not in page


def test_the_newest_run_is_shown_unless_another_is_named(results: Path) -> None:
    """Runs share a file; their measurements are not mixed."""
    newer = dataclasses.replace(MACHINE, run="2026-02-01T00-00-00Z", quick=True)
    append(results, [newer, dataclasses.replace(measured("limit", 500, model="nano"), run=newer.run)])
    assert cells(render(read(results)), "nano") == ["nano", "500"]
    assert "numbers mean nothing" in render(read(results))
    assert cells(render(read(results, MACHINE.run)), "small")[1] == "1,000 ± 0.0"
    with pytest.raises(ValueError, match="no run 1999"):
        read(results, "1999")


def test_all_sides_get_the_same_work() -> None:
    """The same task has the same rows in every process, another round has others, and no two share a value."""
    rows = Task("nano", 50, 10, seed=1).rows
    assert rows == Task("nano", 50, 10, seed=1).rows
    assert not set(rows) & set(Task("nano", 50, 10, seed=2).rows)
    assert all(len({row.fields[name] for row in rows}) == 50 for name in ("temperature", "top_p", "min_p"))
    assert all(20 <= len(row.prompt) <= 60 and max(row.prompt) < 512 for row in rows)
    assert make_work(10, 512, 1) == rows[:10]
    assert text_of([5, 6]) == " t5 t6"
