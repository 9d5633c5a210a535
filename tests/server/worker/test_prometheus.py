"""What a worker counts for Prometheus when things go wrong, on a real server and without an engine."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from jobs.shard import Group
from jobs.store.store import Store
from tests.pool import MODEL, make_batch, prompts
from tests.servers import Server
from tests.waiting import until
from worker.engine.sequence import Failure, InFlight
from worker.health.prometheus import PrometheusMetrics
from worker.service import Service, ServiceSettings
from worker.shards.claimed import HeldShard
from worker.shards.records import EndedLine

GROUP = Group(MODEL)
ROOT = Path(__file__).parents[3]


@pytest.fixture
def metrics() -> PrometheusMetrics:
    return PrometheusMetrics([GROUP])


@pytest.fixture
def service(store: Store, server_url: str, metrics: PrometheusMetrics, opened: Callable[..., Redis]) -> Service:
    """A worker for MODEL whose threads are not started."""
    settings = ServiceSettings((GROUP,), name="mini")
    return Service(store.connection, opened(server_url), settings, observer=metrics)


def take(service: Service) -> HeldShard:
    """Take a shard; the one that the worker now holds."""
    before = set(service.held._shards)
    assert service._take_one()
    [job_id] = set(service.held._shards) - before
    return service.held._shards[job_id]


def write_all(service: Service) -> None:
    """Let the writer store what it was given."""
    service.writer.stop()
    service.writer.run()


def counted(metrics: PrometheusMetrics, name: str, **labels: str) -> float | None:
    """A sample's value; None where there is no such series."""
    return metrics.registry.get_sample_value(f"promptmill_{name}", {"model": MODEL, **labels})


def read(metrics: PrometheusMetrics, name: str) -> float | None:
    """The same, of a metric without labels."""
    return metrics.registry.get_sample_value(f"promptmill_{name}")


def ended(held: HeldShard, index: int, failure: Failure | None) -> EndedLine:
    return EndedLine(held, index, 0.0, failure)


def test_series_are_there_before_the_first_event(metrics: PrometheusMetrics) -> None:
    """Else the first one would be no increase."""
    assert counted(metrics, "lines_total", outcome="failed") == 0
    assert counted(metrics, "shards_ended_total", outcome="lost") == 0
    assert counted(metrics, "queue_seconds_count") == 0


