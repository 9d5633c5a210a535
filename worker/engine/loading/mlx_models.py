"""The one module that knows mlx-lm: loading a model and measuring it.

Everything here runs in the thread that owns the engine; MLX arrays belong to the thread that made them.
"""

from __future__ import annotations

import gc
import logging
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from huggingface_hub import errors as hub_errors, snapshot_download
from mlx.utils import tree_flatten
from mlx_lm.models import base
from mlx_lm.models.cache import RotatingKVCache, make_prompt_cache
from mlx_lm.utils import (
    DEFAULT_ALLOW_PATTERNS,
    load_adapters,
    load_config,
    load_model as load_with_mlx_lm,
    load_tokenizer,
)

from jobs.errors import ModelLoadError
from worker.engine.caches import prompt_cache
from worker.engine.caches.growing import in_parts
from worker.engine.loading.config import configured, context_length_of
from worker.engine.loading.model import LoadedModel
from worker.engine.loading.probe import cache_cost, try_batching, try_buckets, try_prefixes
from worker.engine.sampling.sampler import drawable
from worker.engine.unbatched.modes import BATCHED, UnbatchedModes, fitted

__all__ = [
    "LoadedModel",
    "active_memory",
    "cache_budget",
    "compiler_present",
    "describe_model",
    "end_thread",
    "free_memory",
    "load_draft",
    "load_model",
    "measure",
    "memory_budget",
    "set_wired_limit",
    "weight_bytes",
]

log = logging.getLogger(__name__)

