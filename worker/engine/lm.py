"""The one module that knows mlx-lm: loading a model, and what the engine must know about it.

Everything here runs in the thread that owns the engine; MLX arrays belong to the thread that made them.
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from huggingface_hub import errors as hub_errors, snapshot_download
from mlx_lm import load as load_with_mlx_lm
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS, load_config, load_tokenizer

from jobs.errors import ModelLoadError
from worker.engine import caches as batch_caches
from worker.engine.caches import Cache

__all__ = ["CacheCost", "LoadedModel", "cache_budget", "compiler_present", "describe_model", "end_thread", "load_model", "measure"]

log = logging.getLogger(__name__)

CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "n_ctx",
)
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
PROBE = (5, 3)
"""Lengths of the two rows that a model is tried with: different, so that padding is part of the trial."""
PROBE_TOLERANCE = 0.2
"""Relative distance of logits: rounding of 4-bit models stays far below it, a state with padding in it does not."""
TOKENIZER_PATTERNS = [pattern for pattern in DEFAULT_ALLOW_PATTERNS if not pattern.endswith(".safetensors")]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


@dataclass(frozen=True, slots=True)
class CacheCost:
    """Bytes that the caches of one row take: ``growing`` per token without end, ``windows`` as (bytes per token,
    most tokens) for sliding windows, ``fixed`` for recurrent state."""

    growing: int = 0
    windows: tuple[tuple[int, int], ...] = ()
    fixed: int = 0

    def __call__(self, tokens: int) -> int:
        """Bytes of a row that holds ``tokens`` tokens."""
        windows = sum(size * min(tokens, most) for size, most in self.windows)
        return self.growing * tokens + windows + self.fixed


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model in memory, its tokenizer, and its measured properties.

    ``vocab_size`` is the width of the logits; ``context_length`` the most tokens a row may hold, None where the
    config does not say. ``unbatchable`` is why rows must run one at a time, None where they need not.
    ``padded_prefill`` says that prompts of different lengths may be prefilled together.
    """

    name: str
    model: Any
    tokenizer: Any
    config: Mapping[str, Any]
    vocab_size: int
    eos: frozenset[int]
    context_length: int | None
    cache_cost: CacheCost
    unbatchable: str | None = None
    padded_prefill: bool = True
    revision: str | None = None
    adapter_path: str | None = None

    def new_cache(self) -> list[Cache]:
        """Empty caches for one row, one per layer."""
        return list(make_prompt_cache(self.model))

    def forward(self, tokens: mx.array, caches: list[Cache]) -> mx.array:
        """Logits ``[rows, columns, vocab_size]`` of ``tokens`` ``[rows, columns]``; the caches take the tokens in."""
        logits: mx.array = self.model(tokens, cache=caches)
        return logits

    @property
    def batchable(self) -> bool:
        return self.unbatchable is None

    @property
    def has_thinking(self) -> bool:
        return bool(self.tokenizer.has_thinking)

    @property
    def think_markers(self) -> tuple[str, str] | None:
        """The strings around the model's thinking, None where it has none."""
        if not self.has_thinking:
            return None
        return self.tokenizer.think_start, self.tokenizer.think_end


