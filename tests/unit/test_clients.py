"""What `make clients` makes of what clients say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.clients import page
from tests.clients.client import FAILED, PASSED, SKIPPED, Check, Client, Row, judged
from tests.clients.running import of_junit

CHECKS = (Check("a", PASSED), Check("b", FAILED, "400"), Check("c", SKIPPED, "no model"))


def client(**known: str) -> Client:
    return Client("some", "1.0", "its tests", run=lambda place: CHECKS, known=known)


def test_failures_need_a_reason_and_reasons_a_failure() -> None:
    """A failure without one is wrong, and so is a reason for what passes or is not there."""
    assert judged(client(b="it wants streams"), CHECKS)[1] == []
    assert judged(client(), CHECKS)[1] == ["some: b: 400"]
    assert len(judged(client(a="x", b="y", z="z"), CHECKS)[1]) == 2
    assert judged(client(b="y"), CHECKS[1:])[1] == ["some: nothing passed"]


def test_the_page_counts_and_gives_reasons() -> None:
    """A row per client; what did not pass stands below with why."""
    checks, _ = judged(client(b="it wants a|b"), CHECKS)
    shown = page.markdown([Row("some", "1.0", "its tests", "2026-01-02", 3.4, checks, "the rest")])
    assert "| some | 1.0 | its tests | 1 | 1 | 1 | 3 | 2026-01-02 |" in shown
    assert "| some | `b` | failed | it wants a\\|b |" in shown
    assert "| some | `c` | skipped | no model |" in shown
    assert "| some |  | left out | the rest |" in shown


def test_a_report_of_pytest_is_read(tmp_path: Path) -> None:
    """Each case with its outcome and the first of what it says."""
    report = tmp_path / "junit.xml"
    report.write_text(
        '<testsuite><testcase name="a"/><testcase name="b"><failure message="no&#10;way">x</failure></testcase>'
        '<testcase name="c"><skipped type="pytest.skip" message="no model"/></testcase></testsuite>'
    )
    assert of_junit(report) == [CHECKS[0], replace(CHECKS[1], why="no way"), CHECKS[2]]
