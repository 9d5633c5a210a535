"""Workers and the scheduler of a pool, as daemons."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from deploy.checks import check_model_name, check_plain, check_program
from deploy.gpu_limit import DAEMON_SUFFIX
from deploy.init import launchd, service_plan
from deploy.init.service import CA_FILE, Deployment, ServiceSpec
from deploy.plan import Plan, PlanStep, root_file
from deploy.settings import Key, settings_file
from jobs.app.units import parse_size
from jobs.app.worker_options import WORKER_OPTIONS
from jobs.errors import RefusedError

STOP_MARGIN_S = 30
"""Seconds a worker has after its drain limit, to hand back what is left, before it is killed."""
SCHEDULER_STOP_S = 30
SERVE_STOP_S = 60
"""Above what requests that wait are given, and the answers under way after it."""
_SECRET: Key = ("scheduler", "webhook-secret")
_PRIVATE = (Path("/tmp"), Path("/var/tmp"))
"""Each service of systemd has folders of its own in the place of these."""
_OWN = ": give it to `promptmill deploy {command}` itself, before `--`"
_ENDS_AT_ONCE = ": such a {kind} ends at once, and a daemon is for one that stays"
_ENDS_BY_ITSELF = ": such a {kind} ends by itself, and a daemon is for one that stays"
_LOG = ": a daemon's log is where it is rotated, /var/log/LABEL on a Mac and the journal on Linux; leave it out"
_REFUSED = {
    **dict.fromkeys(("--redis", "--config"), _OWN),
    **dict.fromkeys(("--check", "--help", "-h"), _ENDS_AT_ONCE),
    "--log-file": _LOG,
}
"""Flags that may not follow `--`, being `deploy`'s own or against what a daemon is for, and what is said of each."""
_WORKER_REFUSED = {
    **_REFUSED,
    **dict.fromkeys(("--model", "--name", "--drain"), _OWN),
    **dict.fromkeys((row.flag for row in WORKER_OPTIONS if row.ends), _ENDS_BY_ITSELF),
}
_SERVE_REFUSED = {
    **_REFUSED,
    "--files": _OWN,
    "--model": ": a daemon's models are those of `promptmill deploy worker`; leave it out",
}
_SCHEDULER_REFUSED = {
    **_REFUSED,
    "--webhook-secret": " could be read by everybody: give --webhook-secret-file FILE",
}
_OPEN = "without TLS everybody on the network can read the password, prompts and texts: see rediss://"
_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"


@dataclass(frozen=True, slots=True)
class WorkerFlags:
    """A worker's own: ``wired_mib`` is the limit of macOS on what its GPU may wire, ``extra`` goes to the worker."""

    models: tuple[str, ...]
    hf_home: Path
    name: str | None = None
    drain_s: float = 30.0
    wired_mib: int | None = None
    power: bool = False
    extra: tuple[str, ...] = ()


def worker_plan(deployment: Deployment, flags: WorkerFlags) -> Plan:
    """The daemon of a worker, its settings and logs, and what macOS needs for it.

    Raises:
        RefusedError: something does not fit.
    """
    _check_worker(deployment, flags)
    written = (flags.hf_home, *map(Path, _split("--spool", flags.extra)[0]))
    command: tuple[str, ...] = (*deployment.promptmill, *worker_words(flags))
    if flags.wired_mib is not None:
        command = launchd.after_limit(command, flags.wired_mib)
    service = ServiceSpec(
        deployment,
        about="promptmill worker",
        command=command,
        environment={**_environment(deployment, "WORKER"), "HF_HOME": str(flags.hf_home)},
        stop_s=math.ceil(flags.drain_s) + STOP_MARGIN_S,
        writable=tuple(dict.fromkeys(path for path in written if not path.is_relative_to(deployment.account.home))),
        foreground=True,
        confined=False,
        reads_homes=True,
    )
    plan = _plan(service)
    if deployment.init == "launchd":
        plan = _with_mac_settings(plan, flags)
    return replace(plan, notes=(*_fetching(deployment, flags), *plan.notes))


