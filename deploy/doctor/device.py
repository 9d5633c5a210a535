"""Whether MLX works here: a small product on its device, computed by a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from deploy.doctor.finding import Finding, failed, good, unsure
from deploy.doctor.host import Host
from submit.status.text import size

__all__ = ["Device", "ask_device", "check_device"]

TIMEOUT_S = 20.0
"""The first use of Metal after a start of the machine may take seconds."""
SIZE = 64
SCRIPT = f"""
import json
import mlx.core as mx
ones = mx.ones(({SIZE}, {SIZE}))
total = (ones @ ones).sum().item()
info = {{key: value for key, value in mx.device_info().items() if isinstance(value, (int, str))}}
print(json.dumps({{"device": str(mx.default_device()), "total": total, "info": info}}))
"""


@dataclass(frozen=True, slots=True)
class Device:
    """What MLX says of its device; ``error`` where it does not work. ``recommended`` are the bytes that the device
    says a process should use at most: None where it recommends nothing."""

    name: str = ""
    gpu: bool = False
    recommended: int | None = None
    error: str | None = None


def ask_device(command: Sequence[str] | None = None, timeout_s: float = TIMEOUT_S) -> Device:
    """Have the device tried, by MLX's own means, within so many seconds."""
    # -P: a folder named mlx in the current directory must not be taken for it.
    arguments = command or [sys.executable, "-P", "-c", SCRIPT]
    try:
        done = subprocess.run(
            arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return Device(error=f"no answer within {timeout_s:g} s")
    except OSError as error:
        return Device(error=f"{arguments[0]}: {error.strerror}")
    return _device(done.stdout) if done.returncode == 0 else Device(error=_last_line(done.stderr, done.returncode))


def _device(out: str) -> Device:
    try:
        said: dict[str, Any] = orjson.loads(out)
        info, total = said["info"], said["total"]
        name = str(info.get("device_name") or said["device"])
        recommended = info.get("max_recommended_working_set_size")
        gpu = "gpu" in said["device"]
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
        return Device(error=f"it answered {out.strip()[:200]!r}")
    if total != SIZE**3:
        return Device(error=f"{name} computed {total} where {SIZE**3} is right")
    return Device(name, gpu, recommended if isinstance(recommended, int) and recommended > 0 else None)


def _last_line(err: str, status: int) -> str:
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    ended = f"ended by signal {-status}" if status < 0 else f"ended with status {status}"
    return lines[-1][:300] if lines else ended


def check_device(host: Host, device: Device) -> Finding:
    """MLX computes, and on a Mac it does so on the GPU."""
    if device.error is not None:
        remedy = "pip install --force-reinstall 'promptmill[worker]'; where that does not help, restart the machine"
        return failed("device", f"MLX does not work: {device.error}", remedy)
    if host.mac is not None and not device.gpu:
        remedy = "install MLX from its wheel for macOS: pip install --force-reinstall mlx"
        return unsure("device", f"MLX computes on the CPU ({device.name}), not on the GPU", remedy)
    most = f", and recommends to use up to {size(device.recommended)}" if device.recommended else ""
    return good("device", f"{device.name}: MLX computes on its {'GPU' if device.gpu else 'CPU'}{most}")
