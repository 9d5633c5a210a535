"""The machine at hand and its Python: facts gathered once, whether MLX works here, and what its GPU may use."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from deploy.doctor.finding import Finding, failed, good, skipped, unsure
from deploy.doctor.mac import NOT_A_MAC, Mac, ask_mac
from deploy.gpu_limit import DAEMON_SUFFIX, LIMIT, least_left, most_wired
from deploy.host import Host, run_command
from submit.status.text import size

MIB = 2**20
WORKER_PACKAGES = ("mlx", "mlx-lm")
LEAST_MACOS = (14, 0)
NATIVE_PYTHON = (
    "install a native Python (`uv python install 3.12`, or Homebrew's in /opt/homebrew), and promptmill with it"
)
DEVICE_TIMEOUT_S = 20.0
"""The first use of Metal after a start of the machine may take seconds."""
SIDE = 64
SCRIPT = f"""
import json
import mlx.core as mx
ones = mx.ones(({SIDE}, {SIDE}))
total = (ones @ ones).sum().item()
info = {{key: value for key, value in mx.device_info().items() if isinstance(value, (int, str))}}
print(json.dumps({{"device": str(mx.default_device()), "total": total, "info": info}}))
"""


@dataclass(frozen=True, slots=True)
class Package:
    """A distribution that a worker needs: the version installed here, and the versions promptmill takes."""

    installed: str | None
    wanted: str


@dataclass(frozen=True, slots=True)
class Machine:
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


def ask_machine(host: Host) -> Machine:
    """The facts, without importing MLX."""
    mac = ask_mac(host) if host.platform == "darwin" else None
    try:
        wanted = bounds(importlib.metadata.requires("promptmill") or [], host.platform)
    except importlib.metadata.PackageNotFoundError:  # run from its source, not installed
        wanted = {}
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        python=sys.version_info[:3],
        memory=host.memory() if mac is None else mac.memory,
        mac=mac,
        packages={name: Package(_installed(name), wanted.get(name, "")) for name in WORKER_PACKAGES},
    )


def bounds(requirements: Iterable[str], system: str) -> dict[str, str]:
    """Of promptmill's requirements those of workers on ``system`` (as in ``sys.platform``): name -> versions."""
    environment = {"extra": "worker", "sys_platform": system}
    found = [made for made in map(Requirement, requirements) if made.marker and made.marker.evaluate(environment)]
    return {requirement.name.lower(): str(requirement.specifier) for requirement in found}


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_processor(machine: Machine) -> Finding:
    """MLX has Metal on Apple silicon only, and only for native processes."""
    name, mac, architecture = "processor", machine.mac, machine.architecture
    if mac is None:
        return skipped(name, f"{NOT_A_MAC}: on {machine.system} {architecture} MLX is for development")
    if mac.translated or (architecture != "arm64" and mac.apple_silicon):
        return failed(name, f"this Python runs under Rosetta ({architecture} on {mac.chip})", NATIVE_PYTHON)
    if architecture != "arm64":
        return failed(name, f"this Mac has an {mac.chip}, and MLX needs Apple silicon", "use it to submit only")
    return good(name, f"{mac.chip}, native arm64")


def check_macos(machine: Machine) -> Finding:
    """The oldest macOS that MLX is built for."""
    if machine.mac is None:
        return skipped("macOS", NOT_A_MAC)
    shown = ".".join(map(str, machine.mac.version))
    if not shown:
        return unsure("macOS", "its version is not known: `sw_vers` did not say", "see that it is 14.0 or later")
    if machine.mac.version < LEAST_MACOS:
        return failed("macOS", f"{shown}; MLX needs 14.0 or later", "System Settings > General > Software Update")
    return good("macOS", shown)


def check_python(machine: Machine) -> Finding:
    """Which Python this is; one that is too old for promptmill does not come so far."""
    return good("python", f"{'.'.join(map(str, machine.python))}, {machine.architecture}")


def check_package(name: str, package: Package) -> Finding:
    """A package that a worker needs, in one of the versions that promptmill was tested with."""
    remedy, installed = "pip install --upgrade 'promptmill[worker]'", package.installed
    if installed is None:
        return failed(name, "not installed", remedy)
    if not SpecifierSet(package.wanted).contains(installed, prereleases=True):
        return failed(name, f"{installed} is installed, and promptmill needs {package.wanted}", remedy)
    return good(name, installed)


