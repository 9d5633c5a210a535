"""Checks of what keeps a Mac at work through the night: sleep, power, and its start after a power cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from deploy.doctor.finding import Finding, good, skipped, unsure
from deploy.doctor.mac import Mac
from deploy.doctor.machine import NOT_A_MAC

__all__ = ["POWER_CHECKS", "check_power"]

POWER_CHECKS = ("sleep", "power", "power cut", "FileVault")
_AC = "AC Power"
_LOW_POWER_MODE = 1
"""The value of ``powermode`` that slows a Mac down; 0 is automatic and 2 high power."""


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