def load_model(
    name_or_path: str,
    *,
    revision: str | None = None,
    adapter_path: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a model from a folder or the Hugging Face hub, and measure it with a tiny forward.

    Raises:
        ModelLoadError: with what is missing or unsupported, and the remedy.
    """
    if not compiler_present():
        # The models' own code is compiled in places: without a compiler their first forward would fail.
        log.warning("no g++ on this machine: MLX runs without compiled kernels", extra={"action": "compile_disabled"})
        mx.disable_compile()
    folder, commit = _locate(name_or_path, revision)
    _check_folder(name_or_path, folder)
    if adapter_path is not None:
        _check_adapter(adapter_path)
    try:
        model, tokenizer, config = load_with_mlx_lm(
            str(folder),
            tokenizer_config={"trust_remote_code": trust_remote_code},
            adapter_path=adapter_path,
            return_config=True,
            trust_remote_code=trust_remote_code,
        )
    except Exception as error:
        raise ModelLoadError(_load_message(name_or_path, error)) from error
    try:
        return measure(name_or_path, model, tokenizer, config, revision=commit, adapter_path=adapter_path)
    except Exception as error:
        raise ModelLoadError(f"model '{name_or_path}' was loaded but cannot run: {_one_line(error)}") from error


def describe_model(
    name_or_path: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> LoadedModel:
    """A model without its weights: enough to render, tokenise and check prompts, not to run them.

    Raises:
        ModelLoadError: as :func:`load_model`.
    """
    folder, commit = _locate(name_or_path, revision, TOKENIZER_PATTERNS)
    _check_folder(name_or_path, folder, weights=False)
    try:
        config = load_config(folder)
        tokenizer = load_tokenizer(
            folder, {"trust_remote_code": trust_remote_code}, eos_token_ids=config.get("eos_token_id")
        )
    except Exception as error:
        raise ModelLoadError(_load_message(name_or_path, error)) from error
    return LoadedModel(
        name=name_or_path,
        model=None,
        tokenizer=tokenizer,
        config=config,
        vocab_size=int(config.get("vocab_size") or len(tokenizer)),
        eos=frozenset(int(token) for token in tokenizer.eos_token_ids),
        context_length=_context_length(config),
        cache_cost=CacheCost(),
        revision=commit,
    )


def measure(
    name: str,
    model: Any,
    tokenizer: Any,
    config: Mapping[str, Any],
    *,
    revision: str | None = None,
    adapter_path: str | None = None,
) -> LoadedModel:
    """Try a model that is in memory with a few tokens: width of its logits, cost of its caches, how it batches."""
    alone = list(make_prompt_cache(model))
    logits = model(mx.array([[0] * PROBE[0]]), cache=alone)
    mx.eval(logits, batch_caches.arrays(alone))
    loaded = LoadedModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        config=config,
        vocab_size=int(logits.shape[-1]),
        eos=frozenset(int(token) for token in tokenizer.eos_token_ids),
        context_length=_context_length(config),
        cache_cost=_cost(alone, PROBE[0]),
        revision=revision,
        adapter_path=adapter_path,
    )
    reason, padded = _try_batching(loaded)
    if reason is not None:
        log.warning("%s runs one row at a time: %s", name, reason, extra={"action": "model_unbatchable"})
    elif not padded:
        log.warning(
            "%s does not mask padding: only prompts of equal length are prefilled together",
            name,
            extra={"action": "model_unpadded"},
        )
    return replace(loaded, unbatchable=reason, padded_prefill=padded)


def compiler_present(which: Callable[[str], str | None] = shutil.which) -> bool:
    """Whether ``mx.compile`` can work here: the CPU build outside macOS calls ``g++``, a GPU needs nothing."""
    return mx.default_device() != mx.cpu or sys.platform == "darwin" or which("g++") is not None


def cache_budget() -> int | None:
    """Bytes that caches may take: nine tenths of what the device recommends, less what is in use (the models).

    None where the device recommends nothing, as the CPU build does.
    """
    recommended = mx.device_info().get("max_recommended_working_set_size")
    if not recommended:
        return None
    return max(0, int(0.9 * int(recommended)) - int(mx.get_active_memory()))


def end_thread() -> None:
    """Give back this thread's MLX streams, as its last use of MLX: a process that ends with them open aborts."""
    mx.synchronize()
    mx.clear_streams()


def _try_batching(loaded: LoadedModel) -> tuple[str | None, bool]:
    """Why rows of this model cannot share a batch (None: they can), and whether padding leaves them alone.

    Two rows are prefilled together with padding and take one decode step; their logits must be those they have
    alone, but for rounding. Caches without ``merge`` (llama4's, afm7's) fail here, and so does a recurrent layer
    that lets padding into its state.
    """
    prompts = [[(7 * (row + 1) + 3 * i) % loaded.vocab_size for i in range(size + 1)] for row, size in enumerate(PROBE)]
    expected = [_last_logits(loaded, loaded.new_cache(), prompt) for prompt in prompts]
    try:
        together = batch_caches.new_batch(loaded, len(prompts))
        got = _padded_logits(loaded, together, prompts)
    except Exception as error:
        return f"its caches cannot be batched ({_one_line(error)})", False
    apart = [float(mx.linalg.norm(a - b) / mx.linalg.norm(a)) for a, b in zip(expected, got, strict=True)]
    return None, max(apart) < PROBE_TOLERANCE


def _last_logits(loaded: LoadedModel, caches: list[Cache], prompt: list[int]) -> mx.array:
    loaded.forward(mx.array([prompt[:-1]]), caches)
    mx.eval(batch_caches.arrays(caches))
    return loaded.forward(mx.array([prompt[-1:]]), caches)[0, -1].astype(mx.float32)


def _padded_logits(loaded: LoadedModel, caches: list[Cache], prompts: list[list[int]]) -> mx.array:
    lengths = [len(prompt) - 1 for prompt in prompts]
    padded = [prompt[:-1] + [0] * (max(lengths) - length) for prompt, length in zip(prompts, lengths, strict=True)]
    batch_caches.prepare(caches, lengths)
    loaded.forward(mx.array(padded), caches)
    batch_caches.finalize(caches)
    mx.eval(batch_caches.arrays(caches))
    batch_caches.keep(caches, [0, 1])
    logits = loaded.forward(mx.array([prompt[-1:] for prompt in prompts]), caches)[:, -1].astype(mx.float32)
    mx.eval(logits)
    return logits


def _cost(caches: list[Cache], tokens: int) -> CacheCost:
    growing, windows, fixed = 0, [], 0
    for cache in _leaves(caches):
        stored = getattr(cache, "keys", None)
        if not hasattr(cache, "keys"):
            fixed += int(cache.nbytes)
            continue
        width = stored.shape[2] if isinstance(stored, mx.array) and stored.ndim > 2 else tokens
        per_token = -(-int(cache.nbytes) // width)
        most = getattr(cache, "max_size", None)
        if most is None:
            growing += per_token
        else:
            windows.append((per_token, int(most)))
    return CacheCost(growing, tuple(windows), fixed)


def _leaves(caches: list[Cache]) -> list[Cache]:
    return [leaf for cache in caches for leaf in (_leaves(cache.caches) if hasattr(cache, "caches") else [cache])]


def _context_length(config: Mapping[str, Any]) -> int | None:
    for section in (config, config.get("text_config") or {}):
        for key in CONTEXT_KEYS:
            value = section.get(key)
            if isinstance(value, int) and value > 0:
                return value
    return None


def _locate(
    name: str, revision: str | None, patterns: list[str] = DEFAULT_ALLOW_PATTERNS
) -> tuple[Path, str | None]:
    """The folder of a model and, for one from the hub, its commit; of the hub's files those of ``patterns``."""
    path = Path(name).expanduser()
    if path.exists():
        return path, None
    if not HUB_NAME.fullmatch(name) or name.startswith("."):
        raise ModelLoadError(f"no model at '{name}': the folder does not exist")
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise ModelLoadError(_hub_message(name, revision, error)) from error
    return folder, folder.name if folder.parent.name == "snapshots" else None


def _hub_message(name: str, revision: str | None, error: Exception) -> str:
    if isinstance(error, hub_errors.GatedRepoError):
        return f"model '{name}' is gated: accept its terms on huggingface.co and set HF_TOKEN"
    if isinstance(error, hub_errors.RevisionNotFoundError):
        return f"model '{name}' has no revision '{revision}'"
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        return f"no folder '{name}' here and no such model on huggingface.co (or it is private: set HF_TOKEN)"
    return (
        f"model '{name}' is not on this machine and the Hugging Face hub cannot be reached "
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
    for file in ("adapter_config.json", "adapters.safetensors"):
        if not (Path(adapter_path) / file).is_file():
            raise ModelLoadError(f"'{adapter_path}' is no adapter: it has no {file}")


def _load_message(name: str, error: Exception) -> str:
    text = _one_line(error)
    if "not supported" in text and "Model type" in text:
        return f"model '{name}' has an architecture that this mlx-lm does not know ({text}): upgrade mlx-lm"
    if "trust_remote_code" in text:
        return f"model '{name}' brings its own code: pass --trust-remote-code if you trust it"
    return f"model '{name}' cannot be loaded: {text}"


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