def _with_mac_settings(plan: Plan, flags: WorkerFlags) -> Plan:
    """The plan, with the limit of what the GPU may wire, and the power settings: made, or noted."""
    if flags.wired_mib is not None:
        limit = launchd.wired_limit(f"{plan.label}{DAEMON_SUFFIX}", flags.wired_mib)
        undo = (launchd.NO_LIMIT,)
        plan = replace(plan, files=plan.files + limit.files, start=limit.start + plan.start, undo=undo)
    if not flags.power:
        settings = " ".join(word for setting in launchd.POWER for word in setting)
        note = f"a Mac without work may fall asleep for good: sudo pmset -a {settings} (--power runs it)"
        return replace(plan, notes=(note, *plan.notes))
    # One by one: not every Mac has every setting.
    steps = tuple(PlanStep(("pmset", "-a", *setting), may_fail=True) for setting in launchd.POWER)
    return replace(plan, start=plan.start + steps, power=True, left=(*plan.left, "power settings (see `pmset -g`)"))


def worker_words(flags: WorkerFlags) -> tuple[str, ...]:
    """The command of a worker and all its flags, as they follow the program."""
    models = [word for model in flags.models for word in ("--model", model)]
    name = [] if flags.name is None else ["--name", flags.name]
    return ("worker", *models, *name, "--drain", f"{flags.drain_s:g}", *flags.extra)


def trial(deployment: Deployment, words: Sequence[str], settings: Path | None) -> tuple[str, ...]:
    """A command with which the program sees whether a daemon's flags are right, and ends: with 0, or 2 and what is
    wrong. ``settings`` is its settings file, None where there is none to read. Folders to read from are left to us:
    they are the daemon's user's to see, not this one's."""
    config = Path(os.devnull) if settings is None else settings
    variables = {**_environment(deployment, ""), "HOME": "/nonexistent"}
    environment = (f"{name}={value}" for name, value in variables.items())
    _, kept = _split("--read-from", words)
    return ("/usr/bin/env", "-i", *environment, str(deployment.program), "--config", str(config), *kept, "--check")


def scheduler_plan(deployment: Deployment, secret: str | None = None, extra: tuple[str, ...] = ()) -> Plan:
    """The daemon of a pool's scheduler. ``secret`` is what it signs webhooks with, None keeps that of the settings
    file; ``extra`` goes to the scheduler.

    Raises:
        RefusedError: something does not fit.
    """
    _check_extra(extra, _SCHEDULER_REFUSED, "scheduler")
    for folder in read_folders(extra):
        check_program(folder, "--read-from")
        if deployment.init == "systemd" and any(folder.is_relative_to(private) for private in _PRIVATE):
            raise RefusedError(f"--read-from {folder}: a daemon of systemd has its own /tmp; use /srv/promptmill, say")
    service = ServiceSpec(
        deployment,
        about="promptmill scheduler",
        command=(*deployment.promptmill, "scheduler", *extra),
        environment=_environment(deployment, "SCHEDULER"),
        stop_s=SCHEDULER_STOP_S,
        reads_homes=True,
    )
    return _plan(service, {} if secret is None else {_SECRET: secret})


def serve_plan(deployment: Deployment, files: Path, extra: tuple[str, ...] = ()) -> Plan:
    """The daemon of an HTTP server, which keeps uploaded ``files``; ``extra`` goes to it.

    Raises:
        RefusedError: something does not fit.
    """
    _check_extra(extra, _SERVE_REFUSED, "server", command="serve")
    command = (*deployment.promptmill, *serve_words(files, extra))
    service = ServiceSpec(
        deployment,
        about="promptmill serve",
        command=command,
        environment=_environment(deployment, "SERVE"),
        stop_s=SERVE_STOP_S,
        writable=() if files.is_relative_to(deployment.account.home) else (files,),
        reads_homes=True,
    )
    return _plan(service)


def serve_words(files: Path, extra: Sequence[str]) -> tuple[str, ...]:
    """The command of an HTTP server and all its flags, as they follow the program."""
    return ("serve", "--files", str(files), *extra)


