"""What an installation consists of: folders, files, commands, and what a person should know besides."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template

ETC = Path("/etc/promptmill")
"""Settings, certificates and the records of installations, on every kind of machine."""
_STARTING = {("launchctl", "bootstrap"), ("systemctl", "restart")}


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that is there after an installation; one that exists has to be its owner's."""

    path: Path
    mode: int
    owner: str
    group: str


@dataclass(frozen=True, slots=True)
class File:
    """A file as it is written, whole. ``shown`` is what people see of it in its place, where it holds a secret. One
    that is ``kept`` is there already and stays as it is, but for its mode and owner, and so does one that is made
    ``once`` where it is there; one that is ``left`` stays when all is uninstalled."""

    path: Path
    text: str
    mode: int
    owner: str
    group: str
    shown: str | None = None
    kept: bool = False
    once: bool = False
    left: bool = False


@dataclass(frozen=True, slots=True)
class PlanStep:
    """A command. One that ``may_fail`` stops nothing when it does. ``until_works_s`` repeats it for so many seconds
    until it works; ``until_fails_s`` until it fails, which is how launchd says that a service is gone. ``waits`` is
    shown meanwhile, ``remedy`` where it fails."""

    command: tuple[str, ...]
    may_fail: bool = False
    until_works_s: float = 0.0
    until_fails_s: float | None = None
    waits: str = ""
    remedy: str = ""

    @property
    def shown(self) -> str:
        """The command as a person would type it."""
        text = shlex.join(self.command)
        if self.until_fails_s is not None:
            return f"while {text} >/dev/null 2>&1; do sleep 1; done"
        return f"{text} || true" if self.may_fail else text


@dataclass(frozen=True, slots=True)
class Plan:
    """An installation, or a unit of one, in the order in which it happens: ``users``, folders, files, ``start``.

    ``undo`` are commands for when it is uninstalled, or installed anew without what they undo; ``power`` says that it
    changes a Mac's power settings, so that the former ones are noted. ``left`` says what an uninstallation leaves;
    ``notes`` what a person should read.
    """

    label: str
    init: str
    folders: tuple[Folder, ...] = ()
    files: tuple[File, ...] = ()
    users: tuple[PlanStep, ...] = ()
    start: tuple[PlanStep, ...] = ()
    undo: tuple[tuple[str, ...], ...] = ()
    power: bool = False
    left: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def not_started(self) -> Plan:
        """The same, but its services stay stopped until the machine starts or they are installed again."""
        return replace(self, start=tuple(step for step in self.start if step.command[:2] not in _STARTING))


def root_group(init: str) -> str:
    """The group of files that are root's."""
    return "wheel" if init == "launchd" else "root"


def root_file(init: str, path: Path, text: str, mode: int = 0o644) -> File:
    """A file of root's, which everybody may read."""
    return File(path, text, mode, "root", root_group(init))


def shipped(name: str) -> str:
    """The text of a file that comes with this package, by its path in it."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def rendered(name: str, **values: object) -> str:
    """A template of ``deploy/templates`` with its ``$names`` replaced."""
    return Template(shipped(f"templates/{name}.template")).substitute(values)
