"""What a worker tells Prometheus: events are counted where records are made, everything else is read at the scrape.

The compute thread takes no part in it. Series are labelled by the keys of the models that the worker serves and by
words of the contract, never by batches or lines: their number is bounded.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, cast

from jobs.errors import RefusedError
from worker.health.recycle import HELD_BACK
from worker.models.residency import share_out
from worker.shards.claimed import End
from worker.shards.records import EndedLine, FailedLine, run_stats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from jobs.record import RunStats
    from jobs.shard import Group
    from worker.service import Service
    from worker.shards.claimed import LineKey

__all__ = ["Metrics", "PrometheusMetrics"]

log = logging.getLogger("promptmill.worker")

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 1800, 3600, 14400, 43200, 86400)
"""From one step of a small model to a batch that waited for a day."""
TOKENS_PER_SECOND = (0.5, 1, 2, 5, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1000)
OUTCOMES = ("completed", "failed")
ENDS = ("finished", "returned", "lost", "refused")
PHASES = ("prefill", "decode")
TEXTS = {
    "lines": "Lines that ended on this worker, by outcome.",
    "texts": "Texts generated, by the reason each ended; a line may have several.",
    "line_errors": "Lines that failed, by the code in their error records.",
    "line_retries": "Attempts at lines that failed and were followed by another.",
    "prompt_tokens": "Prompt tokens of the lines that ended.",
    "cached_prompt_tokens": "Prompt tokens of the lines that ended that came from the cache of shared prefixes.",
    "completion_tokens": "Tokens generated for the lines that ended.",
    "generated_tokens": "Tokens generated so far, those of lines in flight included.",
    "decode_rows": "Rows of all decode steps; over promptmill_decode_slots_total it is how full they were.",
    "decode_slots": "Rows that there was room for in all decode steps.",
    "decode_concurrency": "Most lines decoded together.",
    "time_to_first_token_seconds": "From the first chunk of a line's prompt to its first token.",
    "queue_seconds": "How long a line waited in queues, from its batch's submission to the first chunk of its prompt.",
    "decode_seconds": "From a line's first token to its last.",
    "line_tokens_per_second": "Tokens per second of single lines, from their first token on.",
    "lines_in_flight": "Lines under way, by phase.",
    "lines_waiting": "Lines that the worker holds and that have not begun.",
    "queued_shards": "Shards that wait in Redis for workers of this model: every worker that serves it says the same.",
    "shards_taken": "Shards claimed from Redis.",
    "shards_ended": "Shards that the worker is done with, by outcome: finished, returned, lost or refused.",
    "records_delivered": "Records that Redis has taken.",
    "records_undelivered": "Lines that ended and whose records Redis has not taken yet.",
    "model_bytes": "Memory of a model's weights; 0 while it is not loaded.",
    "model_loads": "Times that a model was loaded.",
    "model_unloads": "Times that a model was unloaded.",
    "model_load_failures": "Times that a model could not be loaded.",
    "loading": "1 while a model is being loaded.",
    "memory_used_bytes": "Memory that MLX holds: models, caches and prefixes.",
    "memory_limit_bytes": "Memory for models and their caches; absent where there is no limit.",
    "prefix_cache_bytes": "Memory of the prefixes that prompts share.",
    "redis_outages": "Times that Redis stopped answering, or stopped taking what is written.",
    "redis_silent_seconds": "Seconds since Redis last took the worker's sign of life.",
    "spool_usable": "1 while finished records can be kept on the worker's disk.",
    "draining": "1 while the worker finishes what it has begun, to stop or to start afresh.",
    "paused": "1 while the worker is paused and takes nothing new.",
    "start_time_seconds": "When the worker began, or began afresh, in Unix time.",
    "worker_info": "What worker this is; always 1.",
}
"""Every metric, under ``promptmill_``; counters end in ``_total`` besides."""


class Metrics:
    """Is told what happens on a worker. This one keeps no account of it."""

    def line_ended(self, item: EndedLine | FailedLine, *, ok: bool) -> None:
        """Scribe thread: a record was made of a line."""

    def line_retried(self, group: Group) -> None:
        """Writer thread: an attempt at a line failed, and it gets another one."""

    def shard_taken(self, group: Group) -> None:
        """Main thread: a shard was claimed."""

    def shard_ended(self, group: Group, end: End) -> None:
        """Any thread: a shard is no longer this worker's. Told once of each."""