HUB_NAME = re.compile(r"(?P<repository>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>\S+))?")
TOKENIZER_PATTERNS = [pattern for pattern in DEFAULT_ALLOW_PATTERNS if not pattern.endswith(".safetensors")]
ADAPTER_FILES = ("adapter_config.json", "adapters.safetensors")
KEPT_BY_RINGS = 4
"""Of a text longer than its ring the first tokens that stay, as with ``mlx_lm.generate``: attention leans on them."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def load_model(
    name_or_path: str,
    *,
    revision: str | None = None,
    adapter_path: str | None = None,
    trust_remote_code: bool = False,
    modes: UnbatchedModes = BATCHED,
    draft: LoadedModel | None = None,
    share: LoadedModel | None = None,
) -> LoadedModel:
    """Load a model from a folder or the Hugging Face hub, and measure it with a tiny forward. With ``modes`` or a
    ``draft`` model, see :func:`load_draft`, its rows run one at a time.

    ``name_or_path`` may end in ``@`` and a revision of the hub, else ``revision`` is taken. The weights are those of
    ``share``, a model loaded from the same files with or without an adapter, as far as it has them in memory.

    Raises:
        ModelLoadError: with what is missing or unsupported, and the remedy.
    """
    loaded = _loaded(name_or_path, revision, adapter_path, trust_remote_code, share)
    try:
        return _tried(_weighed(loaded), modes, draft)
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(f"model '{name_or_path}' was loaded but cannot run: {_one_line(error)}") from error


def load_draft(name_or_path: str, *, trust_remote_code: bool = False) -> LoadedModel:
    """Load a model that proposes tokens to others.

    Raises:
        ModelLoadError: as :func:`load_model`.
    """
    try:
        return _weighed(_loaded(name_or_path, None, None, trust_remote_code))
    except Exception as error:
        reason = str(error) if isinstance(error, ModelLoadError) else _one_line(error)
        raise ModelLoadError(f"--draft-model: {reason}") from error


def _loaded(
    name_or_path: str,
    revision: str | None,
    adapter_path: str | None,
    trust_remote_code: bool,
    share: LoadedModel | None = None,
) -> LoadedModel:
    """A model with its weights, or those of ``share``, in memory, of which nothing is measured yet."""
    if not compiler_present():
        # The models' own code is compiled in places: without a compiler their first forward would fail.
        log.warning("no g++ on this machine: MLX runs without compiled kernels", extra={"action": "compile_disabled"})
        mx.disable_compile()
    folder, commit = _locate(name_or_path, revision)
    _check_folder(name_or_path, folder)
    if adapter_path is not None:
        _check_adapter(adapter_path)
    # A revision's name may have come to mean another commit since, and a folder may have been written anew.
    stats = [(file.name, file.stat()) for file in sorted(folder.glob("*")) if file.suffix in (".safetensors", ".json")]
    files = tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
    shared = share.weights if share is not None and share.files == files else {}
    try:
        model, config = load_with_mlx_lm(folder, lazy=True, trust_remote_code=trust_remote_code)
        model.load_weights(list(shared.items()), strict=False)
        tokenizer = _tokenizer(folder, config, trust_remote_code)
        weights = _with_adapter(name_or_path, model, adapter_path)
        mx.eval(list(weights.values()))
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(_load_message(name_or_path, error)) from error
    described = _described(name_or_path, model, tokenizer, config)
    return replace(described, revision=commit, adapter_path=adapter_path, weights=weights, files=files)


def _with_adapter(name: str, model: Any, adapter_path: str | None) -> dict[str, mx.array]:
    """Put the adapter, if any, on a model whose arrays are not yet read; those of them that are still its own."""
    weights = dict(tree_flatten(model.parameters()))
    if adapter_path is None:
        return weights
    try:
        load_adapters(model, adapter_path)
        model.eval()
        kept = {id(array) for _, array in tree_flatten(model.parameters())}
        weights = {key: array for key, array in weights.items() if id(array) in kept}
        base = set(map(id, weights.values()))
        mx.eval([array for _, array in tree_flatten(model.parameters()) if id(array) not in base])
    except Exception as error:
        message = f"adapter '{adapter_path}' cannot be put on model '{name}': {_one_line(error, lines=2)}"
        raise ModelLoadError(message, "adapter_path") from error
    return weights


def weight_bytes(name_or_path: str, *, revision: str | None = None, adapter_path: str | None = None) -> tuple[int, int]:
    """Bytes of a model's weights and of an adapter's, going by their files.

    Raises:
        ModelLoadError: when either is not there.
    """
    folder, _ = _locate(name_or_path, revision)
    _check_folder(name_or_path, folder)
    model = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    if adapter_path is None:
        return model, 0
    _check_adapter(adapter_path)
    return model, (Path(adapter_path) / "adapters.safetensors").stat().st_size


def describe_model(name_or_path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> LoadedModel:
    """A model without its weights: enough to render, tokenise and check prompts, not to run them.

    Raises:
        ModelLoadError: as :func:`load_model`.
    """
    folder, commit = _locate(name_or_path, revision, TOKENIZER_PATTERNS)
    _check_folder(name_or_path, folder, weights=False)
    try:
        config = load_config(folder)
        tokenizer = _tokenizer(folder, config, trust_remote_code)
    except Exception as error:
        raise ModelLoadError(_load_message(name_or_path, error)) from error
    described = _described(name_or_path, None, tokenizer, config)
    return replace(described, revision=commit, vocab_size=described.vocab_size or len(tokenizer))


def measure(
    name: str,
    model: Any,
    tokenizer: Any,
    config: Mapping[str, Any],
    *,
    modes: UnbatchedModes = BATCHED,
    draft: LoadedModel | None = None,
) -> LoadedModel:
    """Try a model that is in memory with a few tokens: width of its logits, cost of its caches, how it batches.

    Raises:
        ModelLoadError: when it cannot run in ``modes`` or with the ``draft`` model.
    """
    return _tried(_weighed(_described(name, model, tokenizer, config)), modes, draft)


def _tokenizer(folder: Path, config: Mapping[str, Any], trust_remote_code: bool) -> Any:
    options = {"trust_remote_code": trust_remote_code}
    return load_tokenizer(folder, options, eos_token_ids=config.get("eos_token_id"))


def _described(name: str, model: Any, tokenizer: Any, config: Mapping[str, Any]) -> LoadedModel:
    """A model as far as its tokenizer and config say what it is."""
    return LoadedModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        config=config,
        vocab_size=configured(config, ("vocab_size",)) or 0,
        eos=frozenset(int(token) for token in tokenizer.eos_token_ids),
        context_length=context_length_of(config),
        make_cache=make_prompt_cache,
    )


def _weighed(model: LoadedModel) -> LoadedModel:
    """The model with the width of its logits and the cost of its caches."""
    caches = model.new_cache()
    logits = model.forward(mx.array([[0, 0]]), caches)
    mx.eval(logits, prompt_cache.arrays(caches))
    if not drawable(logits[:, -1]).item():
        raise ModelLoadError(
            f"model '{model.name}' gives NaN or infinite logits to the simplest prompt: its files may be damaged, or "
            "its weights unfit for their precision; fetch or convert it again"
        )
    return replace(model, vocab_size=int(logits.shape[-1]), cache_cost=cache_cost(caches, tokens=2))


def _tried(model: LoadedModel, modes: UnbatchedModes, draft: LoadedModel | None) -> LoadedModel:
    """The model fitted for its modes, and with what a trial says of batches and prefixes."""
    model = fitted(model, modes, draft, partial(RotatingKVCache, keep=KEPT_BY_RINGS))
    unbatchable, padded = (model.unbatchable, False) if not model.batchable else try_batching(model)
    if unbatchable is not None:
        log.warning("%s runs one row at a time: %s", model.name, unbatchable, extra={"action": "model_unbatchable"})
    elif not padded:
        message = "%s lets padding into its state: only prompts of equal length are prefilled together"
        log.warning(message, model.name, extra={"action": "model_unpadded"})
    model = replace(model, unbatchable=unbatchable, padded_prefill=padded)
    if model.batchable:
        share_attention(model.model)
        model = replace(model, bucketed=try_buckets(model))
    return replace(model, prefixes=_prefixes_work(model))


def share_attention(model: Any) -> None:
    """Let a model's attention take rows in parts: mlx-lm's models call one function for it, by a name of their own."""
    common: Callable[..., mx.array] = base.scaled_dot_product_attention
    for name in {type(module).__module__ for module in model.modules()} if hasattr(model, "modules") else ():
        if getattr(sys.modules[name], "scaled_dot_product_attention", None) is common:
            sys.modules[name].scaled_dot_product_attention = in_parts(common)  # type: ignore[attr-defined]


def _prefixes_work(model: LoadedModel) -> bool:
    if not model.batchable:
        return False
    try:
        reason = None if try_prefixes(model) else "its logits differ"
    except Exception as error:
        reason = _one_line(error)
    if reason is not None:
        message = "%s computes every prompt in full, and not from a copy of what prompts share: %s"
        log.warning(message, model.name, reason, extra={"action": "model_without_prefixes"})
    return reason is None


def compiler_present(which: Callable[[str], str | None] = shutil.which) -> bool:
    """Whether ``mx.compile`` can work here: the CPU build outside macOS calls ``g++``, a GPU needs nothing."""
    return mx.default_device() != mx.cpu or sys.platform == "darwin" or which("g++") is not None


def memory_budget(limit: int | None = None) -> int | None:
    """Bytes for models and caches: ``limit``, else nine tenths of what the device recommends.

    None where neither says anything: the CPU build recommends nothing.
    """
    recommended = mx.device_info().get("max_recommended_working_set_size")
    if limit is not None or not recommended:
        return limit
    return int(0.9 * int(recommended))


def cache_budget() -> int | None:
    """Bytes that caches may take: :func:`memory_budget` less what is in use (the models)."""
    budget = memory_budget()
    return None if budget is None else max(0, budget - int(mx.get_active_memory()))


def active_memory() -> int:
    """Bytes that MLX holds for arrays, once the work under way is done."""
    mx.synchronize()
    return int(mx.get_active_memory())


def free_memory() -> None:
    """Give back what nothing refers to any more: models have reference cycles, and MLX keeps freed buffers."""
    gc.collect()
    mx.clear_cache()


def set_wired_limit(limit: int) -> None:
    """Let Metal keep up to ``limit`` bytes of models and caches wired: large models are many times slower without.

    A choice of the user's, because macOS has been seen to panic with it (ml-explore/mlx#3186).
    """
    if mx.metal.is_available():
        mx.set_wired_limit(limit)
    else:
        log.warning("there is no Metal here: the wired limit does nothing")


def end_thread() -> None:
    """Give back this thread's MLX streams, as its last use of MLX: a process that ends with them open aborts."""
    mx.synchronize()
    mx.clear_streams()


