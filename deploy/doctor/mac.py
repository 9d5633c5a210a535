"""What macOS says of itself, by its own tools; the one module that calls them."""

from __future__ import annotations

import plistlib
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

from deploy.gpu_limit import DAEMON_SUFFIX, LIMIT
from deploy.init.launchd import DAEMONS

__all__ = ["Mac", "Run", "WiredAtBoot", "ask_mac", "daemon_words", "read_daemon", "run"]

TOOL_TIMEOUT_S = 3.0
_OIDS = (
    "hw.memsize",
    "hw.optional.arm64",
    LIMIT,
    "machdep.cpu.brand_string",
    "sysctl.proc_translated",
)

Run = Callable[[Sequence[str]], str]
"""What a command prints; empty where it does not run or takes too long."""


@dataclass(frozen=True, slots=True)
class WiredAtBoot:
    """The daemon that sets the limit of wired memory at each start, and to how many MiB."""

    label: str
    limit_mb: int


@dataclass(frozen=True, slots=True)
class Mac:
    """A Mac as it is set up. None, or nothing under a name, where its tools did not say.

    ``memory`` is in bytes, ``wired_limit_mb`` 0 where macOS chooses the limit; ``power`` has the settings of ``pmset``
    by source (``AC Power``, ``Battery Power``).
    """

    version: tuple[int, ...] = ()
    chip: str = "unknown chip"
    apple_silicon: bool | None = None
    translated: bool = False
    memory: int | None = None
    wired_limit_mb: int | None = None
    power: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    battery: bool = False
    on_battery: bool = False
    filevault: bool | None = None
    wired_at_boot: WiredAtBoot | None = None


def run(command: Sequence[str]) -> str:
    """What a command prints on stdout, whatever its exit status; see :data:`Run`."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TOOL_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")


def ask_mac(run: Run = run, daemons: Path = DAEMONS) -> Mac:
    """The facts of this Mac. Full paths: a daemon's PATH may be short."""
    # One that is not known there is named on stderr, and the others are printed all the same.
    system = _colon_lines(run(["/usr/sbin/sysctl", *_OIDS]))
    source = run(["/usr/bin/pmset", "-g", "ps"])
    arm = system.get("hw.optional.arm64")
    return Mac(
        # Python's own answer depends on the SDK that it was built with.
        version=_version(run(["/usr/bin/sw_vers", "-productVersion"])),
        chip=system.get("machdep.cpu.brand_string", "unknown chip"),
        apple_silicon=(arm == "1") if system else None,
        translated=system.get("sysctl.proc_translated") == "1",
        memory=_number(system.get("hw.memsize")),
        wired_limit_mb=_number(system.get(LIMIT)),
        power=_power(run(["/usr/bin/pmset", "-g", "custom"])),
        battery="InternalBattery" in source,
        on_battery="'Battery Power'" in source,
        filevault=_filevault(run(["/usr/bin/fdesetup", "status"])),
        wired_at_boot=_wired_at_boot(daemons),
    )


def _wired_at_boot(daemons: Path) -> WiredAtBoot | None:
    """The first of the daemons in this folder that set the limit."""
    for path in sorted(daemons.glob(f"*{DAEMON_SUFFIX}.plist")):
        for word in daemon_words(read_daemon(path)):
            name, _, value = word.partition("=")
            limit = _number(value)
            if name == LIMIT and limit is not None:
                return WiredAtBoot(path.stem, limit)
    return None


def read_daemon(path: Path) -> Mapping[str, Any]:
    """The property list of a daemon; empty where it is not there, not for us, or damaged."""
    try:
        job = plistlib.loads(path.read_bytes())
    except (OSError, ValueError, ExpatError):
        return {}
    return job if isinstance(job, dict) else {}


def daemon_words(job: Mapping[str, Any]) -> list[str]:
    """The command line of a daemon."""
    words = job.get("ProgramArguments")
    return [str(word) for word in words] if isinstance(words, list) else []


def _colon_lines(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _version(text: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", text.strip())
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _power(text: str) -> dict[str, dict[str, int]]:
    """The settings of ``pmset -g custom`` by source: a name, which may have spaces in it, and a number per line."""
    settings: dict[str, dict[str, int]] = {}
    source: dict[str, int] = {}
    for line in text.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith(":"):
            source = settings.setdefault(line.rstrip().rstrip(":"), {})
        elif found := re.match(r"\s+(\S.*?)\s+(\d+)(\s|$)", line):
            source[found[1]] = int(found[2])
    return settings


def _filevault(text: str) -> bool | None:
    found = re.search(r"FileVault is (On|Off)", text)
    return None if found is None else found[1] == "On"