class PrometheusMetrics(Metrics):
    """Counters and histograms in a registry of their own, and what :meth:`serving` reads of a worker at each scrape.

    ``groups`` are the models served: their series are there from the start, so that the first event counts.

    Raises:
        RefusedError: Prometheus' client library is not installed.
    """

    def __init__(self, groups: Sequence[Group], *, now: Callable[[], float] = time.time) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
        except ImportError:
            message = "--metrics-port needs the package prometheus-client: pip install 'promptmill[worker]'"
            raise RefusedError(message) from None
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series each, of no use to Prometheus
        self.registry: CollectorRegistry = CollectorRegistry()
        self._started_at = now()

        def counter(name: str, *labels: str) -> Counter:
            return Counter(f"promptmill_{name}", TEXTS[name], ("model", *labels), registry=self.registry)

        def histogram(name: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"promptmill_{name}", TEXTS[name], ("model",), registry=self.registry, buckets=buckets)

        self._lines = counter("lines", "outcome")
        self._texts = counter("texts", "stop_reason")
        self._errors = counter("line_errors", "code")
        self._retried = counter("line_retries")
        self._prompt = counter("prompt_tokens")
        self._cached = counter("cached_prompt_tokens")
        self._completion = counter("completion_tokens")
        self._taken = counter("shards_taken")
        self._ended = counter("shards_ended", "outcome")
        self._first = histogram("time_to_first_token_seconds", SECONDS)
        self._queued = histogram("queue_seconds", SECONDS)
        self._decode = histogram("decode_seconds", SECONDS)
        self._speed = histogram("line_tokens_per_second", TOKENS_PER_SECOND)
        for key in [group.key for group in groups]:
            for outcome in OUTCOMES:
                self._lines.labels(key, outcome)
            for end in ENDS:
                self._ended.labels(key, end)
            plain = (self._retried, self._prompt, self._cached, self._completion, self._taken)
            for metric in (*plain, self._first, self._queued, self._decode, self._speed):
                metric.labels(key)

    def line_ended(self, item: EndedLine | FailedLine, *, ok: bool) -> None:
        key = item.held.group.key
        self._lines.labels(key, OUTCOMES[0 if ok else 1]).inc()
        if ok and isinstance(item, EndedLine):
            for sequence in item.finished.sequences:
                self._texts.labels(key, sequence.stop_reason or "cancelled").inc()
            self._observe(key, run_stats(item, item.held))
        else:
            self._errors.labels(key, _code(item)).inc()

    def _observe(self, key: str, stats: RunStats) -> None:
        self._prompt.labels(key).inc(stats.prompt_tokens)
        self._cached.labels(key).inc(stats.cached_tokens)
        self._completion.labels(key).inc(stats.completion_tokens)
        self._first.labels(key).observe(stats.time_to_first_token_s)
        self._queued.labels(key).observe(stats.queue_s)
        self._decode.labels(key).observe(stats.decode_s)
        speed = stats.stats()["tokens_per_second"]
        if speed is not None:
            self._speed.labels(key).observe(speed)

    def line_retried(self, group: Group) -> None:
        self._retried.labels(group.key).inc()

    def shard_taken(self, group: Group) -> None:
        self._taken.labels(group.key).inc()

    def shard_ended(self, group: Group, end: End) -> None:
        self._ended.labels(group.key, (End.RETURNED if end.goes_back else end).value).inc()

    @contextlib.contextmanager
    def serving(self, service: Service, host: str, port: int) -> Iterator[int]:
        """Answer ``GET /metrics`` on ``host`` and ``port`` (0: any free one) as long as the block runs; the port.

        Raises:
            RefusedError: nothing can listen there.
        """
        from prometheus_client import start_http_server

        self.registry.register(_Readings(service, self._started_at))
        # Its threads never take a SIGTERM: only the main thread is asked to stop.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise RefusedError(
                f"metrics cannot be served on {host} port {port}: {error.strerror or error}; give --metrics-port a "
                "free one (0: any), and --metrics-host an address of this machine"
            ) from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        address = f"[{host}]" if ":" in host else host
        log.info("metrics are at http://%s:%d/metrics", address, server.server_port, extra={"action": "metrics"})
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _code(item: EndedLine | FailedLine) -> str:
    if isinstance(item, FailedLine):
        return item.code
    return item.finished.error.code if item.finished.error is not None else "internal_error"