def read_folders(extra: Sequence[str]) -> tuple[Path, ...]:
    """The folders that a scheduler's flags let it read files from."""
    return tuple(map(Path, _split("--read-from", extra)[0]))


def _check_worker(deployment: Deployment, flags: WorkerFlags) -> None:
    for model in flags.models:
        check_model_name(model)
    check_plain(filter(None, [flags.name]), "worker flag")
    _check_extra(flags.extra, _WORKER_REFUSED, "worker")
    for spool in _split("--spool", flags.extra)[0]:
        check_program(Path(spool), "--spool")
    own_limits = [parse_size(text) for text in _split("--wired-limit", flags.extra)[0]]
    if flags.wired_mib is not None and any(limit > flags.wired_mib * 2**20 for limit in own_limits):
        raise RefusedError(
            "--wired-limit after `--` is the worker's own, and more than what macOS is told to give: lower it"
        )
    if (flags.wired_mib is not None or flags.power) and deployment.init != "launchd":
        raise RefusedError("--wired-limit and --power are settings of macOS: leave them out, or use --init launchd")


def _check_extra(extra: Sequence[str], refused: Mapping[str, str], kind: str, command: str | None = None) -> None:
    """What follows `--` can be written, and is neither `deploy`'s own nor against what the daemon is made for."""
    check_plain(extra, f"{kind} flag")
    for word in extra:
        name = word.partition("=")[0]
        if name in refused:
            raise RefusedError(f"{name} after `--`{refused[name].format(kind=kind, command=command or kind)}")


def _split(flag: str, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The values that a flag has on a command line, as ``--flag value`` or ``--flag=value``; and all else of it."""
    values, rest, words_left = list[str](), list[str](), iter(words)
    for word in words_left:
        name, equals, value = word.partition("=")
        if name == flag:
            values.append(value if equals else next(words_left, ""))
        else:
            rest.append(word)
    return values, rest


def _plan(service: ServiceSpec, values: Mapping[Key, str] = MappingProxyType({})) -> Plan:
    deployment, plan = service.deployment, service_plan(service)
    account, files = deployment.account, [settings_file(deployment, values)]
    left = [f"{account.home} (models, spool)", f"user {account.user}", *map(str, service.writable)]
    if deployment.authority is not None:
        files.append(replace(root_file(deployment.init, CA_FILE, deployment.authority), left=True))
        left.append(str(CA_FILE))
    log = f"log: journalctl -fu {deployment.label}"
    if deployment.init == "launchd":
        file = launchd.log_file(deployment.label)
        left.append(str(file.parent))
        log = f"log: tail -f {file}, and .err beside it for what is said before it is open"
    notes = (_OPEN, log) if _exposed(deployment.url or "") else (log,)
    return replace(plan, files=(*files, *plan.files), left=tuple(left), notes=notes)


def _exposed(url: str) -> bool:
    """Whether what passes to Redis can be read on the network."""
    return url.startswith("redis://") and urlsplit(url).hostname not in {"localhost", "127.0.0.1", "::1"}


def _environment(deployment: Deployment, command: str) -> dict[str, str]:
    home = deployment.account.home
    environment = {
        "HOME": str(home),
        "PATH": f"{deployment.program.parent}:{_PATH}",
        "PROMPTMILL_DATA_DIR": str(home / "data"),
    }
    if deployment.init == "launchd" and command:
        environment[f"PROMPTMILL_{command}_LOG_FILE"] = str(launchd.log_file(deployment.label))
    return environment


def _fetching(deployment: Deployment, flags: WorkerFlags) -> Iterator[str]:
    """How the models of the Hub are fetched before the first batch needs them."""
    tool = deployment.program.with_name("hf")
    # In a folder that the user may be in: the administrator's own home is none.
    home = deployment.account.home
    user = ["sudo", "-u", deployment.account.user, "env", f"HOME={home}", f"HF_HOME={flags.hf_home}"]
    for model in flags.models:
        if not model.startswith("/"):
            name, _, revision = model.partition("@")
            words = [*user, str(tool), "download", name, *(["--revision", revision] if revision else [])]
            yield f"fetch {model} after --install --no-start: cd / && {shlex.join(words)}"
