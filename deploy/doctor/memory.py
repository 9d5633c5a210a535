"""Checks of memory: whether the models fit, and the limit that macOS sets to what a GPU may keep wired."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deploy.doctor.device import Device
from deploy.doctor.finding import Finding, failed, good, skipped, unsure
from deploy.doctor.mac import NOT_A_MAC
from deploy.doctor.machine import Machine
from deploy.doctor.models import ModelFiles
from deploy.gpu_limit import DAEMON_SUFFIX, LIMIT, least_left, most_wired
from submit.status.text import size

__all__ = ["check_memory", "check_wired_limit"]

WORKERS_PART = 0.9
"""A worker takes so much of what the device recommends; see its ``--memory-limit``."""
FULL = 0.7
"""Past this the models leave too little for the caches of many lines."""
MIB = 2**20


def check_memory(machine: Machine, device: Device, models: Sequence[ModelFiles]) -> Iterator[Finding]:
    """Each model whose size is known against what a worker may use here, and all of them together."""
    known = [model for model in models if model.weights and model.problem is None]
    limit = device.recommended or machine.memory
    if not limit or not known:
        why = "give --model to see whether it fits" if not models else "no model's size is known"
        shown = f"{size(limit)} for models; " if limit else ""
        yield skipped("memory", f"{shown}{why}")
        return
    budget = int(limit * WORKERS_PART)
    for model in known:
        yield _one(f"memory {model.name}", machine, model.weights, budget)
    together = sum(model.weights for model in known)
    if together > budget >= max(model.weights for model in known):
        reason = f"{size(together)} of weights do not fit into {size(budget)}, so that these models take turns"
        yield unsure("memory together", reason, "serve some of them on another Mac, where that is too slow")


def _one(name: str, machine: Machine, weights: int, budget: int) -> Finding:
    may = f"{size(budget)} that a worker may use"
    share = weights / budget
    if share <= FULL:
        return good(name, f"{size(weights)} of the {may}")
    if share <= 1:
        reason = f"{size(weights)} of the {may}: what is left for caches is little, and few lines run at once"
        return unsure(name, reason, _remedy(machine, weights, budget))
    return failed(name, f"{size(weights)} do not fit into the {may}", _remedy(machine, weights, budget))


def _remedy(machine: Machine, weights: int, budget: int) -> str:
    """Raise the limit of wired memory where that is enough, else another model."""
    smaller = "take a model of fewer bits (`mlx_lm.convert -q`), or a Mac with more memory"
    if machine.mac is None or machine.memory is None:
        return smaller
    most = most_wired(machine.memory)
    wanted = min(int(weights / FULL / WORKERS_PART), most or 0)
    if wanted * WORKERS_PART < max(weights, budget * 1.05):
        return smaller
    limit = wanted // MIB
    return (
        f"sudo sysctl {LIMIT}={limit} until the next start, or --wired-limit {limit}M of `promptmill deploy worker` "
        f"for good; or {smaller}"
    )


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
