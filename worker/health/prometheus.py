"""What a worker tells Prometheus: events are counted where records are made, everything else is read at the scrape.

The compute thread takes no part in it. Series are labelled by the keys of the models that the worker serves and by
values of the contract, never by batches or lines: their number is bounded. All names begin with ``promptmill_``, and
those of counters end in ``_total``.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, cast

from jobs.errors import RefusedError
from worker.health.recycle import HELD_BACK
from worker.models.residency import share_out
from worker.shards.claimed import End
from worker.shards.records import EndedLine, Observer, run_stats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from jobs.shard import Group
    from worker.health.heartbeat import Heartbeat
    from worker.health.readings import WorkerReadings
    from worker.shards.claimed import LineKey

log = logging.getLogger("promptmill.worker")

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 1800, 3600, 14400, 43200, 86400)
"""From one step of a small model to a batch that waited for a day."""
TOKENS_PER_SECOND = (0.5, 1, 2, 5, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1000)
PHASES = ("prefill", "decode")
Series = Mapping[tuple[str, ...], float]
"""Values by those of the labels."""


class PrometheusMetrics(Observer):
    """Counters and histograms in a registry of their own, and what :meth:`serving` reads of a worker at each scrape.
    Threads: any; the client library's metrics have their locks.

    ``groups`` are the models served: their series are there from the start, so that the first event counts.

    Raises:
        RefusedError: Prometheus' client library is not installed.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
        except ImportError:
            message = "--metrics-port needs the package prometheus-client: pip install 'promptmill[worker]'"
            raise RefusedError(message) from None
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series each, of no use to Prometheus
        self.registry: CollectorRegistry = CollectorRegistry()
        keys = [group.key for group in groups]

        def counter(name: str, text: str, label: str | None = None, values: Sequence[str] = ()) -> Counter:
            labels = ("model",) if label is None else ("model", label)
            metric = Counter(f"promptmill_{name}", text, labels, registry=self.registry)
            for key in keys:
                for value in values:
                    metric.labels(key, value)
                if label is None:
                    metric.labels(key)
            return metric

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            metric = Histogram(f"promptmill_{name}", text, ("model",), registry=self.registry, buckets=buckets)
            for key in keys:
                metric.labels(key)
            return metric

        text = "Lines that ended on this worker, by outcome."
        self._lines = counter("lines", text, "outcome", ("completed", "failed"))
        text = "Texts generated, by the reason each ended; a line may have several."
        self._texts = counter("texts", text, "stop_reason")
        self._errors = counter("line_errors", "Lines that failed, by the code in their error records.", "code")
        self._retried = counter("line_retries", "Attempts at lines that failed and were followed by another.")
        self._prompt = counter("prompt_tokens", "Prompt tokens of the lines that ended.")
        text = "Prompt tokens of the lines that ended that came from the cache of shared prefixes."
        self._cached = counter("cached_prompt_tokens", text)
        self._completion = counter("completion_tokens", "Tokens generated for the lines that ended.")
        text = "Tokens of texts that were there which got log-probabilities, of the lines that ended."
        self._scored = counter("scored_tokens", text)
        self._taken = counter("shards_taken", "Shards claimed from Redis.")
        text = "Shards that the worker is done with, by outcome: finished, returned, lost or refused."
        self._ended = counter("shards_ended", text, "outcome", [end.value for end in End])
        text = "From the first chunk of a line's prompt to its first token."
        self._first = histogram("time_to_first_token_seconds", text, SECONDS)
        text = "How long a line waited in queues, from its batch's submission to the first chunk of its prompt."
        self._queued = histogram("queue_seconds", text, SECONDS)
        self._decode = histogram("decode_seconds", "From a line's first token to its last.", SECONDS)
        text = "Tokens per second of single lines, from their first token on."
        self._speed = histogram("line_tokens_per_second", text, TOKENS_PER_SECOND)

    def line_ended(self, line: EndedLine, *, ok: bool) -> None:
        key = line.held.group.key
        self._lines.labels(key, "completed" if ok else "failed").inc()
        if not ok:
            code = line.failure.code if line.failure is not None else "internal_error"
            self._errors.labels(key, code).inc()
            return
        for sequence in line.sequences:
            self._texts.labels(key, sequence.stop_reason or "cancelled").inc()
        stats = run_stats(line)
        self._prompt.labels(key).inc(stats.prompt_tokens)
        self._cached.labels(key).inc(stats.cached_tokens)
        self._completion.labels(key).inc(stats.completion_tokens)
        self._scored.labels(key).inc(stats.scored_tokens)
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
        self._ended.labels(group.key, end.value).inc()

    @contextlib.contextmanager
    def serving(self, readings: WorkerReadings, heartbeat: Heartbeat, host: str, port: int) -> Iterator[int]:
        """Answer ``GET /metrics`` on ``host`` and ``port`` (0: any free one) as long as the block runs; the port.

        Raises:
            RefusedError: nothing can listen there.
        """
        from prometheus_client import start_http_server

        self.registry.register(_Collector(readings, heartbeat))
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


