"""Checks of the machine: what MLX needs of the processor, of macOS, of Python and of its own version."""

from __future__ import annotations

import operator
import re

from deploy.doctor.finding import Finding, failed, good, skipped, unsure
from deploy.doctor.host import Host, Package

__all__ = ["NOT_A_MAC", "check_macos", "check_package", "check_processor", "check_python"]

NOT_A_MAC = "not a Mac"
LEAST_MACOS = (14, 0)
LEAST_PYTHON = (3, 11)
NATIVE_PYTHON = (
    "install a native Python (`uv python install 3.12`, or Homebrew's in /opt/homebrew), and promptmill with it"
)
_COMPARE = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


def check_processor(host: Host) -> Finding:
    """MLX has Metal on Apple silicon only, and only for native processes."""
    name, mac = "processor", host.mac
    if mac is None:
        return skipped(name, f"{NOT_A_MAC}: on {host.system} {host.architecture} MLX is for development")
    if mac.translated or (host.architecture != "arm64" and mac.apple_silicon):
        return failed(name, f"this Python runs under Rosetta ({host.architecture} on {mac.chip})", NATIVE_PYTHON)
    if host.architecture != "arm64":
        return failed(name, f"this Mac has an {mac.chip}, and MLX needs Apple silicon", "use it to submit only")
    return good(name, f"{mac.chip}, native arm64")


def check_macos(host: Host) -> Finding:
    """The oldest macOS that MLX is built for."""
    if host.mac is None:
        return skipped("macOS", NOT_A_MAC)
    shown = ".".join(map(str, host.mac.version))
    if not shown:
        return unsure("macOS", "its version is not known: `sw_vers` did not say", "see that it is 14.0 or later")
    if host.mac.version < LEAST_MACOS:
        return failed("macOS", f"{shown}; MLX needs 14.0 or later", "System Settings > General > Software Update")
    return good("macOS", shown)


def check_python(host: Host) -> Finding:
    """The oldest Python that promptmill runs on."""
    shown = ".".join(map(str, host.python))
    if host.python < LEAST_PYTHON:
        return failed("python", f"{shown}; 3.11 or later is needed", NATIVE_PYTHON)
    return good("python", f"{shown}, {host.architecture}")


def check_package(name: str, package: Package) -> Finding:
    """A package that a worker needs, in one of the versions that promptmill was tested with."""
    remedy = "pip install --upgrade 'promptmill[worker]'"
    if package.installed is None:
        return failed(name, "not installed", remedy)
    if not _within(package.installed, package.wanted):
        return failed(name, f"{package.installed} is installed, and promptmill needs {package.wanted}", remedy)
    return good(name, package.installed)


def _within(version: str, wanted: str) -> bool:
    """Whether a version keeps plain bounds such as ``>=1.2,<2``; a part that is none of these decides nothing."""
    for bound in filter(None, wanted.split(",")):
        found = re.fullmatch(r"\s*(>=|<=|==|!=|>|<)\s*([\d.]+)\s*", bound)
        if found is not None and not _COMPARE[found[1]](_numbers(version), _numbers(found[2])):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with, for comparison: 1.2 and 1.2.0 are the same."""
    found = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in found[0].split(".")] if found else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
