"""An engine without MLX: the interface of the real one, answers that follow from the prompt, and a log of every line.

It stands in for ``worker.engine.engine``, ``worker.engine.loading.mlx_models`` and ``worker.engine.unbatched.modes``;
all else of a worker is real. Prompts steer it: one with ``poison`` kills the process when a few of its tokens are
there, ``sick`` ends the engine, ``explode`` fails by itself, ``oom`` fails while anything else is in flight.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, make_dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import orjson

from jobs.errors import SickModelError
from worker.engine.sequence import Failure, Finished, InFlight, PreparedLine, Sequence, sequences_of

HARM_AT = 2
"""Tokens after which a line that does harm does it."""
DIGEST = hashlib.sha256().digest_size * 2


def answer(prompt: str, tokens: int) -> str:
    """The text that a prompt gets: ``tokens`` characters that follow from it alone."""
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    return (digest * (tokens // DIGEST + 1))[:tokens]


class Log:
    """Events, one line each, in one write: what a killed process wrote stays."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def event(self, event: str, **fields: Any) -> None:
        row = {"event": event, "pid": os.getpid(), "at": time.monotonic(), **fields}
        os.write(self._file, orjson.dumps(row) + b"\n")

    def line(self, event: str, key: Hashable) -> None:
        job_id, _fence, index = key  # a worker's LineKey
        batch, _, shard = job_id.rpartition("-")
        self.event(event, batch=batch, shard=int(shard), index=index)


@dataclass(slots=True)
class Stats:
    """What the worker publishes of the engine."""

    decode_rows: int = 0
    decode_slots: int = 0
    preempted_rows: int = 0
    scored_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    finished_lines: int = 0


@dataclass(slots=True, eq=False)
class Row:
    """A line in flight: its sequences, the text they all get, and how much of it they have."""

    line: PreparedLine
    prompt: str
    sequences: list[Sequence]
    text: bytes
    at: int = 0


class Tokenizer:
    """A token is a byte; none is a control token."""

    bos_token = None
    added_tokens_decoder: Mapping[int, Any] = MappingProxyType({})
    has_chat_template = False
    has_thinking = False
    think_start = think_end = None
    eos_token_ids = (256,)

    def encode(self, text: str, **_: Any) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Iterable[int]) -> str:
        return bytes(tokens).decode(errors="replace")


@dataclass(slots=True)
class Model:
    """What the worker asks of a loaded model."""

    name: str
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    vocab_size: int = 257
    eos: frozenset[int] = frozenset({256})
    context_length: int | None = None
    revision: str | None = "stub"
    weight_bytes: int = 0
    weights: dict[str, Any] = field(default_factory=dict)

    def cache_cost(self, _tokens: int) -> int:
        return 0


