"""systemd: units of Linux, hardened, and their users."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deploy.init.service import Account, ServiceSpec
from deploy.plan import Plan, PlanStep, rendered, root_file

UNITS = Path("/etc/systemd/system")


def quoted(word: str) -> str:
    """A word of a command line or an assignment as systemd reads it back."""
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if not word or any(character in " \t'\"\\;#" for character in word) else text


def unit(service: ServiceSpec) -> Plan:
    """The unit of a service; it logs to the journal, which rotates. Only a failure starts it again. SIGTERM goes to the
    process alone, which ends its children; what is left after the limit is killed.

    A worker is not confined: before systemd 254 ``ProtectClock=`` closes all devices but the clock's, the GPU too.
    """
    label, account = service.deployment.label, service.deployment.account
    text = rendered(
        "unit.service",
        about=service.about,
        command=" ".join(map(quoted, service.command)),
        user=account.user,
        group=account.group,
        home=str(account.home).replace("%", "%%"),
        environment=_lines("Environment", (f"{name}={value}" for name, value in service.environment.items())),
        stop_s=service.stop_s,
        writable=_lines("ReadWritePaths", map(str, (account.home, *service.writable))),
        protect_home="read-only" if service.reads_homes else "yes",
        confined=rendered("confined") if service.confined else "",
    )
    file = root_file("systemd", UNITS / f"{label}.service", text)
    return Plan(label, "systemd", files=(file,), start=start(label, service.stop_s))


def weekly(label: str, command: tuple[str, ...]) -> Plan:
    """A command that root runs once a week, after the start of the machine if it is missed, and what starts that."""
    words = " ".join(map(quoted, command))
    files = tuple(
        root_file("systemd", UNITS / f"{label}.{kind}", rendered(f"weekly.{kind}", label=label, command=words))
        for kind in ("service", "timer")
    )
    steps = tuple(PlanStep(("systemctl", action, f"{label}.timer")) for action in ("enable", "restart"))
    return Plan(label, "systemd", files=files, start=steps)


def _lines(setting: str, words: Iterable[str]) -> str:
    """A line of a setting for each word. Variables are replaced in commands only: elsewhere a dollar stays as it is."""
    return "".join(f"{setting}={quoted(word).replace('$$', '$')}\n" for word in words)


def user_steps(account: Account, *, with_group: bool = True) -> tuple[PlanStep, ...]:
    """The command that makes a user who cannot log in, and a group of its own unless there is one of that name."""
    group = ("--user-group",) if with_group else ("--gid", account.group)
    return (
        PlanStep(
            ("useradd", "--system", *group, "--home-dir", str(account.home), "--no-create-home",
             "--shell", "/usr/sbin/nologin", account.user)
        ),
    )  # fmt: skip


def start(label: str, stop_s: float) -> tuple[PlanStep, ...]:
    """Commands that start a unit, or start it anew with what its file says now."""
    name = f"{label}.service"
    return (
        PlanStep(("systemctl", "daemon-reload")),
        PlanStep(("systemctl", "enable", name)),
        PlanStep(
            ("systemctl", "restart", name),
            waits=f"starting {label}: one that runs ends first, within {stop_s:.0f} seconds",
        ),
    )


def stop(label: str) -> tuple[PlanStep, ...]:
    name = label if label.endswith(".timer") else f"{label}.service"
    return (PlanStep(("systemctl", "disable", "--now", name), may_fail=True, waits=f"ending {label}"),)


def stopped() -> tuple[PlanStep, ...]:
    # By then all is removed; what is left is still to be said.
    return (PlanStep(("systemctl", "daemon-reload"), may_fail=True),)
