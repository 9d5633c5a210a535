"""Workers and the scheduler of a pool, as daemons."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, urlsplit

from jobs.connect import redacted
from jobs.errors import RefusedError
from jobs.size import parse_size
from submit.deploy import launchd, systemd
from submit.deploy.checks import check_model, check_plain
from submit.deploy.plan import ETC, File, Folder, Plan, Step
from submit.deploy.service import Account, Service, default_home, root_group

__all__ = ["CA_FILE", "Common", "WorkerFlags", "scheduler_plan", "service_files", "settings_file", "worker_plan"]

CA_FILE = ETC / "ca.crt"
STOP_MARGIN_S = 30
"""Seconds a worker has after its drain limit, to hand back what is left, before it is killed."""
SCHEDULER_STOP_S = 30
_OWN_FLAGS = ("--model", "--name", "--drain", "--redis", "--config")
_ENDING_FLAGS = ("--burst", "--max-idle-time", "--exit-with-parent", "--pool")
_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"


@dataclass(frozen=True, slots=True)
class Common:
    """What every deployment says: ``url`` None keeps that of the settings file, ``authority`` is the text of the
    certificate that the pool's server is known by, ``users`` the commands that make the user."""

    init: str
    label: str
    account: Account
    program: Path
    url: str | None
    authority: str | None
    users: tuple[Step, ...]


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


def worker_plan(common: Common, flags: WorkerFlags) -> Plan:
    """The daemon of a worker, its settings and logs, and what macOS needs for it.

    Raises:
        RefusedError: something does not fit.
    """
    _check_worker(common, flags)
    command: tuple[str, ...] = (*_program(common), "worker")
    for model in flags.models:
        command += ("--model", model)
    if flags.name is not None:
        command += ("--name", flags.name)
    command += ("--drain", f"{flags.drain_s:g}", *flags.extra)
    stop_s = math.ceil(flags.drain_s) + STOP_MARGIN_S
    if flags.wired_mib is not None:
        command = launchd.after_limit(command, flags.wired_mib)
    service = Service(
        label=common.label,
        about="promptmill worker",
        command=command,
        account=common.account,
        environment={**_environment(common, "WORKER"), "HF_HOME": str(flags.hf_home)},
        stop_s=stop_s,
        writable=() if flags.hf_home.is_relative_to(common.account.home) else (flags.hf_home,),
        foreground=True,
        confined=False,
    )
    plan = _plan(common, service)
    files, notes = [*plan.files], [*_fetching(common, flags)]
    before: tuple[Step, ...] = ()
    after: tuple[Step, ...] = ()
    left: list[str] = []
    if common.init == "launchd":
        if flags.wired_mib is not None:
            limit = f"{common.label}-wired-limit"
            files.append(launchd.wired_limit(limit, flags.wired_mib))
            before = launchd.start(limit, 0)
            left.append("the GPU's memory limit, until the next start of this Mac")
        if flags.power:
            # One by one: not every Mac has every setting.
            after = tuple(Step(("pmset", "-a", *setting), may_fail=True) for setting in launchd.POWER)
            left.append("power settings (see `pmset -g`)")
        else:
            settings = " ".join(word for setting in launchd.POWER for word in setting)
            notes.append(f"a Mac that sleeps serves nothing: sudo pmset -a {settings} (--power runs it)")
    return replace(
        plan,
        files=tuple(files),
        start=(*before, *plan.start, *after),
        left=plan.left + tuple(left),
        notes=(*notes, *plan.notes),
    )


def scheduler_plan(common: Common) -> Plan:
    """The daemon of a pool's scheduler."""
    service = Service(
        label=common.label,
        about="promptmill scheduler",
        command=(*_program(common), "scheduler"),
        account=common.account,
        environment=_environment(common, "SCHEDULER"),
        stop_s=SCHEDULER_STOP_S,
    )
    return _plan(common, service)


def _check_worker(common: Common, flags: WorkerFlags) -> None:
    for model in flags.models:
        check_model(model)
    check_plain([*flags.extra, *([flags.name] if flags.name is not None else [])], "worker flag")
    for word in flags.extra:
        name = word.partition("=")[0]
        if name in _OWN_FLAGS:
            raise RefusedError(f"{name} after `--`: give it to `promptmill deploy worker` itself, before `--`")
        if name in _ENDING_FLAGS:
            raise RefusedError(f"{name} after `--`: such a worker ends by itself, and a daemon is for one that stays")
    own_limit = _value_of("--wired-limit", flags.extra)
    if flags.wired_mib is not None and own_limit is not None and parse_size(own_limit) > flags.wired_mib * 2**20:
        raise RefusedError(
            "--wired-limit after `--` is the worker's own, and more than what macOS is told to give: lower it"
        )
    if (flags.wired_mib is not None or flags.power) and common.init != "launchd":
        raise RefusedError("--wired-limit and --power are settings of macOS: leave them out, or use --init launchd")


