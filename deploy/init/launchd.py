"""launchd: daemons of macOS, their users, and the rotation of their logs."""

from __future__ import annotations

import plistlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.gpu_limit import LIMIT
from deploy.init.service import OPEN_FILES, Account, Service, root_group
from deploy.plan import File, Folder, Step
from jobs.errors import RefusedError

__all__ = [
    "DAEMONS",
    "NO_LIMIT",
    "POWER",
    "POWER_NOW",
    "after_limit",
    "daemon",
    "former_power",
    "log_file",
    "log_files",
    "log_folder",
    "newsyslog",
    "plist",
    "start",
    "stop",
    "user_steps",
    "weekly",
    "wired_limit",
]

DAEMONS = Path("/Library/LaunchDaemons")
LOGS = Path("/var/log")
THROTTLE_S = 30
UMASK = 0o077
LOG_KIB, LOG_COUNT = 10_240, 7
POWER = (
    ("sleep", "0"),  # a Mac that sleeps serves nothing
    ("disksleep", "0"),
    ("powernap", "0"),  # wakes for mail and backups in between: without sleep it only costs
    ("womp", "1"),  # should it sleep all the same, a magic packet wakes it
    ("autorestart", "1"),  # after a power failure
)
POWER_NOW = ("pmset", "-g", "custom")
_SOURCES = {"AC Power:": "-c", "Battery Power:": "-b", "UPS Power:": "-u"}
SYSCTL = "/usr/sbin/sysctl"
NO_LIMIT = (SYSCTL, f"{LIMIT}=0")
"""0 is what macOS starts with: it decides by itself."""
_ACCESS = (
    "over SSH macOS lets root change users only with Full Disk Access: switch on `Allow full disk access for remote "
    "users` (System Settings, General, Sharing, Remote Login), or do this in Terminal on the Mac itself"
)
_WAIT = (
    'limit=$1; tool=$2; shift 2; tries=0; while [ "$("$tool" -n ' + LIMIT + ' 2>/dev/null)" != "$limit" ] '
    '&& [ $tries -lt 60 ]; do tries=$((tries + 1)); sleep 1; done; exec "$@"'
)


def plist(job: Mapping[str, Any]) -> str:
    """A property list in XML, read back to be sure of it.

    Raises:
        RefusedError: a value that a property list cannot hold.
    """
    try:
        text = plistlib.dumps(dict(job), sort_keys=False)
        same = plistlib.loads(text) == job
    except (TypeError, ValueError, OverflowError) as error:
        raise RefusedError(f"{job['Label']}: cannot be written as a property list: {error}") from None
    if not same:
        raise RefusedError(f"{job['Label']}: a value would change in a property list; use plain text without CR")
    return text.decode()


def daemon(service: Service) -> File:
    """The daemon of a service. A daemon, never an agent: since macOS 15 agents need a person's leave to reach hosts
    of the local network, and end at logout.

    Only a failure starts it again: a service that ends with status 0 was asked to.
    """
    job = {
        "Label": service.label,
        "ProgramArguments": list(service.command),
        "UserName": service.account.user,
        "GroupName": service.account.group,
        "InitGroups": True,
        "Umask": UMASK,
        "WorkingDirectory": str(service.account.home),
        "EnvironmentVariables": dict(service.environment),
        # Background is slowed down on the GPU, about eight times, and what is unset is slowed down a little.
        "ProcessType": "Interactive" if service.foreground else "Standard",
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": THROTTLE_S,
        "ExitTimeOut": service.stop_s,
        "SoftResourceLimits": {"NumberOfFiles": OPEN_FILES},
        "HardResourceLimits": {"NumberOfFiles": OPEN_FILES},
        "StandardOutPath": str(log_file(service.label, "err")),
        "StandardErrorPath": str(log_file(service.label, "err")),
    }
    return _root_file(DAEMONS / f"{service.label}.plist", plist(job))


def wired_limit(label: str, mebibytes: int) -> File:
    """A daemon that runs once at boot, as root, and lets the GPU wire so much memory: macOS forgets it at shutdown."""
    job = {
        "Label": label,
        "ProgramArguments": [SYSCTL, f"{LIMIT}={mebibytes}"],
        "RunAtLoad": True,
        "StandardOutPath": "/dev/null",
        "StandardErrorPath": "/dev/null",
    }
    return _root_file(DAEMONS / f"{label}.plist", plist(job))