@dataclass(frozen=True, slots=True)
class Device:
    """What MLX says of its device; ``error`` where it does not work. ``recommended`` are the bytes that the device
    says a process should use at most: None where it recommends nothing."""

    name: str = ""
    gpu: bool = False
    recommended: int | None = None
    error: str | None = None


def ask_device(command: Sequence[str] | None = None, timeout_s: float = DEVICE_TIMEOUT_S) -> Device:
    """Have the device tried, by MLX's own means, within so many seconds."""
    # -P: a folder named mlx in the current directory must not be taken for it.
    done = run_command(command or [sys.executable, "-P", "-c", SCRIPT], timeout_s)
    if done.returncode == 0:
        return _device(done.stdout)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    ended = f"ended by signal {-done.returncode}" if done.returncode < 0 else f"ended with status {done.returncode}"
    return Device(error=lines[-1][:300] if lines else ended)


def _device(out: str) -> Device:
    try:
        said: dict[str, Any] = orjson.loads(out)
        info, total = said["info"], said["total"]
        name = str(info.get("device_name") or said["device"])
        recommended = info.get("max_recommended_working_set_size")
        gpu = "gpu" in said["device"]
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
        return Device(error=f"it answered {out.strip()[:200]!r}")
    if total != SIDE**3:
        return Device(error=f"{name} computed {total} where {SIDE**3} is right")
    return Device(name, gpu, recommended if isinstance(recommended, int) and recommended > 0 else None)


def check_device(machine: Machine, device: Device) -> Finding:
    """MLX computes, and on a Mac it does so on the GPU."""
    if device.error is not None:
        remedy = "pip install --force-reinstall 'promptmill[worker]'; where that does not help, restart the machine"
        return failed("device", f"MLX does not work: {device.error}", remedy)
    if machine.mac is not None and not device.gpu:
        remedy = "install MLX from its wheel for macOS: pip install --force-reinstall mlx"
        return unsure("device", f"MLX computes on the CPU ({device.name}), not on the GPU", remedy)
    most = f", and recommends to use up to {size(device.recommended)}" if device.recommended else ""
    return good("device", f"{device.name}: MLX computes on its {'GPU' if device.gpu else 'CPU'}{most}")


def check_wired_limit(machine: Machine) -> Finding:
    """What a GPU may keep wired: macOS chooses it, somebody has set it since the last start, or a daemon sets it at
    each."""
    name = "wired limit"
    if machine.mac is None:
        return skipped(name, NOT_A_MAC)
    limit, at_boot = machine.mac.wired_limit_mb, machine.mac.wired_at_boot
    if limit is None or machine.memory is None:
        return skipped(name, f"`sysctl {LIMIT}` did not say")
    shown = f"{LIMIT} is {limit}" if limit else "macOS's own"
    if at_boot is not None and at_boot.limit_mb != limit:
        reason = f"{shown}, but the daemon {at_boot.label} sets {at_boot.limit_mb} at each start"
        again = f"sudo launchctl kickstart system/{at_boot.label}, then start the worker anew"
        return unsure(name, reason, f"{again}; or install it again with another --wired-limit")
    if limit == 0:
        return good(name, f"macOS's own, for {size(machine.memory)} of memory")
    left = max(machine.memory - limit * MIB, 0)
    if left < least_left(machine.memory):
        most = most_wired(machine.memory)
        less = most // MIB if most is not None else 0
        remedy = f"sudo sysctl {LIMIT}={less}" + ("" if less else " (macOS's own)")
        if at_boot is not None:
            kept = f"with --wired-limit {less}M" if less else "without --wired-limit"
            remedy += f", and install {at_boot.label.removesuffix(DAEMON_SUFFIX)} again {kept}, which sets it at boot"
        return unsure(name, f"{shown}, which leaves macOS {size(left)}: it may freeze or panic", remedy)
    how = (
        f", set by the daemon {at_boot.label} at each start"
        if at_boot is not None
        else " until the next start (--wired-limit of `promptmill deploy worker` sets it at each)"
    )
    return good(name, f"{shown}{how}; {size(left)} are left to macOS")