def test_failures_are_counted_by_code_and_attempts_that_failed_apart(
    store: Store, service: Service, metrics: PrometheusMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that gets another attempt has not ended."""
    monkeypatch.setattr(service, "_retry", lambda held, index: None)
    service.writer._on_retry = lambda held, index: None
    make_batch(store, prompts(3))
    held = take(service)
    service.writer.put(EndedLine(held, 0, 0.0, Failure("out_of_range", "no")))
    service.writer.put(ended(held, 1, Failure("context_length_exceeded", "no")))
    service.writer.put(ended(held, 2, Failure("internal_error", "no", passing=True)))
    write_all(service)
    assert counted(metrics, "lines_total", outcome="failed") == 2
    assert counted(metrics, "line_errors_total", code="out_of_range") == 1
    assert counted(metrics, "line_errors_total", code="context_length_exceeded") == 1
    assert counted(metrics, "line_retries_total") == 1
    assert service.writer.delivered == 2
    assert service.writer.left == 0


def test_shards_are_counted_by_how_they_end(store: Store, service: Service, metrics: PrometheusMetrics) -> None:
    """Finished, handed back, lost to another worker: each once."""
    for _ in range(3):
        make_batch(store, prompts(1))
    finished, returned, lost = (take(service) for _ in range(3))
    service.writer.put(EndedLine(finished, 0, 0.0, Failure("internal_error", "no")))
    write_all(service)
    service._return(returned)
    service.abandon(lost, lost.attempt)
    outcomes = ("finished", "returned", "lost", "refused")
    assert [counted(metrics, "shards_ended_total", outcome=outcome) for outcome in outcomes] == [1, 1, 1, 0]
    assert counted(metrics, "shards_taken_total") == 3


def test_an_end_that_several_threads_come_to_is_counted_once(
    store: Store, service: Service, metrics: PrometheusMetrics
) -> None:
    """Let go in the middle of being handed back, refused to the writer, and handed back again: it has ended once."""
    make_batch(store, prompts(1))
    held = take(service)
    release, released = service.store.release, []

    def release_slowly(*arguments: Any) -> bool:
        service.abandon(held, held.attempt)
        released.append(release(*arguments))
        service.writer.put(EndedLine(held, 0, 0.0, Failure("internal_error", "no")))
        write_all(service)
        return True

    service.store.release = release_slowly  # type: ignore[method-assign]
    assert service._return(held)
    assert service._return(held)
    assert released == [True]
    outcomes = ("finished", "returned", "lost", "refused")
    assert [counted(metrics, "shards_ended_total", outcome=outcome) for outcome in outcomes] == [0, 1, 0, 0]
    assert service.writer.left == 0


def test_lines_under_way_are_read_at_the_scrape(store: Store, service: Service, metrics: PrometheusMetrics) -> None:
    """By model and phase; what is no longer held is left out, and no series is of a batch."""
    batch = make_batch(store, prompts(3))
    held = take(service)
    flights = [InFlight(held.key(0), "decode", 4, 4, 7), InFlight(held.key(1), "prefill", 4, 2, 0)]
    flights.append(InFlight(("b_gone-0", 1, 0), "decode", 4, 4, 1))
    shot: Any = service.compute.snapshot
    service.compute.snapshot = type(shot)(in_flight=tuple(flights), prefix_bytes=11, completion_tokens=8)
    with metrics.serving(service.readings, service.heartbeat, "127.0.0.1", 0):
        assert counted(metrics, "lines_in_flight", phase="decode") == 1
        assert counted(metrics, "lines_in_flight", phase="prefill") == 1
        assert read(metrics, "prefix_cache_bytes") == 11
        assert read(metrics, "generated_tokens_total") == 8
        assert read(metrics, "memory_limit_bytes") is None
        series = [sample.labels for family in metrics.registry.collect() for sample in family.samples]
        assert not [labels for labels in series if batch in str(labels)]
        service.pause.paused = True
        assert read(metrics, "paused") == 1


def test_outages_of_redis_are_counted(
    server: Server, metrics: PrometheusMetrics, opened: Callable[..., Redis], caplog: pytest.LogCaptureFixture
) -> None:
    """Once each, however many beats they last; the log says when one begins and when it ends."""
    settings = ServiceSettings((GROUP,), name="mini")
    pulse_connection = opened(server.url, timeout_s=1.0, retries=0)
    service = Service(opened(server.url), pulse_connection, settings, observer=metrics)
    service.rq.start()
    beats: list[None] = []
    beat = service.heartbeat._beat

    def counting() -> None:
        beats.append(None)
        beat()

    service.heartbeat._beat = counting  # type: ignore[method-assign]
    with metrics.serving(service.readings, service.heartbeat, "127.0.0.1", 0):
        service.heartbeat.start()
        until(lambda: len(beats) > 1, "it beats")
        server.stop()
        until(lambda: read(metrics, "redis_outages_total") == 1, "the outage is counted")
        missed = len(beats)
        until(lambda: len(beats) > missed + 2, "it missed more of them")
        silent = read(metrics, "redis_silent_seconds") or 0.0
        assert silent > 0
        server.start()
        until(lambda: (read(metrics, "redis_silent_seconds") or 0.0) < silent, "Redis is back")
        assert read(metrics, "redis_outages_total") == 1
        service.heartbeat.stop()
    said = [getattr(record, "action", None) for record in caplog.records]
    assert [action for action in said if str(action).startswith("pulse_")] == ["pulse_missed", "pulse_taken"]
    service.rq.end()


def test_its_threads_take_no_signal_that_is_held_back() -> None:
    """A SIGTERM while the worker starts itself afresh waits for its next life."""
    script = """
import os, signal
from worker.health.prometheus import PrometheusMetrics
with PrometheusMetrics([]).serving(None, None, "127.0.0.1", 0):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.kill(os.getpid(), signal.SIGTERM)
    print(signal.SIGTERM in signal.sigpending())
"""
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # numpy's threads, which are not ours, take signals
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.fixture
def without_library() -> Iterator[None]:
    """As where the library is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "prometheus_client", None)
        yield


@pytest.mark.usefixtures("without_library")
def test_a_missing_library_is_named() -> None:
    """With what installs it."""
    from jobs.errors import RefusedError

    with pytest.raises(RefusedError, match=r"pip install 'promptmill\[worker\]'"):
        PrometheusMetrics([GROUP])


def test_where_it_listens_is_logged(
    service: Service, metrics: PrometheusMetrics, caplog: pytest.LogCaptureFixture
) -> None:
    """An address of IPv6 in brackets."""
    caplog.set_level(logging.INFO, "promptmill")
    with metrics.serving(service.readings, service.heartbeat, "127.0.0.1", 0) as port:
        assert f"http://127.0.0.1:{port}/metrics" in caplog.text