class _Readings:
    """What is read of a worker when Prometheus asks."""

    def __init__(self, service: Service, started_at: float) -> None:
        self._service, self._started_at = service, started_at
        self._version = version("promptmill")

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry would read a worker that is not there yet."""
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from self._process()
        yield from self._engine()
        yield from self._models()
        yield from self._records()

    def _process(self) -> Iterator[Metric]:
        service, pulse = self._service, self._service.pulse
        about = {
            "worker": service.name,
            "name": service.name.rpartition(".")[0],
            "host": socket.gethostname(),
            "version": self._version,
        }
        yield _gauge("worker_info", 1, about)
        yield _gauge("start_time_seconds", self._started_at)
        yield _gauge("draining", service.draining)
        yield _gauge("paused", service.pausing.paused)
        yield _gauge("loading", service.compute.loading is not None)
        yield _counter("redis_outages", pulse.outages)
        yield _gauge("redis_silent_seconds", max(time.time() - pulse.answered_at, 0.0))

    def _engine(self) -> Iterator[Metric]:
        shot, compute = self._service.compute.snapshot, self._service.compute
        yield _counter("generated_tokens", shot.completion_tokens)
        yield _counter("decode_rows", shot.decode_rows)
        yield _counter("decode_slots", shot.decode_slots)
        yield _gauge("memory_used_bytes", shot.memory_bytes)
        if compute.memory_limit is not None:
            yield _gauge("memory_limit_bytes", compute.memory_limit)
        yield _gauge("prefix_cache_bytes", shot.prefix_bytes)

    def _models(self) -> Iterator[Metric]:
        service, compute = self._service, self._service.compute
        groups, loaded = service.settings.groups, share_out(compute.loaded)
        flights: Tally[tuple[str, str]] = Tally()
        for line in compute.snapshot.in_flight:
            job_id, _fence, _index = cast("LineKey", line.key)
            if (held := service.held.get(job_id)) is not None:
                flights[held.group.key, line.phase] += 1
        pairs: dict[tuple[str, ...], float] = {
            (group.key, phase): float(flights[group.key, phase]) for group in groups for phase in PHASES
        }
        yield _labelled("lines_in_flight", ("model", "phase"), pairs)
        queued: dict[tuple[str, ...], float] = {
            (service.turns.group_of(queue).key, queue.split(":", 2)[1]): float(service.turns.lengths.get(queue, 0))
            for queue in service.turns.queues
        }
        yield _labelled("queued_shards", ("model", "priority"), queued)

        def by_model(name: str, value: Callable[[Group], float], *, counting: bool = False) -> Metric:
            return _labelled(name, ("model",), {(group.key,): value(group) for group in groups}, counting=counting)

        yield by_model("lines_waiting", lambda group: compute.waiting(group) + service.intake.unprepared(group))
        yield by_model("decode_concurrency", compute.capacity)
        yield by_model("model_bytes", lambda group: loaded.get(group, 0))
        yield by_model("model_loads", compute.loads.__getitem__, counting=True)
        yield by_model("model_unloads", compute.unloads.__getitem__, counting=True)
        yield by_model("model_load_failures", compute.load_failures.__getitem__, counting=True)

    def _records(self) -> Iterator[Metric]:
        service = self._service
        yield _counter("records_delivered", service.writer.delivered)
        yield _gauge("records_undelivered", service.writer.left)
        if service.spool is not None:
            yield _gauge("spool_usable", service.spool.usable)


def _gauge(name: str, value: float, labels: dict[str, str] | None = None) -> Metric:
    labels = labels or {}
    return _labelled(name, tuple(labels), {tuple(labels.values()): value})


def _counter(name: str, value: float) -> Metric:
    return _labelled(name, (), {(): value}, counting=True)


def _labelled(
    name: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float], *, counting: bool = False
) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    family = (CounterMetricFamily if counting else GaugeMetricFamily)(f"promptmill_{name}", TEXTS[name], labels=labels)
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family
