"""A Mac as its own tools describe it, and whether it stays at work through the night: sleep, power, power cuts."""

from __future__ import annotations

import plistlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

from deploy.doctor.finding import Finding, good, skipped, unsure
from deploy.gpu_limit import DAEMON_SUFFIX, LIMIT
from deploy.host import Host
from deploy.init.launchd import DAEMONS, power_settings

NOT_A_MAC = "not a Mac"
POWER_CHECKS = ("sleep", "power", "power cut", "FileVault")
_AC = "AC Power"
_LOW_POWER_MODE = 1
"""The value of ``powermode`` that slows a Mac down; 0 is automatic and 2 high power."""
_OIDS = (
    "hw.memsize",
    "hw.optional.arm64",
    LIMIT,
    "machdep.cpu.brand_string",
    "sysctl.proc_translated",
)


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


def ask_mac(host: Host, daemons: Path = DAEMONS) -> Mac:
    """The facts of this Mac. Full paths: a daemon's PATH may be short."""
    run = host.output
    # One that is not known there is named on stderr, and the others are printed all the same.
    system = _colon_lines(run(["/usr/sbin/sysctl", *_OIDS]))
    source = run(["/usr/bin/pmset", "-g", "ps"])
    vault = re.search(r"FileVault is (On|Off)", run(["/usr/bin/fdesetup", "status"]))
    arm = system.get("hw.optional.arm64")
    return Mac(
        # Python's own answer depends on the SDK that it was built with.
        version=_version(run(["/usr/bin/sw_vers", "-productVersion"])),
        chip=system.get("machdep.cpu.brand_string", "unknown chip"),
        apple_silicon=(arm == "1") if system else None,
        translated=system.get("sysctl.proc_translated") == "1",
        memory=_number(system.get("hw.memsize")),
        wired_limit_mb=_number(system.get(LIMIT)),
        power=power_settings(run(["/usr/bin/pmset", "-g", "custom"])),
        battery="InternalBattery" in source,
        on_battery="'Battery Power'" in source,
        filevault=None if vault is None else vault[1] == "On",
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


def check_power(mac: Mac | None) -> Iterator[Finding]:
    """The findings of :data:`POWER_CHECKS`, in that order."""
    if mac is None:
        yield from (skipped(name, NOT_A_MAC) for name in POWER_CHECKS)
        return
    plugged_in = mac.power.get(_AC, {})
    yield _sleep(plugged_in)
    yield _power(mac)
    yield _power_cut(plugged_in)
    yield _filevault(mac)


def _sleep(plugged_in: Mapping[str, int]) -> Finding:
    minutes = plugged_in.get("sleep")
    if minutes is None:
        return skipped("sleep", "`pmset -g custom` did not say")
    if minutes:
        when = "a minute" if minutes == 1 else f"{minutes} minutes"
        reason = (
            f"this Mac sleeps when nobody has used it for {when} and no worker holds lines (with --allow-sleep: even "
            "then); nothing wakes it for new ones"
        )
        return unsure("sleep", reason, "sudo pmset -c sleep 0")
    return good("sleep", "never, on mains power")


def _power(mac: Mac) -> Finding:
    """Where the power comes from now, and whether a setting saves it."""
    if mac.on_battery:
        return unsure("power", "it runs on its battery: slower, and not for long", "plug it in")
    settings = mac.power.get(_AC)
    if settings is None:
        return skipped("power", "`pmset -g custom` did not say")
    if settings.get("lowpowermode") or settings.get("powermode") == _LOW_POWER_MODE:
        name = "lowpowermode" if settings.get("lowpowermode") else "powermode"
        return unsure("power", "low power mode is on: everything is slower", f"sudo pmset -a {name} 0")
    return good("power", "mains, low power mode off")


def _power_cut(plugged_in: Mapping[str, int]) -> Finding:
    restarts = plugged_in.get("autorestart")
    if restarts is None:
        return skipped("power cut", "this Mac has no setting for it")
    if restarts:
        return good("power cut", "starts by itself when power is back")
    return unsure("power cut", "it stays off when power is back", "sudo pmset -a autorestart 1")


def _filevault(mac: Mac) -> Finding:
    if mac.battery:
        return skipped("FileVault", "a laptop starts with somebody at it")
    if mac.filevault is None:
        return skipped("FileVault", "`fdesetup status` did not say")
    if mac.filevault:
        return unsure(
            "FileVault",
            "on: after a start this Mac waits to be unlocked, and no worker runs until then",
            "restart it with `sudo fdesetup authrestart`; where nobody can come to unlock it, `sudo fdesetup disable`",
        )
    return good("FileVault", "off: workers run after a start with nobody there")
