"""systemd: units of Linux, hardened, and their users."""

from __future__ import annotations

from pathlib import Path

from deploy.init.service import OPEN_FILES, Account, Service, root_group
from deploy.plan import File, Step

__all__ = ["UNITS", "quoted", "start", "stop", "stopped", "unit", "user_steps", "weekly"]

UNITS = Path("/etc/systemd/system")
RESTART_S = 30
_HARDENED = (
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "PrivateTmp=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "CapabilityBoundingSet=",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
    "SystemCallArchitectures=native",
)
_CONFINED = (
    # Before systemd 254 this closes all devices but the clock's, the GPU too: not for a worker.
    "ProtectClock=yes",
    "PrivateDevices=yes",
    "MemoryDenyWriteExecute=yes",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged @resources",
    "SystemCallErrorNumber=EPERM",
)


def quoted(word: str) -> str:
    """A word of a command line or an assignment as systemd reads it back."""
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if not word or any(character in " \t'\"\\;#" for character in word) else text


def unit(service: Service) -> File:
    """The unit of a service; it logs to the journal, which rotates. Only a failure starts it again."""
    account = service.account
    lines = [
        "[Unit]",
        f"Description={service.about}",
        "Wants=network-online.target",
        "After=network-online.target",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=exec",
        f"ExecStart={' '.join(map(quoted, service.command))}",
        f"User={account.user}",
        f"Group={account.group}",
        f"WorkingDirectory={account.home}".replace("%", "%%"),
        *(f"Environment={_value(f'{name}={value}')}" for name, value in service.environment.items()),
        "Restart=on-failure",
        f"RestartSec={RESTART_S}",
        # SIGTERM goes to the process alone, which ends its children; what is left after the limit is killed.
        "KillMode=mixed",
        f"TimeoutStopSec={service.stop_s}",
        f"LimitNOFILE={OPEN_FILES}",
        "UMask=0077",
        *(f"ReadWritePaths={_value(str(path))}" for path in (account.home, *service.writable)),
        *_HARDENED,
        "ProtectHome=read-only" if service.reads_homes else "ProtectHome=yes",
        *(_CONFINED if service.confined else ()),
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return File(UNITS / f"{service.label}.service", "\n".join(lines) + "\n", 0o644, "root", root_group("systemd"))


def weekly(label: str, command: tuple[str, ...]) -> tuple[tuple[File, ...], tuple[Step, ...]]:
    """A command that root runs once a week, after the start of the machine if it is missed, and what starts that."""
    service = ["[Unit]", f"Description={label}", "", "[Service]", "Type=oneshot"]
    service += [f"ExecStart={' '.join(map(quoted, command))}"]
    timer = ["[Unit]", f"Description={label}", "", "[Timer]", "OnCalendar=weekly", "RandomizedDelaySec=6h"]
    timer += ["Persistent=yes", "", "[Install]", "WantedBy=timers.target"]
    files = tuple(
        File(UNITS / f"{label}.{kind}", "\n".join(lines) + "\n", 0o644, "root", root_group("systemd"))
        for kind, lines in (("service", service), ("timer", timer))
    )
    return files, (Step(("systemctl", "enable", f"{label}.timer")), Step(("systemctl", "restart", f"{label}.timer")))


def _value(word: str) -> str:
    # Variables are replaced in commands only: elsewhere a dollar stays as it is.
    return quoted(word.replace("$", "\0")).replace("\0", "$")


def user_steps(account: Account, *, with_group: bool = True) -> tuple[Step, ...]:
    """The command that makes a user who cannot log in, and a group of its own unless there is one of that name."""
    group = ("--user-group",) if with_group else ("--gid", account.group)
    return (
        Step(
            ("useradd", "--system", *group, "--home-dir", str(account.home), "--no-create-home",
             "--shell", "/usr/sbin/nologin", account.user)
        ),
    )  # fmt: skip


def start(label: str, stop_s: float) -> tuple[Step, ...]:
    """Commands that start a unit, or start it anew with what its file says now."""
    name = f"{label}.service"
    return (
        Step(("systemctl", "daemon-reload")),
        Step(("systemctl", "enable", name)),
        Step(
            ("systemctl", "restart", name),
            waits=f"starting {label}: one that runs ends first, within {stop_s:.0f} seconds",
        ),
    )


def stop(label: str) -> tuple[Step, ...]:
    name = label if label.endswith(".timer") else f"{label}.service"
    return (Step(("systemctl", "disable", "--now", name), may_fail=True, waits=f"ending {label}"),)


def stopped() -> tuple[Step, ...]:
    # By then all is removed; what is left is still to be said.
    return (Step(("systemctl", "daemon-reload"), may_fail=True),)
