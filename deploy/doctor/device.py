"""Whether MLX works here: a small product on its device, computed by a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from deploy.doctor.finding import Finding, failed, good, unsure
from deploy.doctor.machine import Machine
from deploy.host import run_command
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
    done = run_command(command or [sys.executable, "-P", "-c", SCRIPT], timeout_s)
    if done.status == 0:
        return _device(done.output)
    lines = [line.strip() for line in done.errors.splitlines() if line.strip()]
    ended = f"ended by signal {-done.status}" if done.status < 0 else f"ended with status {done.status}"
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
    if total != SIZE**3:
        return Device(error=f"{name} computed {total} where {SIZE**3} is right")
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