def weekly(label: str, command: tuple[str, ...]) -> tuple[tuple[File, ...], tuple[Step, ...]]:
    """A daemon that root runs once a week, at the next waking if it is missed, and the commands that start it."""
    job = {
        "Label": label,
        "ProgramArguments": list(command),
        "EnvironmentVariables": {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
        "StartCalendarInterval": {"Weekday": 2, "Hour": 10, "Minute": 7},
    }
    return (_root_file(DAEMONS / f"{label}.plist", plist(job)),), start(label, 0)


def after_limit(command: tuple[str, ...], mebibytes: int, sysctl: str = SYSCTL) -> tuple[str, ...]:
    """A command that waits, a minute at most, until the limit is there: launchd starts daemons in no order, and Metal
    reads it once."""
    return ("/bin/sh", "-c", _WAIT, "promptmill", str(mebibytes), sysctl, *command)


def former_power(shown: str) -> tuple[str, ...]:
    """Commands that bring back the power settings that ``pmset -g custom`` shows, of those that are changed."""
    found: dict[str, list[str]] = {}
    source = None
    for line in shown.splitlines():
        words = line.split()
        if line.strip() in _SOURCES:
            source = _SOURCES[line.strip()]
        elif source and len(words) >= 2 and words[0] in dict(POWER) and words[1].isdecimal():
            found.setdefault(source, []).extend(words[:2])
    return tuple(f"sudo pmset {source} {' '.join(settings)}" for source, settings in found.items())


def log_folder(label: str) -> Folder:
    """The folder is root's: newsyslog works in it as root, and a service that could make links there would have it
    write elsewhere."""
    return Folder(LOGS / label, 0o755, "root", root_group("launchd"))


def log_files(service: Service) -> tuple[File, ...]:
    """Empty logs: in that folder the service itself can make none."""
    account = service.account
    return tuple(
        File(log_file(service.label, kind), "", 0o600, account.user, account.group, once=True, left=True)
        for kind in ("log", "err")
    )


def log_file(label: str, kind: str = "log") -> Path:
    return LOGS / label / f"{label}.{kind}"


def newsyslog(service: Service) -> File:
    """Rotation of a service's logs. newsyslog renames them, makes new ones and sends no signal: the service opens its
    log (``.log``) anew when it finds it renamed. What it says before that is open (``.err``) is opened by launchd at
    each start, and what is written to stderr later goes into the log: see :mod:`jobs.app.logs`."""
    owner = f"{service.account.user}:{service.account.group}"
    lines = ["# logfile  owner:group  mode  count  KiB  when  flags (B: no line of its own; N: no signal)"]
    lines += [
        f"{log_file(service.label, kind)}  {owner}  600  {LOG_COUNT}  {LOG_KIB}  *  BN" for kind in ("log", "err")
    ]
    return _root_file(Path("/etc/newsyslog.d") / f"{service.label}.conf", "\n".join(lines) + "\n")


def user_steps(account: Account, free_id: int | None, gid: int | None = None) -> tuple[Step, ...]:
    """Commands that make a hidden user who cannot log in; ``free_id`` is None where it is not known yet, ``gid`` that
    of the group where it is there.

    The ids are last: until then the system knows no such user, and after a failure the next installation makes it
    whole.
    """
    number = "FREE_ID" if free_id is None else str(free_id)
    group, user = f"/Groups/{account.group}", f"/Users/{account.user}"
    of_group = [(group,), (group, "Password", "*"), (group, "PrimaryGroupID", number)]
    values = [
        *(of_group if gid is None else ()),
        (user,),
        (user, "PrimaryGroupID", number if gid is None else str(gid)),
        (user, "RealName", f"promptmill ({account.user})"),
        (user, "NFSHomeDirectory", str(account.home)),
        (user, "UserShell", "/usr/bin/false"),
        (user, "Password", "*"),
        (user, "IsHidden", "1"),
        (user, "UniqueID", number),
    ]
    # The home is guarded more than the rest, and the daemon is told its own anyway.
    steps = [
        Step(("dscl", ".", "-create", *value), may_fail="NFSHomeDirectory" in value, remedy=_ACCESS) for value in values
    ]
    # That the user was not there a moment ago may be remembered.
    return (*steps, Step(("dscacheutil", "-flushcache"), may_fail=True))


def start(label: str, stop_s: float) -> tuple[Step, ...]:
    """Commands that start a daemon, or start it anew with what its file says now."""
    path = str(DAEMONS / f"{label}.plist")
    return (
        Step(("plutil", "-lint", path)),
        *stop(label, stop_s),
        Step(("launchctl", "enable", f"system/{label}")),
        # Just after a stop it may still answer "5: Input/output error".
        Step(("launchctl", "bootstrap", "system", path), until_works_s=10.0),
    )


def stop(label: str, stop_s: float) -> tuple[Step, ...]:
    """Commands that end a daemon, and wait: until it is gone it cannot be started anew."""
    return (
        Step(("launchctl", "bootout", f"system/{label}"), may_fail=True),
        Step(
            ("launchctl", "print", f"system/{label}"),
            until_fails_s=stop_s + 10,
            waits=f"waiting until {label} has ended, {_duration(stop_s + 10)} at most",
        ),
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 3600 else "an hour"


def _root_file(path: Path, text: str) -> File:
    return File(path, text, 0o644, "root", root_group("launchd"))
