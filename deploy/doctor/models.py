"""A model's files on this machine: whether they are all there, and whether they fit into memory."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from deploy.doctor.finding import Finding, failed, good, skipped, unsure
from deploy.doctor.machine import Device, Machine
from deploy.gpu_limit import LIMIT, most_wired
from submit.status.text import plural, size

HUB_NAME = re.compile(r"(?P<repository>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>\S+))?")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
MAX_JSON_BYTES = 64 * 2**20
WORKERS_PART = 0.9
"""A worker takes so much of what the device recommends; see its ``--memory-limit``."""
FULL = 0.7
"""Past this the models leave too little for the caches of many lines."""
MIB = 2**20


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of a model: the bytes of its weights, and what is wrong with them, if anything.

    ``fetch`` is the command that gets them from the hub, None for a folder; ``offline`` says that the hub is not to be
    asked, so that a worker will not fetch them by itself.
    """

    name: str
    folder: Path | None = None
    weights: int = 0
    problem: str | None = None
    fetch: str | None = None
    offline: bool = False


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Where the Hugging Face hub's files are kept."""
    for name, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if chosen := environ.get(name):
            return Path(chosen).expanduser() / below
    cache = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or Path.home()) / ".cache"
    return Path(cache) / "huggingface" / "hub"


def find_model(name: str, environ: Mapping[str, str]) -> ModelFiles:
    """The files of a model as a worker will look for them: a folder of that name, else the hub's cache."""
    try:
        return _find(name, environ)
    except (OSError, RuntimeError) as error:  # it may not be read, or is no path at all
        return ModelFiles(name, problem=error.strerror if isinstance(error, OSError) else str(error))


def _find(name: str, environ: Mapping[str, str]) -> ModelFiles:
    folder = Path(name).expanduser()
    if folder.exists():
        problem, weights = _examine(folder)
        return ModelFiles(name, folder, weights, problem)
    found = HUB_NAME.fullmatch(name)
    if found is None or name.startswith("."):
        return ModelFiles(name, problem="there is no such folder")
    repository, revision = found["repository"], found["revision"]
    fetch = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
    offline = environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    kept = hub_cache(environ) / f"models--{repository.replace('/', '--')}"
    snapshot = _snapshot(kept, revision or "main")
    if snapshot is None:
        # What was begun and not finished has no snapshot yet, or one with some of its files.
        return ModelFiles(name, problem=_begun(kept) or "not on this machine yet", fetch=fetch, offline=offline)
    problem, weights = _examine(snapshot)
    if problem is not None:
        problem = _begun(kept) or problem
    return ModelFiles(name, snapshot, weights, problem, fetch, offline)


def check_model(files: ModelFiles) -> Finding:
    """All files are there, or a worker can fetch them."""
    name = f"model {files.name}"
    if files.problem is None:
        where = "in the hub's cache" if files.fetch else "in its folder"
        return good(name, f"complete {where}, {size(files.weights)} of weights")
    if files.fetch is None:
        remedy = "give the folder of a whole model, or its name on the Hugging Face hub (org/name)"
        return failed(name, files.problem, remedy)
    if files.offline:
        return failed(name, f"{files.problem}, and HF_HUB_OFFLINE is set", f"HF_HUB_OFFLINE=0 {files.fetch}")
    return unsure(name, f"{files.problem}: a worker fetches it at its start", files.fetch)


def _snapshot(kept: Path, revision: str) -> Path | None:
    """The folder of a revision (a branch, a tag or a commit) in a repository's part of the cache."""
    commit = revision
    with contextlib.suppress(OSError, ValueError):  # a commit, or nothing that was ever fetched
        commit = (kept / "refs" / revision).read_text(encoding="ascii").strip()[:64]
    folder = kept / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


def _begun(kept: Path) -> str | None:
    """What is left of a download that did not end."""
    left = [path.stat().st_size for path in kept.glob("blobs/*.incomplete")]
    return f"its download did not end ({plural(len(left), 'file')} begun)" if left else None


def _examine(folder: Path) -> tuple[str | None, int]:
    """What is wrong in a model's folder, if anything, and the bytes of its weights."""
    if not isinstance(_object(folder / "config.json"), dict):
        return f"{folder} has no config.json that can be read", 0
    there = {path.name: path.stat().st_size for path in folder.glob("model*.safetensors") if path.is_file()}
    weights = sum(there.values())
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        parts = _object(index)
        named = parts.get("weight_map") if parts is not None else None
        if not isinstance(named, dict):
            return f"{index} cannot be read", weights
        missing = {str(file) for file in named.values()} - there.keys()
        if missing:
            return f"{plural(len(missing), 'file')} of its weights are missing, such as {min(missing)}", weights
    if not there:
        return f"{folder} has no model*.safetensors", 0
    if empty := [file for file, bytes_there in there.items() if bytes_there == 0]:
        return f"{empty[0]} is empty", weights
    if not any((folder / file).is_file() for file in TOKENIZER_FILES) and not list(folder.glob("*.tiktoken")):
        return f"{folder} has no tokenizer", weights
    return None, weights


def _object(path: Path) -> dict[str, object] | None:
    """The object in a JSON file; None where there is none."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            return None
        found = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return found if isinstance(found, dict) else None


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