def _locate(name: str, revision: str | None, patterns: list[str] = DEFAULT_ALLOW_PATTERNS) -> tuple[Path, str | None]:
    """The folder of a model and, for one from the hub, its commit; of the hub's files those of ``patterns``."""
    path = Path(name).expanduser()
    if path.exists():
        return path, None
    found = HUB_NAME.fullmatch(name)
    if found is None or name.startswith("."):
        raise ModelLoadError(f"no model at '{name}': the folder does not exist")
    revision = found["revision"] or revision
    try:
        folder = Path(snapshot_download(found["repository"], revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise ModelLoadError(_hub_message(found["repository"], revision, error)) from error
    return folder, folder.name if folder.parent.name == "snapshots" else None


def _hub_message(name: str, revision: str | None, error: Exception) -> str:
    if isinstance(error, hub_errors.GatedRepoError):
        return f"model '{name}' is gated: accept its terms on huggingface.co and set HF_TOKEN"
    if isinstance(error, hub_errors.RevisionNotFoundError):
        return f"model '{name}' has no revision '{revision}'"
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        return f"no folder '{name}' here and no such model on huggingface.co (or it is private: set HF_TOKEN)"
    which = f"model '{name}'" if revision is None else f"revision '{revision}' of model '{name}'"
    return (
        f"{which} is not on this machine and the Hugging Face hub cannot be reached "
        f"({_one_line(error)}): check the network, or give the path of a folder"
    )


def _check_folder(name: str, folder: Path, *, weights: bool = True) -> None:
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"'{name}' is not a model: {folder} has no config.json")
    if weights and not list(folder.glob("model*.safetensors")):
        raise ModelLoadError(
            f"'{name}' has no weights: {folder} has no model*.safetensors; convert it with mlx_lm.convert"
        )
    if not any((folder / file).is_file() for file in TOKENIZER_FILES) and not list(folder.glob("*.tiktoken")):
        raise ModelLoadError(f"'{name}' has no tokenizer: {folder} has none of {', '.join(TOKENIZER_FILES)}")


def _check_adapter(adapter_path: str) -> None:
    for file in ADAPTER_FILES:
        if not (Path(adapter_path) / file).is_file():
            raise ModelLoadError(f"'{adapter_path}' is no adapter: it has no {file}", "adapter_path")


def _load_message(name: str, error: Exception) -> str:
    text = _one_line(error)
    if "not supported" in text and "Model type" in text:
        return f"model '{name}' has an architecture that this mlx-lm does not know ({text}): upgrade mlx-lm"
    if "trust_remote_code" in text:
        return f"model '{name}' brings its own code: pass --trust-remote-code if you trust it"
    return f"model '{name}' cannot be loaded: {text}"


def _one_line(error: BaseException, lines: int = 1) -> str:
    """The error's kind and the first ``lines`` lines of what it says."""
    text = " ".join(line.strip() for line in str(error).strip().splitlines()[:lines])
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
