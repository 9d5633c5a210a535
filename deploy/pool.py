"""Workers and the scheduler of a pool, as daemons."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote, urlsplit

from deploy.checks import check_model, check_plain, check_program
from deploy.gpu_limit import DAEMON_SUFFIX
from deploy.init import launchd, systemd
from deploy.init.service import Account, Service, default_home, root_group
from deploy.plan import ETC, File, Folder, Plan, Step
from deploy.settings import Key, changed, settings_of
from jobs.app.units import parse_size
from jobs.app.worker_options import WORKER_OPTIONS
from jobs.errors import RefusedError
from jobs.redis.connect import redacted

__all__ = [
    "CA_FILE",
    "Common",
    "WorkerFlags",
    "read_folders",
    "scheduler_plan",
    "service_files",
    "settings_file",
    "settings_place",
    "trial",
    "worker_plan",
    "worker_words",
]

CA_FILE = ETC / "ca.crt"
STOP_MARGIN_S = 30
"""Seconds a worker has after its drain limit, to hand back what is left, before it is killed."""
SCHEDULER_STOP_S = 30
_OWN_FLAGS = ("--model", "--name", "--drain", "--redis", "--config")
_SCHEDULER_FLAGS = ("--redis", "--config")
_SECRET: Key = ("scheduler", "webhook-secret")
_PRIVATE = (Path("/tmp"), Path("/var/tmp"))
"""Each service of systemd has folders of its own in the place of these."""
_ENDING_FLAGS = tuple(row.flag for row in WORKER_OPTIONS if row.ends)
_SAYING_FLAGS = ("--check", "--help", "-h")
_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"


@dataclass(frozen=True, slots=True)
class Common:
    """What every deployment says: ``url`` None keeps that of the settings file, ``authority`` is the text of the
    certificate that the pool's server is known by, ``users`` the commands that make the user, ``existing`` the text of
    the settings file where it is there and for us to read."""

    init: str
    label: str
    account: Account
    program: Path
    url: str | None
    authority: str | None
    users: tuple[Step, ...]
    existing: str | None = None


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
    command: tuple[str, ...] = (*_program(common), *worker_words(flags))
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
        writable=_writable(common.account.home, flags),
        foreground=True,
        confined=False,
        reads_homes=True,
    )
    plan = _plan(common, service)
    files, notes = [*plan.files], [*_fetching(common, flags)]
    before: tuple[Step, ...] = ()
    after: tuple[Step, ...] = ()
    left: list[str] = []
    undo: tuple[tuple[str, ...], ...] = ()
    if common.init == "launchd":
        if flags.wired_mib is not None:
            limit = f"{common.label}{DAEMON_SUFFIX}"
            files.append(launchd.wired_limit(limit, flags.wired_mib))
            before = launchd.start(limit, 0)
            undo = (launchd.NO_LIMIT,)
        if flags.power:
            # One by one: not every Mac has every setting.
            after = tuple(Step(("pmset", "-a", *setting), may_fail=True) for setting in launchd.POWER)
            left.append("power settings (see `pmset -g`)")
        else:
            settings = " ".join(word for setting in launchd.POWER for word in setting)
            notes.append(f"a Mac without work may fall asleep for good: sudo pmset -a {settings} (--power runs it)")
    return replace(
        plan,
        files=tuple(files),
        start=(*before, *plan.start, *after),
        undo=undo,
        power=flags.power,
        left=plan.left + tuple(left),
        notes=(*notes, *plan.notes),
    )


def worker_words(flags: WorkerFlags) -> tuple[str, ...]:
    """The command of a worker and all its flags, as they follow the program."""
    words: tuple[str, ...] = ("worker",)
    for model in flags.models:
        words += ("--model", model)
    if flags.name is not None:
        words += ("--name", flags.name)
    return (*words, "--drain", f"{flags.drain_s:g}", *flags.extra)


def trial(common: Common, words: Sequence[str], settings: Path | None) -> tuple[str, ...]:
    """A command with which the program sees whether a daemon's flags are right, and ends: with 0, or 2 and what is
    wrong. ``settings`` is its settings file, None where there is none to read. Folders to read from are left to us:
    they are the daemon's user's to see, not this one's."""
    config = Path(os.devnull) if settings is None else settings
    environment = (f"{name}={value}" for name, value in {**_environment(common, ""), "HOME": "/nonexistent"}.items())
    kept = _without("--read-from", words)
    return ("/usr/bin/env", "-i", *environment, str(common.program), "--config", str(config), *kept, "--check")