class _Collector:
    """What is read of a worker when Prometheus asks. Threads: those of the metrics' server."""

    def __init__(self, readings: WorkerReadings, heartbeat: Heartbeat) -> None:
        self._readings, self._heartbeat = readings, heartbeat

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry would read a worker that is not there yet."""
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from self._process()
        yield from self._engines()
        yield from self._models()
        yield from self._records()

    def _process(self) -> Iterator[Metric]:
        readings, heartbeat = self._readings, self._heartbeat
        about = {
            "worker": readings.name,
            "name": readings.name.rpartition(".")[0],
            "host": socket.gethostname(),
            "version": readings.version,
        }
        yield _labelled("worker_info", "What worker this is; always 1.", tuple(about), {tuple(about.values()): 1})
        yield _gauge("start_time_seconds", "When the worker began, or began afresh, in Unix time.", readings.started_at)
        text = "1 while the worker finishes what it has begun, to stop or to start afresh."
        yield _gauge("draining", text, readings.draining())
        yield _gauge("paused", "1 while the worker is paused and takes nothing new.", readings.pause.paused)
        yield _gauge("loading", "1 while a model is being loaded.", readings.compute.loading is not None)
        text = "Times that Redis stopped answering, or stopped taking what is written."
        yield _counter("redis_outages", text, heartbeat.outages)
        text = "Seconds since Redis last took the worker's sign of life."
        yield _gauge("redis_silent_seconds", text, max(time.time() - heartbeat.answered_at, 0.0))

    def _engines(self) -> Iterator[Metric]:
        shot, limit = self._readings.compute.snapshot, self._readings.compute.memory_limit
        text = "Tokens generated so far, those of lines in flight included."
        yield _counter("generated_tokens", text, shot.completion_tokens)
        text = "Rows of all decode steps; over promptmill_decode_slots_total it is how full they were."
        yield _counter("decode_rows", text, shot.decode_rows)
        yield _counter("decode_slots", "Rows that there was room for in all decode steps.", shot.decode_slots)
        text = "Rows taken out because the memory for caches ran out, to go on later."
        yield _counter("preempted_rows", text, shot.preempted_rows)
        text = "Memory that MLX holds: models, caches and prefixes."
        yield _gauge("memory_used_bytes", text, shot.memory_bytes)
        if limit is not None:
            text = "Memory for models and their caches; absent where there is no limit."
            yield _gauge("memory_limit_bytes", text, limit)
        yield _gauge("prefix_cache_bytes", "Memory of the prefixes that prompts share.", shot.prefix_bytes)

    def _models(self) -> Iterator[Metric]:
        readings, compute, order = self._readings, self._readings.compute, self._readings.order
        loaded = share_out(compute.loaded)
        in_flight: Tally[tuple[str, str]] = Tally()
        for line in compute.snapshot.in_flight:
            if (held := readings.held.of_line(cast("LineKey", line.key))) is not None:
                in_flight[held.group.key, line.phase] += 1
        phases: Series = {
            (group.key, phase): in_flight[group.key, phase] for group in readings.groups for phase in PHASES
        }
        yield _labelled("lines_in_flight", "Lines under way, by phase.", ("model", "phase"), phases)
        text = "Shards that wait in Redis for workers of this model: every worker that serves it says the same."
        queued: Series = {
            (order.group_of(queue).key, queue.split(":", 2)[1]): order.lengths.get(queue, 0) for queue in order.queues
        }
        yield _labelled("queued_shards", text, ("model", "priority"), queued)

        def by_model(name: str, text: str, value: Callable[[Group], float], *, counts: bool = False) -> Metric:
            return _labelled(name, text, ("model",), {(group.key,): value(group) for group in readings.groups}, counts)

        def waiting(group: Group) -> int:
            return compute.waiting(group) + readings.preparer.unprepared(group)

        yield by_model("lines_waiting", "Lines that the worker holds and that have not begun.", waiting)
        yield by_model("decode_concurrency", "Most lines decoded together.", compute.capacity)
        text = "Memory of a model's weights; 0 while it is not loaded."
        yield by_model("model_bytes", text, lambda group: loaded.get(group, 0))
        yield by_model("model_loads", "Times that a model was loaded.", compute.loads.__getitem__, counts=True)
        yield by_model("model_unloads", "Times that a model was unloaded.", compute.unloads.__getitem__, counts=True)
        text = "Times that a model could not be loaded."
        yield by_model("model_load_failures", text, compute.load_failures.__getitem__, counts=True)

    def _records(self) -> Iterator[Metric]:
        writer, spool = self._readings.writer, self._readings.spool
        yield _counter("records_delivered", "Records that Redis has taken.", writer.delivered)
        text = "Lines that ended and whose records Redis has not taken yet."
        yield _gauge("records_undelivered", text, writer.left)
        if spool is not None:
            text = "1 while finished records can be kept on the worker's disk."
            yield _gauge("spool_usable", text, spool.usable)


def _gauge(name: str, text: str, value: float) -> Metric:
    return _labelled(name, text, (), {(): value})


def _counter(name: str, text: str, value: float) -> Metric:
    return _labelled(name, text, (), {(): value}, counts=True)


def _labelled(name: str, text: str, labels: tuple[str, ...], values: Series, counts: bool = False) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    family = (CounterMetricFamily if counts else GaugeMetricFamily)(f"promptmill_{name}", text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family
