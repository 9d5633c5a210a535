"""Doing what a plan says, showing it, and undoing it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import msgspec

from deploy.host import Host
from deploy.init import launchd, systemd
from deploy.plan import ETC, Plan, PlanStep, root_file
from deploy.settings import settings_in
from jobs.errors import RefusedError

T = TypeVar("T")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Record:
    """What an installation wrote, kept beside its settings for the next one and for the uninstallation: also the
    commands that ``undo`` what it set, and those that bring back the ``power`` settings of before the first one."""

    init: str
    files: tuple[str, ...]
    daemons: tuple[str, ...]
    left: tuple[str, ...]
    undo: tuple[tuple[str, ...], ...] = ()
    power: tuple[str, ...] = ()


def record_file(label: str) -> Path:
    return ETC / f"{label}.json"


def show(plan: Plan) -> list[str]:
    """The whole plan, as a person reads it: nothing secret is in it."""
    lines = []
    for folder in plan.folders:
        lines.append(f"folder {folder.path}  {folder.mode:04o} {folder.owner}:{folder.group}")
    for file in plan.files:
        kept = "  (kept as it is)" if file.kept else "  (made empty if it is missing)" if file.once else ""
        lines += ["", f"file {file.path}  {file.mode:04o} {file.owner}:{file.group}{kept}"]
        text = file.text if file.shown is None else file.shown
        lines += [f"    {line}".rstrip() for line in text.splitlines()]
    steps = [*plan.users, *plan.start]
    if steps:
        lines += ["", "commands"]
        lines += [f"    {step.shown}" for step in steps]
    if plan.notes:
        lines += ["", "notes"]
        lines += [f"    {note}" for note in plan.notes]
    return lines


def install(plan: Plan, host: Host, say: Say) -> None:
    """Write and start all of a plan. What an earlier installation of the same label wrote and this one does not have
    is removed.

    Raises:
        RefusedError, DeployError: it cannot be done; run again, it goes on.
    """
    _check_machine(host, plan.init)
    for folder in plan.folders:
        host.check_disk(folder.path)
    before = _read_record(host, plan.label) or Record(plan.init, (), (), ())
    files = tuple(str(file.path) for file in plan.files if not file.left)
    power = before.power or (launchd.former_power(host.output(launchd.POWER_NOW)) if plan.power else ())
    record = Record(plan.init, files, _daemons(plan), _joined(plan.left, before.left), plan.undo, power)
    _run(plan.users, host, say)
    files, daemons = _joined(files, before.files), _joined(record.daemons, before.daemons)
    both = replace(record, files=files, daemons=daemons, undo=_joined(record.undo, before.undo))
    _write_record(host, plan, both)  # what is there until one has replaced the other
    for folder in plan.folders:
        if host.make_folder(folder):
            say(f"made {host.at(folder.path)}")
    for file in plan.files:
        kept = file.kept or (file.once and host.exists(file.path))
        (host.keep if kept else host.write)(file)
        say(f"{'kept' if kept else 'wrote'} {host.at(file.path)}")
    _run(_stop(before.init, [name for name in before.daemons if name not in record.daemons]), host, say)
    _remove([path for path in before.files if path not in record.files], host, say)
    _undo([command for command in before.undo if command not in record.undo], host, say)
    _write_record(host, plan, record)
    _run(plan.start, host, say)
    for command in host.not_run:
        say(f"not run: {command}")
    for note in plan.notes:
        say(f"note: {note}")


def uninstall(label: str, host: Host, say: Say) -> None:
    """End the services of a label, remove what its installation wrote, and say what is left.

    Raises:
        RefusedError: nothing of this label is installed.
        DeployError: a service does not end, or a file cannot be removed.
    """
    record = _installed(host, label)
    _check_machine(host, record.init)
    _run(_stop(record.init, record.daemons), host, say)
    _remove(record.files, host, say)
    _undo(record.undo, host, say)
    _remove([str(record_file(label))], host, say)
    if record.init == "systemd":
        _run(systemd.stopped(), host, say)
    host.remove_empty(ETC)
    for command in host.not_run:
        say(f"not run: {command}")
    for text in record.left:
        say(f"left: {text}")
    for command in record.power:
        say(f"the power settings of before: {command}")


def removal(label: str, host: Host) -> list[str]:
    """What an uninstallation would do, as a person reads it; nothing is changed.

    Raises:
        RefusedError: nothing of this label is installed.
    """
    record = _installed(host, label)
    steps = _stop(record.init, record.daemons)
    steps += [PlanStep(command, may_fail=True) for command in record.undo]
    steps += systemd.stopped() if record.init == "systemd" else ()
    lines = [f"would run {step.shown}" for step in steps]
    for path in map(Path, (*record.files, str(record_file(label)))):
        if host.exists(path):
            lines.append(f"would remove {host.at(path)}{_contents(host, path)}")
    lines += [f"would leave {text}" for text in record.left]
    return lines


def _installed(host: Host, label: str) -> Record:
    record = _read_record(host, label)
    if record is None:
        raise RefusedError(
            f"nothing is installed under the label {label} (there is no {host.at(record_file(label))}): "
            "give its --label, or the --root of its installation"
        )
    return record


def _check_machine(host: Host, init: str) -> None:
    if host.root is not None:
        return
    if init == "launchd" and host.platform != "darwin":
        raise RefusedError(
            "launchd is macOS's, and this is another machine: show the files with --dry-run, write them into a folder "
            "with --install --root DIR, or install here with --init systemd"
        )
    if init == "systemd" and not host.platform.startswith("linux"):
        raise RefusedError(
            "systemd is Linux's, and this is another machine: use --init launchd, --dry-run or --root DIR"
        )
    if not host.is_root:
        raise RefusedError("this writes to the system's folders: run it with sudo, or into a folder with --root DIR")


def _run(steps: Iterable[PlanStep], host: Host, say: Say) -> None:
    for step in steps:
        host.run(step, say)


def _undo(commands: Iterable[tuple[str, ...]], host: Host, say: Say) -> None:
    """Take back what was set besides files."""
    for command in commands:
        host.run(PlanStep(command, may_fail=True), say)
        if host.root is None:
            say(f"ran {shlex.join(command)}")


def _daemons(plan: Plan) -> tuple[str, ...]:
    """The names of a plan's services, by their files; of what a timer starts the timer's."""
    folder, suffix = (launchd.DAEMONS, ".plist") if plan.init == "launchd" else (systemd.UNITS, ".service")
    names = [file.path.name.removesuffix(suffix) for file in plan.files if file.path.parent == folder]
    return tuple(name for name in names if f"{name}.timer" not in names)


def _stop(init: str, daemons: Iterable[str]) -> list[PlanStep]:
    """Commands that end these services."""
    return [step for name in daemons for step in (launchd if init == "launchd" else systemd).stop(name)]


def _remove(paths: Sequence[str], host: Host, say: Say) -> None:
    for path in paths:
        contents = _contents(host, Path(path))
        if host.remove(Path(path)):
            say(f"removed {host.at(Path(path))}{contents}")


def _contents(host: Host, path: Path) -> str:
    """What goes with a settings file, by name."""
    kept = settings_in(host.read(path)) if path.suffix == ".toml" else ()
    return f" (with {', '.join(kept)})" if kept else ""


def _joined(these: tuple[T, ...], those: tuple[T, ...]) -> tuple[T, ...]:
    """All of both, each once."""
    return tuple(dict.fromkeys(these + those))


def _write_record(host: Host, plan: Plan, record: Record) -> None:
    host.write(root_file(plan.init, record_file(plan.label), json.dumps(asdict(record), indent=1) + "\n"))


def _read_record(host: Host, label: str) -> Record | None:
    text = host.read(record_file(label))
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=Record)
    except msgspec.DecodeError:
        raise RefusedError(
            f"{host.at(record_file(label))} is damaged: remove it, install again, and uninstall if that is meant"
        ) from None
