"""Ways to run a client: a suite of pytest's, and a program of ours that uses a library as its users do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.clients.client import FAILED, PASSED, SKIPPED, Check, Place

PROGRAMS = Path(__file__).parent / "programs"
SECONDS = 900.0
LONGEST_WHY = 300


def environ(place: Place, **more: str) -> dict[str, str]:
    """What a client finds in its environment: nothing of ours, and the server where clients of OpenAI look for it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PROMPTMILL_", "PYTHON"))}
    server = {"OPENAI_BASE_URL": place.url, "OPENAI_API_KEY": place.key, "MODEL": place.model}
    server["PYTHONDONTWRITEBYTECODE"] = "1"
    return {**kept, "HOME": str(place.folder), "NO_PROXY": "localhost,127.0.0.1", **server, **more}


def run_pytest(
    place: Place,
    *arguments: str,
    folder: Path,
    more: Mapping[str, str] | None = None,
    seconds: float = SECONDS,
) -> list[Check]:
    """A suite of pytest's, run in ``folder``: a check per test."""
    report = place.folder / "junit.xml"
    command = [str(place.python), "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
    done = run_command(place, command, folder, more or {}, seconds)
    if not report.exists():
        return [Check("pytest", FAILED, last(done))]
    return of_junit(report)


def of_junit(report: Path) -> list[Check]:
    """The tests of a JUnit report, by the names of their functions."""
    return [_of_case(case) for case in ET.parse(report).getroot().iter("testcase")]


def _of_case(case: ET.Element) -> Check:
    name = case.get("name", "")
    for child in case:
        if child.tag in ("failure", "error"):
            return Check(name, FAILED, short(child.get("message", "")))
        if child.tag == "skipped":
            return Check(name, SKIPPED, short(child.get("message", "")))
    return Check(name, PASSED)


def run_program(place: Place, program: str, *arguments: str, seconds: float = SECONDS, **more: str) -> list[Check]:
    """A program in ``programs/`` that uses a library: it says each check by `checks.check`."""
    command = [str(place.python), str(PROGRAMS / program), *arguments]
    done = run_command(place, command, place.folder, more, seconds)
    found = []
    for line in done.stdout.splitlines():
        if line.startswith("check "):
            said = json.loads(line.removeprefix("check "))
            found.append(Check(said["name"], PASSED if said["passed"] else FAILED, short(said["why"])))
    if done.returncode != 0:
        found.append(Check("the program ends well", FAILED, last(done)))
    return found


def run_command(
    place: Place, command: Sequence[str], folder: Path, more: Mapping[str, str], seconds: float = SECONDS
) -> subprocess.CompletedProcess[str]:
    """A command to its end, with ``more`` in its environment; what it says is kept in ``log.txt`` of the place."""
    with (place.folder / "log.txt").open("a") as log:
        try:
            done = subprocess.run(
                command, cwd=folder, env=environ(place, **more), text=True, timeout=seconds, stdin=subprocess.DEVNULL,
                capture_output=True, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            said = [part.decode(errors="replace") for part in (error.stdout, error.stderr) if isinstance(part, bytes)]
            done = subprocess.CompletedProcess(command, 124, "".join(said[:1]), f"it took more than {seconds:.0f} s")
        log.write(f"$ {' '.join(command)}\n{done.stdout}\n{done.stderr}\n")
    return done


def last(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"exit status {done.returncode}"]
    return short(lines[-1])


def short(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()[:LONGEST_WHY]
