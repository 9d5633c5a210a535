"""The sleep assertion: held while lines are under way, and at no other time."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from worker.health.keep_awake import SleepAssertion, prevent_idle_sleep, way_to_stay_awake


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
    assert way_to_stay_awake() is prevent_idle_sleep


class Function:
    """A function of a system library: notes its calls, and answers."""

    def __init__(self, answer: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._answer = answer

    def __call__(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        return self._answer(*arguments)


@pytest.mark.parametrize("status", [0, -536870206])
def test_what_macos_is_asked(status: int) -> None:
    """An assertion against idle sleep with our reason, by its number released; strings are given back, and a refusal
    is an error with its status."""

    def create(kind: bytes, level: int, reason: bytes, number: Any) -> int:
        number._obj.value = 77
        assert (kind, level, reason) == (
            b"PreventUserIdleSystemSleep",
            255,
            b"promptmill: lines are under way",
        )
        return status

    core = SimpleNamespace(
        CFStringCreateWithCString=Function(lambda _allocator, text, _encoding: text), CFRelease=Function(lambda _: None)
    )
    power = SimpleNamespace(
        IOPMAssertionCreateWithName=Function(create), IOPMAssertionRelease=Function(lambda number: 0)
    )
    libraries = {
        "/System/Library/Frameworks/IOKit.framework/IOKit": power,
        "/System/Library/Frameworks/CoreFoundation.framework/CoreFoundation": core,
    }
    if status:
        with pytest.raises(OSError, match="0xe00002c2"):
            prevent_idle_sleep(libraries.__getitem__)
    else:
        prevent_idle_sleep(libraries.__getitem__)()
        ((number,),) = power.IOPMAssertionRelease.calls
        assert (type(number), number.value) == (ctypes.c_uint32, 77)
    assert len(core.CFRelease.calls) == 2
