"""Doing what a plan says, showing it, and undoing it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deploy.host import Host
from deploy.init import launchd, systemd
from deploy.init.service import root_group
from deploy.plan import ETC, File, Plan, Step
from deploy.settings import settings_of
from jobs.errors import RefusedError

__all__ = ["Record", "install", "record_file", "removal", "show", "uninstall"]

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

    def with_those_of(self, other: Record | None) -> Record:
        """The same, with the files and daemons of an earlier one: what is there while it is replaced."""
        if other is None:
            return self
        files, daemons = dict.fromkeys(self.files + other.files), dict.fromkeys(self.daemons + other.daemons)
        undo = tuple(dict.fromkeys(self.undo + other.undo))
        return replace(self, files=tuple(files), daemons=tuple(daemons), undo=undo, left=self.all_left(other))

    def all_left(self, other: Record | None) -> tuple[str, ...]:
        """What this one and an earlier one leave."""
        return self.left if other is None else tuple(dict.fromkeys(self.left + other.left))


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
        lines += [f"    {_command(step)}" for step in steps]
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
    before = _read_record(host, plan.label)
    record = Record(
        plan.init,
        tuple(str(file.path) for file in plan.files if not file.left),
        _daemons(plan),
        plan.left,
        plan.undo,
        _former_power(plan, before, host),
    )
    skipped = _run(plan.users, host, say)
    _write_record(host, plan, record.with_those_of(before))
    for folder in plan.folders:
        if host.make_folder(folder):
            say(f"made {host.at(folder.path)}")
    for file in plan.files:
        kept = file.kept or (file.once and host.exists(file.path))
        if kept:
            host.keep(file)
        else:
            host.write(file)
        say(f"{'kept' if kept else 'wrote'} {host.at(file.path)}")
    if before is not None:
        gone = [name for name in before.daemons if name not in record.daemons]
        skipped += _run([step for name in gone for step in _stop(before.init, name)], host, say)
        _remove([path for path in before.files if path not in record.files], host, say)
        skipped += _undo([command for command in before.undo if command not in record.undo], host, say)
    _write_record(host, plan, replace(record, left=record.all_left(before)))
    skipped += _run(plan.start, host, say)
    for command in skipped:
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
    skipped = _run([step for name in record.daemons for step in _stop(record.init, name)], host, say)
    _remove(record.files, host, say)
    skipped += _undo(record.undo, host, say)
    _remove([str(record_file(label))], host, say)
    if record.init == "systemd":
        skipped += _run(systemd.stopped(), host, say)
    host.remove_empty(ETC)
    for command in skipped:
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
    steps = [step for name in record.daemons for step in _stop(record.init, name)]
    steps += [Step(command, may_fail=True) for command in record.undo]
    steps += systemd.stopped() if record.init == "systemd" else ()
    lines = [f"would run {_command(step)}" for step in steps]
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


def _run(steps: Iterable[Step], host: Host, say: Say) -> list[str]:
    """Run commands; those that were left out, because a folder stands for the machine."""
    skipped = []
    for step in steps:
        if host.root is None:
            host.run(step, say)
        else:
            skipped.append(_command(step))
    return skipped


def _undo(commands: Iterable[tuple[str, ...]], host: Host, say: Say) -> list[str]:
    """Take back what was set besides files; those left out, as above."""
    skipped = []
    for command in commands:
        skipped += _run([Step(command, may_fail=True)], host, say)
        if host.root is None:
            say(f"ran {shlex.join(command)}")
    return skipped


def _former_power(plan: Plan, before: Record | None, host: Host) -> tuple[str, ...]:
    """Commands for the power settings as they were before any installation of this label changed them."""
    if before is not None and before.power:
        return before.power
    return launchd.former_power(host.output(launchd.POWER_NOW)) if plan.power else ()


def _command(step: Step) -> str:
    text = shlex.join(step.command)
    if step.until_fails_s is not None:
        return f"while {text} >/dev/null 2>&1; do sleep 1; done"
    return f"{text} || true" if step.may_fail else text


def _daemons(plan: Plan) -> tuple[str, ...]:
    """The names of a plan's services, by their files; of what a timer starts the timer's."""
    folder, suffix = (launchd.DAEMONS, ".plist") if plan.init == "launchd" else (systemd.UNITS, ".service")
    names = [file.path.name.removesuffix(suffix) for file in plan.files if file.path.parent == folder]
    return tuple(name for name in names if f"{name}.timer" not in names)


def _stop(init: str, name: str) -> Sequence[Step]:
    # The limit that the service itself has is in its file; no service of ours has more than an hour to end.
    return launchd.stop(name, 3600) if init == "launchd" else systemd.stop(name)


def _remove(paths: Sequence[str], host: Host, say: Say) -> None:
    for path in paths:
        contents = _contents(host, Path(path))
        if host.remove(Path(path)):
            say(f"removed {host.at(Path(path))}{contents}")


def _contents(host: Host, path: Path) -> str:
    """What goes with a settings file, by name."""
    kept = settings_of(host.read(path)) if path.suffix == ".toml" else ()
    return f" (with {', '.join(kept)})" if kept else ""


def _write_record(host: Host, plan: Plan, record: Record) -> None:
    text = json.dumps(asdict(record), indent=1) + "\n"
    host.write(File(record_file(plan.label), text, 0o644, "root", root_group(plan.init)))


def _read_record(host: Host, label: str) -> Record | None:
    text = host.read(record_file(label))
    if text is None:
        return None
    try:
        found: dict[str, Any] = json.loads(text)
        return Record(
            str(found["init"]),
            tuple(map(str, found["files"])),
            tuple(map(str, found["daemons"])),
            tuple(map(str, found["left"])),
            tuple(tuple(map(str, command)) for command in found.get("undo", ())),
            tuple(map(str, found.get("power", ()))),
        )
    except (ValueError, KeyError, TypeError):
        raise RefusedError(
            f"{host.at(record_file(label))} is damaged: remove it, install again, and uninstall if that is meant"
        ) from None
