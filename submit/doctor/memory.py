"""Checks of memory: whether the models fit, and the limit that macOS sets to what a GPU may keep wired."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from submit.doctor.device import Device
from submit.doctor.finding import Finding, failed, good, skipped, unsure
from submit.doctor.host import Host
from submit.doctor.machine import NOT_A_MAC
from submit.doctor.models import ModelFiles
from submit.text import size

__all__ = ["check_memory", "check_wired_limit"]

WORKERS_PART = 0.9
"""A worker takes so much of what the device recommends; see its ``--memory-limit``."""
FULL = 0.7
"""Past this the models leave too little for the caches of many lines."""
MACOS_PART, MACOS_LEAST = 0.1, 4 * 2**30
"""What is to be left to macOS itself: a tenth, and four GiB at least."""
MIB = 2**20


def check_memory(host: Host, device: Device, models: Sequence[ModelFiles]) -> Iterator[Finding]:
    """Each model whose size is known against what a worker may use here, and all of them together."""
    known = [model for model in models if model.weights and model.problem is None]
    limit = device.recommended or host.memory
    if not limit or not known:
        why = "give --model to see whether it fits" if not models else "no model's size is known"
        shown = f"{size(limit)} for models; " if limit else ""
        yield skipped("memory", f"{shown}{why}")
        return
    budget = int(limit * WORKERS_PART)
    for model in known:
        yield _one(f"memory {model.name}", host, model.weights, budget)
    together = sum(model.weights for model in known)
    if together > budget >= max(model.weights for model in known):
        reason = f"{size(together)} of weights do not fit into {size(budget)}, so that these models take turns"
        yield unsure("memory together", reason, "serve some of them on another Mac, where that is too slow")


def _one(name: str, host: Host, weights: int, budget: int) -> Finding:
    may = f"{size(budget)} that a worker may use"
    share = weights / budget
    if share <= FULL:
        return good(name, f"{size(weights)} of the {may}")
    if share <= 1:
        reason = f"{size(weights)} of the {may}: what is left for caches is little, and few lines run at once"
        return unsure(name, reason, _remedy(host, weights, budget))
    return failed(name, f"{size(weights)} do not fit into the {may}", _remedy(host, weights, budget))


def _remedy(host: Host, weights: int, budget: int) -> str:
    """Raise the limit of wired memory where that is enough, else another model."""
    smaller = "take a model of fewer bits (`mlx_lm.convert -q`), or a Mac with more memory"
    if host.mac is None or host.memory is None:
        return smaller
    most = host.memory - max(MACOS_LEAST, int(host.memory * MACOS_PART))
    wanted = min(int(weights / FULL / WORKERS_PART), most)
    if wanted * WORKERS_PART < max(weights, budget * 1.05):
        return smaller
    return f"sudo sysctl iogpu.wired_limit_mb={wanted // MIB} (until the next start); or {smaller}"


def check_wired_limit(host: Host) -> Finding:
    """What a GPU may keep wired: macOS chooses it, or somebody has set it since the last start."""
    name = "wired limit"
    if host.mac is None:
        return skipped(name, NOT_A_MAC)
    limit = host.mac.wired_limit_mb
    if limit is None or host.memory is None:
        return skipped(name, "`sysctl iogpu.wired_limit_mb` did not say")
    if limit == 0:
        return good(name, f"macOS's own, for {size(host.memory)} of memory")
    left = host.memory - limit * MIB
    if left < min(MACOS_LEAST, host.memory * MACOS_PART):
        reason = f"iogpu.wired_limit_mb is {limit}, which leaves macOS {size(max(left, 0))}: it may freeze or panic"
        most = host.memory - max(MACOS_LEAST, int(host.memory * MACOS_PART))
        return unsure(name, reason, f"sudo sysctl iogpu.wired_limit_mb={max(most, 0) // MIB}")
    return good(name, f"iogpu.wired_limit_mb is {limit} until the next start; {size(left)} are left to macOS")