class StubEngine:
    """Decodes up to ``decode_concurrency`` lines; a step takes ``step_s`` seconds and gives each a token.

    ``reached(phase)`` is called at the points where faults are injected.
    """

    def __init__(
        self, model: Model, log: Log, reached: Callable[..., None], step_s: float, *, decode_concurrency: int, **_: Any
    ) -> None:
        self.model = model
        self.stats = Stats()
        self.capacity = decode_concurrency
        self.memory = (0, 0)
        self._log = log
        self._reached = reached
        self._step_s = step_s
        self.on_begin: Callable[[list[Hashable]], frozenset[Hashable]] = lambda keys: frozenset()
        self._only: frozenset[Hashable] | None = None
        self._waiting: dict[Hashable, PreparedLine] = {}
        self._rows: dict[Hashable, Row] = {}
        self._finished: deque[Finished] = deque()

    @property
    def pending(self) -> int:
        return len(self._waiting)

    @property
    def begun(self) -> int:
        return len(self._rows)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._waiting or key in self._rows

    def admit(self, only: frozenset[Hashable] | None) -> None:
        self._only = only

    def upcoming(self, only: frozenset[Hashable] | None) -> list[Hashable]:
        return list(islice((key for key in self._waiting if only is None or key in only), self.capacity))

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._rows or self._finished)

    @property
    def runnable(self) -> bool:
        waiting = self._waiting if self._only is None else self._waiting.keys() & self._only
        return bool(waiting or self._rows or self._finished)

    def set_memory(self, *_: Any) -> None:
        pass

    def warm_up(self) -> None:
        pass

    def add(self, line: PreparedLine) -> None:
        if line.key in self._waiting or line.key in self._rows:
            raise ValueError(f"a line with key {line.key!r} is already in the engine")
        self._waiting[line.key] = line

    def cancel(self, key: Hashable, reason: str = "cancelled") -> None:
        row = self._rows.pop(key, None)
        line = self._waiting.pop(key, None)
        if row is not None:
            self._log.line("cancel", key)
            self._end(row, reason)
        elif line is not None:
            self._end(self._row(line), reason)

    def drop_pending(self, chosen: Callable[[Hashable], bool] = lambda key: True) -> list[Hashable]:
        dropped = [key for key in self._waiting if chosen(key)]
        for key in dropped:
            del self._waiting[key]
        return dropped

    def step(self) -> list[Finished]:
        self._begin()
        if self._rows:
            time.sleep(self._step_s)
        self.stats.decode_rows += len(self._rows)
        self.stats.decode_slots += self.capacity
        for row in list(self._rows.values()):
            self._advance(row)
        finished = list(self._finished)
        self._finished.clear()
        return finished

    def snapshot(self) -> list[InFlight]:
        return [InFlight(key, "decode", len(row.line.prompt), len(row.line.prompt), row.at)
                for key, row in self._rows.items()]  # fmt: skip

    def close(self) -> None:
        self._waiting.clear()
        self._rows.clear()

    def _begin(self) -> None:
        admitted = (key for key in self._waiting if self._only is None or key in self._only)
        fresh = list(islice(admitted, max(0, self.capacity - len(self._rows))))
        refused = self.on_begin(fresh) if fresh else frozenset()
        for key in refused:
            self.cancel(key)
        for key in fresh:
            if key in refused:
                continue
            row = self._rows[key] = self._row(self._waiting.pop(key))
            self._log.line("begin", key)
            self.stats.prompt_tokens += len(row.line.prompt)
            now = time.perf_counter()
            for sequence in row.sequences:
                sequence.prefill_started = now
        if self._rows:
            self._reached("begun")

    def _row(self, line: PreparedLine) -> Row:
        prompt = bytes(line.prompt).decode()
        text = answer(prompt, line.sampling.max_tokens).encode()
        return Row(line, prompt, sequences_of(line, None, time.perf_counter()), text)

    def _advance(self, row: Row) -> None:
        if row.at == HARM_AT and (failure := self._harm(row)) is not None:
            del self._rows[row.line.key]
            self._finished.append(Finished(row.line.key, row.sequences, failure))
            return
        now = time.perf_counter()
        for sequence in row.sequences:
            if row.at == 0:
                sequence.first_token_at = now
            sequence.tokens.append(row.text[row.at])
        row.at += 1
        self.stats.completion_tokens += len(row.sequences)
        if row.at == len(row.text):
            del self._rows[row.line.key]
            self._log.line("end", row.line.key)
            self.stats.finished_lines += 1
            self._end(row, "max_tokens")
            self._reached("mid_shard")

    def _end(self, row: Row, reason: str) -> None:
        now = time.perf_counter()
        for sequence in row.sequences:
            sequence.end(reason, now)
        self._finished.append(Finished(row.line.key, row.sequences))

    def _harm(self, row: Row) -> Failure | None:
        """What a line does to the worker or, as the real engine reports it, to itself."""
        if "poison" in row.prompt:
            self._log.event("fault", phase="poison", action="kill")
            os.kill(os.getpid(), signal.SIGKILL)
        if "sick" in row.prompt:
            self._log.event("fault", phase="sick", action="end")
            raise SickModelError("the model fails at the simplest prompt too")
        if "explode" in row.prompt:
            return Failure("internal_error", "this line explodes", passing=True)
        if "oom" in row.prompt and len(self._rows) > 1:
            return Failure("internal_error", "too much at once", passing=True)
        return None


def install(modules: dict[str, Any], log: Log, reached: Callable[..., None], step_s: float) -> None:
    """Put the stub in the place of the modules that import MLX, in the ``modules`` of a process that has none yet."""

    def load_model(name: str, **_: Any) -> Model:
        return Model(name)

    def make_engine(model: Model, **flags: Any) -> StubEngine:
        return StubEngine(model, log, reached, step_s, **flags)

    modules["worker.engine.engine"] = SimpleNamespace(Engine=make_engine)
    modules["worker.engine.unbatched.modes"] = SimpleNamespace(UnbatchedModes=make_dataclass("Modes", ()))
    modules["worker.engine.loading.mlx_models"] = SimpleNamespace(
        load_model=load_model,
        load_draft=load_model,
        end_thread=lambda: None,
        free_memory=lambda: None,
        active_memory=lambda: 0,
        memory_budget=lambda _limit: None,
        weight_bytes=lambda *_, **__: (0, 0),
        set_wired_limit=lambda _size: None,
    )
