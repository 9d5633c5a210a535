"""launchd: daemons of macOS, their users, and the rotation of their logs."""

from __future__ import annotations

import plistlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.gpu_limit import LIMIT
from deploy.init.service import Account, ServiceSpec
from deploy.plan import File, Folder, Plan, PlanStep, rendered, root_file, root_group, shipped
from jobs.errors import RefusedError

DAEMONS = Path("/Library/LaunchDaemons")
LOGS = Path("/var/log")
POWER = (
    ("sleep", "0"),  # a Mac that sleeps serves nothing
    ("disksleep", "0"),
    ("powernap", "0"),  # wakes for mail and backups in between: without sleep it only costs
    ("womp", "1"),  # should it sleep all the same, a magic packet wakes it
    ("autorestart", "1"),  # after a power failure
)
POWER_NOW = ("pmset", "-g", "custom")
_SOURCES = {"AC Power": "-c", "Battery Power": "-b", "UPS Power": "-u"}
SYSCTL = "/usr/sbin/sysctl"
NO_LIMIT = (SYSCTL, f"{LIMIT}=0")
"""0 is what macOS starts with: it decides by itself."""
_ACCESS = (
    "over SSH macOS lets root change users only with Full Disk Access: switch on `Allow full disk access for remote "
    "users` (System Settings, General, Sharing, Remote Login), or do this in Terminal on the Mac itself"
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


def unit(service: ServiceSpec) -> Plan:
    """The daemon of a service, its logs and their rotation. A daemon, never an agent: since macOS 15 agents need a
    person's leave to reach hosts of the local network, and end at logout.

    The folder of its logs is root's: newsyslog works in it as root, and a service that could make links there would
    have it write elsewhere. So the service can make no logs there, and gets empty ones.

    newsyslog renames logs, makes new ones and sends no signal: the service opens its log (``.log``) anew when it finds
    it renamed. What it says before that is open (``.err``) is opened by launchd at each start, and what is written to
    stderr later goes into the log: see :mod:`jobs.app.logs`.
    """
    label, account = service.deployment.label, service.deployment.account
    log, errors = log_file(label), log_file(label, "err")
    logs = [File(path, "", 0o600, account.user, account.group, once=True, left=True) for path in (log, errors)]
    daemon = _daemon(
        "daemon",
        label,
        service.command,
        UserName=account.user,
        GroupName=account.group,
        WorkingDirectory=str(account.home),
        EnvironmentVariables=dict(service.environment),
        ProcessType="Interactive" if service.foreground else "Standard",
        ExitTimeOut=service.stop_s,
        StandardOutPath=str(errors),
        StandardErrorPath=str(errors),
    )
    rotation = rendered("newsyslog.conf", log=log.with_suffix(""), user=account.user, group=account.group)
    files = (*logs, daemon, root_file("launchd", Path("/etc/newsyslog.d") / f"{label}.conf", rotation))
    folder = Folder(log.parent, 0o755, "root", root_group("launchd"))
    return Plan(label, "launchd", (folder,), files, start=start(label, service.stop_s))


def wired_limit(label: str, mebibytes: int) -> Plan:
    """A daemon that runs once at boot, as root, and lets the GPU wire so much memory: macOS forgets it at shutdown."""
    file = _daemon("wired-limit", label, (SYSCTL, f"{LIMIT}={mebibytes}"))
    return Plan(label, "launchd", files=(file,), start=start(label, 0))


def weekly(label: str, command: tuple[str, ...]) -> Plan:
    """A daemon that root runs once a week, at the next waking if it is missed, and the commands that start it."""
    return Plan(label, "launchd", files=(_daemon("weekly", label, command),), start=start(label, 0))


def _daemon(template: str, label: str, command: tuple[str, ...], **values: Any) -> File:
    """A property list of ``deploy/templates`` with these values in the place of its own."""
    job = plistlib.loads(shipped(f"templates/{template}.plist.template").encode())
    job |= {"Label": label, "ProgramArguments": list(command), **values}
    return root_file("launchd", DAEMONS / f"{label}.plist", plist(job))


def after_limit(command: tuple[str, ...], mebibytes: int, sysctl: str = SYSCTL) -> tuple[str, ...]:
    """A command that waits, a minute at most, until the limit is there: launchd starts daemons in no order, and Metal
    reads it once."""
    wait = shipped("templates/wait-for-limit.template").rstrip()
    return ("/bin/sh", "-c", wait, "promptmill", str(mebibytes), sysctl, *command)


def power_settings(shown: str) -> dict[str, dict[str, int]]:
    """The settings that ``pmset -g custom`` shows, by source: a name, which may have spaces in it, and a number."""
    settings: dict[str, dict[str, int]] = {}
    source: dict[str, int] = {}
    for line in shown.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith(":"):
            source = settings.setdefault(line.rstrip().rstrip(":"), {})
        elif found := re.match(r"\s+(\S.*?)\s+(\d+)(\s|$)", line):
            source[found[1]] = int(found[2])
    return settings


def former_power(shown: str) -> tuple[str, ...]:
    """Commands that bring back those of the settings that ``pmset -g custom`` shows which we change."""
    changed = dict(POWER)
    commands = []
    for source, settings in power_settings(shown).items():
        words = [f"{name} {value}" for name, value in settings.items() if name in changed]
        if source in _SOURCES and words:
            commands.append(f"sudo pmset {_SOURCES[source]} {' '.join(words)}")
    return tuple(commands)


def log_file(label: str, kind: str = "log") -> Path:
    return LOGS / label / f"{label}.{kind}"


def user_steps(account: Account, free_id: int | None, gid: int | None = None) -> tuple[PlanStep, ...]:
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
        PlanStep(("dscl", ".", "-create", *value), may_fail="NFSHomeDirectory" in value, remedy=_ACCESS)
        for value in values
    ]
    # That the user was not there a moment ago may be remembered.
    return (*steps, PlanStep(("dscacheutil", "-flushcache"), may_fail=True))


def start(label: str, stop_s: float) -> tuple[PlanStep, ...]:
    """Commands that start a daemon, or start it anew with what its file says now."""
    path = str(DAEMONS / f"{label}.plist")
    return (
        PlanStep(("plutil", "-lint", path)),
        *stop(label, stop_s),
        PlanStep(("launchctl", "enable", f"system/{label}")),
        # Just after a stop it may still answer "5: Input/output error".
        PlanStep(("launchctl", "bootstrap", "system", path), until_works_s=10.0),
    )


def stop(label: str, stop_s: float = 3600) -> tuple[PlanStep, ...]:
    """Commands that end a daemon, and wait: until it is gone it cannot be started anew. The limit that a daemon itself
    has is in its file; none of ours has more than an hour to end."""
    limit_s = stop_s + 10
    at_most = f"{limit_s:.0f} seconds" if limit_s < 3600 else "an hour"
    return (
        PlanStep(("launchctl", "bootout", f"system/{label}"), may_fail=True),
        PlanStep(
            ("launchctl", "print", f"system/{label}"),
            until_fails_s=limit_s,
            waits=f"waiting until {label} has ended, {at_most} at most",
        ),
    )
