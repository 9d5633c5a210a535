"""The one table of a worker's options: names, types, ranges, defaults and meaning.

The worker's flags, those that ``promptmill run`` hands on to its worker, the keys of the settings file, the table in
docs/workers.md and the worker's settings are all read from the fields of the classes here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.app.logs import FILE_HELP, FORMAT_HELP, FORMATS

DECODE_CONCURRENCY = 32
MOST_ROWS = 256
"""What --autotune tries at most, where --decode-concurrency is not given."""
MAX_ATTEMPTS = 3
LOAD_PATIENCE_S = 120.0
SPOOL_KEEP_S = 14 * 86400.0


@dataclass(frozen=True, slots=True)
class WorkerOption:
    """One row of the table.

    ``kind`` is ``text``, ``int``, ``seconds``, ``duration``, ``size``, ``choice``, ``switch``, ``file``, ``folder``,
    ``model``, ``worker_name`` or ``redis``. ``low`` and ``high`` are inclusive. ``default_text`` says what holds
    without the flag, where the flag itself has no default. ``needs`` is the option that it does nothing without.
    ``env`` are variables beside PROMPTMILL_WORKER_NAME. Options ``in_run`` are flags of ``promptmill run`` too.
    """

    setting: str
    """The field of the settings that takes the value."""
    kind: str
    default: Any
    help: str
    flag: str
    """With its dashes, and for some with a short one: ``--verbose``, ``-v``."""
    short: str | None = None
    low: int | None = None
    high: int | None = None
    choices: tuple[Any, ...] = ()
    metavar: str | None = None
    default_text: str | None = None
    needs: str | None = None
    env: tuple[str, ...] = ()
    multiple: bool = False
    required: bool = False
    negatable: bool = False
    """The switch has a flag that turns it off: ``--no-preload``."""
    hidden: bool = False
    in_run: bool = False
    ends: bool = False
    """A worker with this option ends by itself, which no daemon should."""

    @property
    def name(self) -> str:
        """The flag as click, the environment and TOML with underscores have it."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def full_help(self) -> str:
        return self.help if self.default_text is None else f"{self.help}  [default: {self.default_text}]"

    @property
    def shown_default(self) -> str:
        """The default as the documentation shows it, empty where there is none."""
        if self.default_text is not None or self.kind == "switch":
            return self.default_text or ("on" if self.default else "off")
        return "" if self.default is None or self.multiple else str(self.default)


def _option(kind: str, default: Any, help_text: str, *, as_written: str | None = None, **details: Any) -> Any:
    """A field with its row. The flag is ``--field-name`` unless ``flag`` says otherwise, and has the field's default
    unless there is a ``default_text``; ``as_written`` is how people write that default."""
    info = {"kind": kind, "default": as_written or default, "help": help_text, **details}
    return field(default=default, metadata=info)


