"""The sleep assertion: held while lines are under way, and at no other time."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import until
from worker.health.keep_awake import SleepAssertion, caffeinate, way_to_stay_awake


class Machine:
    """Counts the assertions that are held, and those that were ever taken."""

    def __init__(self) -> None:
        self.held = self.taken = 0

    def take(self) -> Any:
        self.held += 1
        self.taken += 1
        return self.release

    def release(self) -> None:
        self.held -= 1


def test_the_assertion_is_held_while_lines_are_under_way() -> None:
    """Taken once with the first, released when none is left, taken again with the next."""
    machine = Machine()
    assertion = SleepAssertion(machine.take)
    held = []
    for busy in (False, True, True, False, False, True, False):
        assertion.keep(busy)
        held.append(machine.held)
    assert held == [0, 1, 1, 0, 0, 1, 0]
    assert machine.taken == 2


def test_a_machine_that_refuses_is_asked_once(caplog: pytest.LogCaptureFixture) -> None:
    """The worker warns and works on."""
    asked = []

    def refuse() -> Any:
        asked.append(1)
        raise OSError("status 0xe00002c2")

    assertion = SleepAssertion(refuse)
    for busy in (True, True, False, True):
        assertion.keep(busy)
    assert len(asked) == 1
    assert caplog.messages == [
        "the machine cannot be kept awake (status 0xe00002c2): see that it does not sleep by itself"
    ]


def test_only_a_mac_is_kept_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere nothing sleeps by itself that runs a worker."""
    monkeypatch.setattr("sys.platform", "linux")
    assert way_to_stay_awake() is None
    monkeypatch.setattr("sys.platform", "darwin")
    assert way_to_stay_awake() is caffeinate


def test_caffeinate_holds_it_for_this_process(tmp_path: Path) -> None:
    """macOS' own program is asked to prevent idle sleep as long as this process lives; it ends at the release, also
    where SIGTERM is held back, as in the heartbeat's thread."""
    program, asked = tmp_path / "caffeinate", tmp_path / "asked"
    program.write_text(f'#!/bin/sh\necho $$ "$@" > {asked}.part && mv {asked}.part {asked}\nexec sleep 60\n')
    program.chmod(0o755)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        release = caffeinate(str(program))
        until(asked.exists)
        release()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    pid, *flags = asked.read_text().split()
    assert flags == ["-i", "-w", str(os.getpid())]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_a_machine_without_caffeinate_refuses(tmp_path: Path) -> None:
    """That is an OSError, as of any refusal."""
    with pytest.raises(OSError):
        caffeinate(str(tmp_path / "caffeinate"))