def _value_of(flag: str, words: Sequence[str]) -> str | None:
    """What a flag is given on a command line, as ``--flag value`` or ``--flag=value``."""
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == flag:
            return value if equals else "".join(words[number + 1 : number + 2])
    return None


def settings_file(common: Common) -> File:
    """The settings that hold the URL with its password: for the service's user alone."""
    path = ETC / f"{common.label}.toml"
    url, account = common.url, common.account
    if url is None:
        return File(path, "", 0o600, account.user, account.group, shown="redis = ...", kept=True)
    if common.authority is not None and "ssl_ca_certs" not in url:
        if not url.startswith("rediss://"):
            raise RefusedError(f"--ca is for a server with TLS, and {redacted(url)} is none: write rediss://")
        url += f"{'&' if '?' in url else '?'}ssl_ca_certs={quote(str(CA_FILE))}"
    # A JSON string of printable text is a TOML string.
    line = "redis = {}\n"
    return File(
        path,
        line.format(json.dumps(url, ensure_ascii=False)),
        0o600,
        account.user,
        account.group,
        shown=line.format(json.dumps(redacted(url), ensure_ascii=False)),
    )


def service_files(init: str, service: Service) -> tuple[tuple[Folder, ...], tuple[File, ...], tuple[Step, ...]]:
    """Folders, files and commands of a service on either system."""
    account, root = service.account, root_group(init)
    folders = [Folder(ETC, 0o755, "root", root)]
    usual = default_home(init, "x").parent
    if account.home.parent == usual:
        folders.append(Folder(usual, 0o755, "root", root))
    folders += [Folder(path, 0o750, account.user, account.group) for path in (account.home, *service.writable)]
    if init == "systemd":
        return tuple(folders), (systemd.unit(service),), systemd.start(service.label)
    folders.append(launchd.log_folder(service.label, account))
    files = (launchd.daemon(service), launchd.newsyslog(service))
    return tuple(folders), files, launchd.start(service.label, service.stop_s)


def _plan(common: Common, service: Service) -> Plan:
    folders, files, start = service_files(common.init, service)
    authority: tuple[File, ...] = ()
    left = [f"{common.account.home} (models, spool)", f"user {common.account.user}"]
    if common.authority is not None:
        authority = (File(CA_FILE, common.authority, 0o644, "root", root_group(common.init), left=True),)
        left.append(str(CA_FILE))
    if common.init == "launchd":
        left.append(str(launchd.log_file(common.label).parent))
        log = f"log: tail -f {launchd.log_file(common.label)}, and .err beside it for crashes"
    else:
        log = f"log: journalctl -fu {common.label}"
    return Plan(
        label=common.label,
        init=common.init,
        folders=folders,
        files=(settings_file(common), *authority, *files),
        users=common.users,
        start=start,
        left=tuple(left),
        notes=(*_exposed(common.url), log),
    )


def _exposed(url: str | None) -> Sequence[str]:
    """What a URL without TLS means, unless it is of this machine."""
    if url is None or not url.startswith("redis://") or urlsplit(url).hostname in {"localhost", "127.0.0.1", "::1"}:
        return ()
    return ("without TLS everybody on the network can read the password, prompts and texts: see rediss://",)


def _program(common: Common) -> tuple[str, ...]:
    return str(common.program), "--config", str(ETC / f"{common.label}.toml")


def _environment(common: Common, command: str) -> dict[str, str]:
    home = common.account.home
    environment = {
        "HOME": str(home),
        "PATH": f"{common.program.parent}:{_PATH}",
        "PROMPTMILL_DATA_DIR": str(home / "data"),
    }
    if common.init == "launchd":
        environment[f"PROMPTMILL_{command}_LOG_FILE"] = str(launchd.log_file(common.label))
    return environment


def _fetching(common: Common, flags: WorkerFlags) -> Sequence[str]:
    """How the models of the Hub are fetched before the first batch needs them."""
    tool = common.program.with_name("hf")
    user = ["sudo", "-u", common.account.user, "env", f"HOME={common.account.home}", f"HF_HOME={flags.hf_home}"]
    notes = []
    for model in flags.models:
        if not model.startswith("/"):
            name, _, revision = model.partition("@")
            words = [*user, str(tool), "download", name, *(["--revision", revision] if revision else [])]
            notes.append(f"fetch {model} after --install --no-start: {shlex.join(words)}")
    return notes