def scheduler_plan(common: Common, secret: str | None = None, extra: tuple[str, ...] = ()) -> Plan:
    """The daemon of a pool's scheduler. ``secret`` is what it signs webhooks with, None keeps that of the settings
    file; ``extra`` goes to the scheduler.

    Raises:
        RefusedError: something does not fit.
    """
    check_plain(extra, "scheduler flag")
    _check_extra(extra, _SCHEDULER_FLAGS, "scheduler")
    if _names("--webhook-secret", extra):
        raise RefusedError("--webhook-secret after `--` could be read by everybody: give --webhook-secret-file FILE")
    for folder in read_folders(extra):
        check_program(folder, "--read-from")
        if common.init == "systemd" and any(folder.is_relative_to(private) for private in _PRIVATE):
            raise RefusedError(f"--read-from {folder}: a daemon of systemd has its own /tmp; use /srv/promptmill, say")
    service = Service(
        label=common.label,
        about="promptmill scheduler",
        command=(*_program(common), "scheduler", *extra),
        account=common.account,
        environment=_environment(common, "SCHEDULER"),
        stop_s=SCHEDULER_STOP_S,
        reads_homes=True,
    )
    return _plan(common, service, {} if secret is None else {_SECRET: secret})


def read_folders(extra: Sequence[str]) -> tuple[Path, ...]:
    """The folders that a scheduler's flags let it read files from."""
    return tuple(map(Path, _values_of("--read-from", extra)))


def _check_worker(common: Common, flags: WorkerFlags) -> None:
    for model in flags.models:
        check_model(model)
    check_plain([*flags.extra, *([flags.name] if flags.name is not None else [])], "worker flag")
    _check_extra(flags.extra, _OWN_FLAGS, "worker")
    for name in _ENDING_FLAGS:
        if _names(name, flags.extra):
            raise RefusedError(f"{name} after `--`: such a worker ends by itself, and a daemon is for one that stays")
    for spool in _values_of("--spool", flags.extra):
        check_program(Path(spool), "--spool")
    own_limits = [parse_size(text) for text in _values_of("--wired-limit", flags.extra)]
    if flags.wired_mib is not None and any(limit > flags.wired_mib * 2**20 for limit in own_limits):
        raise RefusedError(
            "--wired-limit after `--` is the worker's own, and more than what macOS is told to give: lower it"
        )
    if (flags.wired_mib is not None or flags.power) and common.init != "launchd":
        raise RefusedError("--wired-limit and --power are settings of macOS: leave them out, or use --init launchd")


def _check_extra(extra: Sequence[str], own: Sequence[str], kind: str) -> None:
    """What follows `--` is neither `deploy`'s own nor against what the daemon is made for."""
    for name in own:
        if _names(name, extra):
            raise RefusedError(f"{name} after `--`: give it to `promptmill deploy {kind}` itself, before `--`")
    for name in _SAYING_FLAGS:
        if _names(name, extra):
            raise RefusedError(f"{name} after `--`: such a {kind} ends at once, and a daemon is for one that stays")
    if _names("--log-file", extra):
        raise RefusedError(
            "--log-file after `--`: a daemon's log is where it is rotated, /var/log/LABEL on a Mac and the journal on "
            "Linux; leave it out"
        )


def _names(flag: str, words: Sequence[str]) -> bool:
    return any(word.partition("=")[0] == flag for word in words)


def _values_of(flag: str, words: Sequence[str]) -> list[str]:
    """What a flag is given on a command line, as ``--flag value`` or ``--flag=value``, each time."""
    values = []
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == flag:
            values.append(value if equals else "".join(words[number + 1 : number + 2]))
    return values


