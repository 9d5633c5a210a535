"""The facts of the machine at hand, gathered once; the checks are made of them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from deploy.doctor.mac import Mac, ask_mac

__all__ = ["WORKER_PACKAGES", "Host", "Package", "ask_host", "bounds"]

WORKER_PACKAGES = ("mlx", "mlx-lm")


@dataclass(frozen=True, slots=True)
class Package:
    """A distribution that a worker needs: the version installed here, and the versions promptmill takes."""

    installed: str | None
    wanted: str


@dataclass(frozen=True, slots=True)
class Host:
    """This machine and the Python that runs; ``memory`` is in bytes, and ``mac`` None elsewhere than on macOS."""

    system: str
    architecture: str
    python: tuple[int, int, int]
    memory: int | None
    mac: Mac | None = None
    packages: Mapping[str, Package] = field(default_factory=dict)

    @property
    def runs_workers(self) -> bool:
        """Whether the worker package's engine is installed here."""
        return all(package.installed is not None for package in self.packages.values())


def ask_host() -> Host:
    """The facts, without importing MLX."""
    mac = ask_mac() if sys.platform == "darwin" else None
    wanted = bounds(_requirements(), sys.platform)
    return Host(
        system=platform.system(),
        architecture=platform.machine(),
        python=sys.version_info[:3],
        memory=mac.memory if mac is not None else _memory(),
        mac=mac,
        packages={name: Package(_installed(name), wanted.get(name, "")) for name in WORKER_PACKAGES},
    )


def bounds(requirements: Iterable[str], system: str) -> dict[str, str]:
    """Of promptmill's requirements those of workers on ``system`` (as in ``sys.platform``): name -> versions."""
    found = {}
    for requirement in requirements:
        match = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?\s*([^;]*?)\s*(?:;\s*(.*))?$", requirement)
        if match is None or "worker" not in (match[3] or ""):
            continue
        platforms = re.findall(r"sys_platform == [\"'](\w+)[\"']", match[3])
        if not platforms or system in platforms:
            found[match[1].lower()] = match[2]
    return found


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires("promptmill") or []
    except importlib.metadata.PackageNotFoundError:  # run from its source, not installed
        return []


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