# fmt: off
# A row is read at once when it takes few lines.
@dataclass(frozen=True, slots=True, kw_only=True)
class _Models:
    """What a worker serves."""

    models: tuple[str, ...] = _option(
        "model", (),
        "Model to serve: a folder, or a Hugging Face repository as NAME or NAME@REVISION. May be given several times.",
        flag="--model", env=("PROMPTMILL_MODEL",), metavar="MODEL", multiple=True, required=True,
    )
    adapters: tuple[str, ...] = _option(
        "model", (), "Adapter that lines may ask for by adapter_path. May be given several times.",
        flag="--adapter-path", metavar="PATH", multiple=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How engines are made, under mlx-lm's names."""

    revision: str | None = _option(
        "text", None, "Revision of the Hub's models that are named without one.", in_run=True,
    )
    trust_remote_code: bool = _option(
        "switch", False, "Let models and tokenizers run code from their repositories.", in_run=True,
    )
    control_tokens: bool = _option(
        "switch", False,
        "Take control tokens in messages, such as <|im_end|>, for what they say and not for text: for trusted files.",
        in_run=True,
    )
    decode_concurrency: int = _option(
        "int", DECODE_CONCURRENCY, "Most lines decoded together.",
        low=1, high=4096, default_text=str(DECODE_CONCURRENCY), in_run=True,
    )
    autotune: Path | None = _option(
        "switch", None,
        "Measure at each model's load how many lines to decode together, at most --decode-concurrency where it is "
        f"given and {MOST_ROWS} where not; remembered per model and host.", in_run=True,
    )
    """The file that remembers it."""
    prompt_concurrency: int = _option("int", 8, "Most prompts processed together.", low=1, high=1024, in_run=True)
    prefill_step_size: int = _option(
        "int", 2048, "Prompt tokens processed between two decode steps.", low=1, in_run=True,
    )
    max_kv_size: int | None = _option(
        "int", None, "Most tokens a line's KV cache keeps: the first four and the latest. One line at a time.",
        low=8, metavar="TOKENS", default_text="all", in_run=True,
    )
    kv_bits: int | None = _option(
        "choice", None, "Bits of a quantised KV cache. One line at a time.",
        choices=(2, 3, 4, 6, 8), default_text="not quantised", in_run=True,
    )
    kv_group_size: int = _option(
        "choice", 64, "Values quantised together.",
        choices=(32, 64, 128), default_text="64", needs="kv_bits", in_run=True,
    )
    quantized_kv_start: int = _option(
        "int", 0, "Tokens from which on a line's KV cache is quantised.",
        low=0, metavar="TOKENS", default_text="0", needs="kv_bits", in_run=True,
    )
    draft_model: str | None = _option(
        "text", None,
        "Small model of the same vocabulary that proposes tokens, for the same texts sooner. One line at a time.",
        metavar="MODEL", in_run=True,
    )
    num_draft_tokens: int = _option(
        "int", 3, "Tokens proposed at a time.", low=1, high=64, default_text="3", needs="draft_model", in_run=True,
    )
    max_context: int | None = _option(
        "int", None, "Context length in tokens.", low=1, default_text="the model's own", in_run=True,
    )
    memory_limit: int | None = _option(
        "size", None,
        "Memory for the models and their caches, such as 48G; models that do not fit together take turns.",
        default_text="what the device recommends", in_run=True,
    )
    prefix_memory: int | None = _option(
        "size", None, "Memory for beginnings that prompts share, computed once; 0 computes every prompt in full.",
        default_text="a tenth of the caches' memory", in_run=True,
    )
    wired_limit: int | None = _option(
        "size", None, "Memory that macOS keeps wired for large models, which are slow without.", default_text="none",
    )
    load_patience_s: float = _option(
        "seconds", LOAD_PATIENCE_S,
        "A model that cannot be loaded is tried again and again for this long; then its lines get error records.",
        flag="--load-patience", in_run=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions:
    """How long a worker lives and what it does beside its engines; times in seconds."""

    preload: bool = _option(
        "switch", True, "Load the models at start, as many as fit together, or when first needed.", negatable=True,
    )
    burst: bool = _option("switch", False, "End when the queues are empty.", ends=True)
    max_idle_s: float | None = _option(
        "seconds", None, "End after this long without work.", flag="--max-idle-time", ends=True,
    )
    drain_s: float = _option(
        "seconds", 30.0,
        "When asked to stop, finish lines already begun for this long; the rest goes back to the queue.",
        flag="--drain",
    )
    recycle_after_tokens: int | None = _option(
        "int", None, "After so many generated tokens drain, start afresh in place and go on: all memory is given back.",
        low=1, metavar="TOKENS",
    )
    spool: Path | None = _option(
        "folder", None,
        "Folder in which finished records are kept on this machine's disk too, for times without Redis: "
        "`promptmill results BATCH --from-spool DIR` reads it.", metavar="DIR", default_text="spool in the data folder",
    )
    """None: there is none."""
    spool_keep_s: float = _option(
        "duration", SPOOL_KEEP_S, "Remove a batch's records from there when the last is so old.",
        flag="--spool-keep", as_written="14d",
    )
    max_attempts: int = _option(
        "int", MAX_ATTEMPTS,
        "Attempts at a line that ends its worker, or fails for a reason that may pass; then it gets an error record. "
        "A worker's death is the last of them only where the line had nothing beside it.", low=1, high=100, in_run=True,
    )
    allow_sleep: bool = _option(
        "switch", False, "Let a Mac fall asleep when nobody uses it, as it is set up, even while lines are under way.",
        in_run=True,
    )
    name: str | None = _option(
        "worker_name", None, "Name of this worker: letters, digits, dots, _ and -.", default_text="the host's",
    )
    pool: str | None = _option("text", None, "Private queues, for `promptmill run`.", hidden=True, ends=True)
    parent: int | None = _option(
        "int", None, "End when this parent ends.", flag="--exit-with-parent", metavar="PID", hidden=True, ends=True,
    )
    """The process id that the worker ends with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Process:
    """What the command itself needs."""

    redis_url: str | None = _option(
        "redis", None, "Redis of the pool (redis://, rediss://, unix://).",
        flag="--redis", env=("PROMPTMILL_REDIS_URL", "RQ_REDIS_URL"), metavar="URL",
        default_text="this user's embedded server",
    )
    metrics_port: int | None = _option(
        "int", None, "Serve metrics for Prometheus on this port; 0: any free one, which is logged.",
        low=0, high=65535, metavar="PORT", default_text="none",
    )
    metrics_host: str = _option(
        "text", "127.0.0.1",
        "Address of this machine for it; 0.0.0.0 is all of them: anybody there may read the metrics.", metavar="HOST",
    )
    verbose: bool = _option("switch", False, "Log more.", short="-v")
    log_format: str = _option("choice", "text", FORMAT_HELP, choices=FORMATS)
    log_file: Path | None = _option("file", None, FILE_HELP, metavar="FILE")
    check: bool = _option(
        "switch", False, "See that all flags are right, and end: for `promptmill deploy`.", hidden=True,
    )
# fmt: on


def _rows(table: type) -> tuple[WorkerOption, ...]:
    return tuple(
        WorkerOption(**{"setting": row.name, "flag": f"--{row.name.replace('_', '-')}", **row.metadata})
        for row in dataclasses.fields(table)
    )


WORKER_OPTIONS = tuple(row for table in (_Models, EngineSettings, ServiceOptions, _Process) for row in _rows(table))


def settings_of(table: type, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a table that the flags set; those that are missing keep their defaults."""
    return {row.setting: flags[row.name] for row in _rows(table) if flags[row.name] is not None}