def _without(flag: str, words: Sequence[str]) -> list[str]:
    """A command line without a flag and its values."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == flag:
            next(rest, None)
        elif not word.startswith(f"{flag}="):
            kept.append(word)
    return kept


def _writable(home: Path, flags: WorkerFlags) -> tuple[Path, ...]:
    """The folders outside its home that a worker writes to."""
    asked = (flags.hf_home, *map(Path, _values_of("--spool", flags.extra)))
    return tuple(dict.fromkeys(path for path in asked if not path.is_relative_to(home)))


def settings_place(common: Common) -> Path:
    return ETC / f"{common.label}.toml"


def settings_file(common: Common, values: Mapping[Key, str] = MappingProxyType({})) -> File:
    """The settings that hold the URL with its password, and ``values``: for the service's user alone. What else is in
    the file stays."""
    path = settings_place(common)
    account = common.account
    given = dict(values)
    if common.url is not None:
        given = {("", "redis"): _url(common.url, common.authority), **given}
    shown = _shown(common, given)
    if not given:
        return File(path, "", 0o600, account.user, account.group, shown=shown, kept=True)
    text = changed(path, common.existing or "", given)
    return File(path, text, 0o600, account.user, account.group, shown=shown)


def _url(url: str, authority: str | None) -> str:
    """The URL as it is written: one of a server with an authority of its own names that."""
    if authority is None or "ssl_ca_certs" in url:
        return url
    if not url.startswith("rediss://"):
        raise RefusedError(f"--ca is for a server with TLS, and {redacted(url)} is none: write rediss://")
    return f"{url}{'&' if '?' in url else '?'}ssl_ca_certs={quote(str(CA_FILE))}"


def _shown(common: Common, given: Mapping[Key, str]) -> str:
    """The settings file as people see it: nothing secret of it, of what is kept only the names."""
    safe = {key: redacted(value) if key == ("", "redis") else "***" for key, value in given.items()}
    text = changed(Path("settings"), "", safe)
    named = {f"{table}.{key}" if table else key for table, key in given}
    kept = [name for name in settings_of(common.existing) if name not in named]
    if common.url is None and common.existing is None:
        kept.append("redis")
    return text.lstrip("\n") + (f"# kept as it is: {', '.join(kept)}\n" if kept else "")


def service_files(init: str, service: Service) -> tuple[tuple[Folder, ...], tuple[File, ...], tuple[Step, ...]]:
    """Folders, files and commands of a service on either system."""
    account, root = service.account, root_group(init)
    folders = [Folder(ETC, 0o755, "root", root)]
    usual = default_home(init, "x").parent
    if account.home.parent == usual:
        folders.append(Folder(usual, 0o755, "root", root))
    # The user's alone: its group may have other members.
    folders += [Folder(path, 0o700, account.user, account.group) for path in (account.home, *service.writable)]
    if init == "systemd":
        return tuple(folders), (systemd.unit(service),), systemd.start(service.label, service.stop_s)
    folders.append(launchd.log_folder(service.label))
    files = (*launchd.log_files(service), launchd.daemon(service), launchd.newsyslog(service))
    return tuple(folders), files, launchd.start(service.label, service.stop_s)


def _plan(common: Common, service: Service, values: Mapping[Key, str] = MappingProxyType({})) -> Plan:
    folders, files, start = service_files(common.init, service)
    authority: tuple[File, ...] = ()
    left = [f"{common.account.home} (models, spool)", f"user {common.account.user}"]
    left += [str(path) for path in service.writable]
    if common.authority is not None:
        authority = (File(CA_FILE, common.authority, 0o644, "root", root_group(common.init), left=True),)
        left.append(str(CA_FILE))
    if common.init == "launchd":
        left.append(str(launchd.log_file(common.label).parent))
        log = f"log: tail -f {launchd.log_file(common.label)}, and .err beside it for what is said before it is open"
    else:
        log = f"log: journalctl -fu {common.label}"
    return Plan(
        label=common.label,
        init=common.init,
        folders=folders,
        files=(settings_file(common, values), *authority, *files),
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
    return str(common.program), "--config", str(settings_place(common))


def _environment(common: Common, command: str) -> dict[str, str]:
    home = common.account.home
    environment = {
        "HOME": str(home),
        "PATH": f"{common.program.parent}:{_PATH}",
        "PROMPTMILL_DATA_DIR": str(home / "data"),
    }
    if common.init == "launchd" and command:
        environment[f"PROMPTMILL_{command}_LOG_FILE"] = str(launchd.log_file(common.label))
    return environment


def _fetching(common: Common, flags: WorkerFlags) -> Sequence[str]:
    """How the models of the Hub are fetched before the first batch needs them."""
    tool = common.program.with_name("hf")
    # In a folder that the user may be in: the administrator's own home is none.
    user = ["sudo", "-u", common.account.user, "env", f"HOME={common.account.home}", f"HF_HOME={flags.hf_home}"]
    notes = []
    for model in flags.models:
        if not model.startswith("/"):
            name, _, revision = model.partition("@")
            words = [*user, str(tool), "download", name, *(["--revision", revision] if revision else [])]
            notes.append(f"fetch {model} after --install --no-start: cd / && {shlex.join(words)}")
    return notes
