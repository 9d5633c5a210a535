"""Being asked to stop by a signal, in whatever moment it comes: nothing that a handler does may wait for a lock."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.app.stop_signal import StopSignals, Wakeup

ROOT = Path(__file__).parents[3]
SIGNALS = 3000
HARMLESS = {"self.ask", "self.wakeup.ring", "contextlib.suppress", "os.write"}
"""What a handler may call: all that these do is count, put into a queue that is made for it, or write to a pipe."""


def handlers(path: Path) -> Iterator[ast.expr]:
    """What is given to ``signal.signal`` in a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("signal.signal", "signal"):
            yield node.args[1]


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def calls(function: ast.FunctionDef, known: dict[str, ast.FunctionDef]) -> Iterator[str]:
    """What a function calls, and what those call that stand in the same module; what it raises is an end, no call."""
    ends = {id(node.exc) for node in ast.walk(function) if isinstance(node, ast.Raise)}
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and id(node) not in ends:
            name = ast.unparse(node.func)
            yield name
            if (inner := known.get(name.rpartition(".")[2])) is not None and inner is not function:
                yield from calls(inner, known)


@pytest.mark.parametrize("package", ["jobs", "submit", "serve", "worker", "deploy", "bench", "tests"])
def test_no_signal_handler_takes_a_lock(package: str) -> None:
    """Each is a function of its module that counts, rings, writes to a pipe or raises, and does nothing else; a lambda
    is none, and an Event, which has a lock, is not touched."""
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        known = functions(path)
        for handler in handlers(path):
            name = ast.unparse(handler).removeprefix("self.")
            if name in known:
                bad = set(calls(known[name], known)) - HARMLESS
                found += [f"{path.relative_to(ROOT)}: {name} calls {call}" for call in bad]
            elif isinstance(handler, ast.Lambda):
                found.append(f"{path.relative_to(ROOT)}: {ast.unparse(handler)}")
    assert found == []


def test_signals_in_any_moment_stop_no_loop() -> None:
    """Thousands of them, from another process, into a loop that waits all the time: it hears the last one too."""
    script = f"""
import os, signal, subprocess, sys
from jobs.app.stop_signal import StopSignals
stops = StopSignals()
send = "import os, time\\nfor _ in range({SIGNALS}): os.kill({{}}, 15); time.sleep(0.0001)"
with stops.heard():
    sender = subprocess.Popen([sys.executable, "-c", send.format(os.getpid())])
    rounds = 0
    while sender.poll() is None:
        stops.wakeup.wait(0.00001)
        rounds += 1
    heard = stops.count
    os.kill(os.getpid(), signal.SIGINT)
    while stops.count == heard:
        stops.wakeup.wait(60)
    print(heard > 0, rounds > 0, sender.returncode)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("True True 0\n", "")


def test_a_ring_is_never_lost() -> None:
    """One that comes before the wait ends it at once, whoever rings; many are one."""
    wakeup = Wakeup()
    for _ in range(3):
        wakeup.ring()
    wakeup.wait(1e5)
    wakeup.wait(0.0)
    ringing = threading.Thread(target=wakeup.ring)
    ringing.start()
    wakeup.wait(1e5)
    ringing.join()


def test_a_short_wait_ends_after_any_number_of_rings() -> None:
    """Whether or not they were heard: it never becomes one without an end, and rings that nobody hears block nobody."""
    wakeup = Wakeup()
    for _ in range(2000):
        wakeup.ring()
        wakeup.wait(1e-7)
        wakeup.wait(1e-7)
    for _ in range(100_000):
        wakeup.ring()
    wakeup.wait(1e5)


@pytest.mark.parametrize("package", ["jobs", "submit", "serve", "worker"])
def test_no_simple_queue_is_waited_at_for_a_time(package: str) -> None:
    """Its ``get`` with a timeout that is over before it waits, waits for ever (CPython 3.11, at least)."""
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        simple = set(re.findall(r"self\.(\w+)(?:: [^=\n]*)? = queue\.SimpleQueue", text))
        waits = re.findall(r"self\.(\w+)\.get\([^)\n]*timeout", text)
        found += [f"{path.relative_to(ROOT)}: {name}" for name in waits if name in simple]
    assert found == []


def test_who_asks_is_heard() -> None:
    """Without a signal as well."""
    stops = StopSignals()
    assert stops.count == 0
    stops.ask()
    stops.wakeup.wait(1e5)
    assert stops.count == 1
