"""What a real worker tells Prometheus, and what a real Prometheus, the dashboard and the alerts make of it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs.store.store import Store
from submit.client.client import Client
from tests.programs import needs
from tests.servers import free_port
from tests.waiting import until

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MODEL = str(ROOT / "examples" / "pocket" / "model")
DEADLINE_S = 90.0
METRIC = re.compile(r"promptmill_[a-z_]+")


class Worker:
    """A worker's process, its log, and its metrics."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.log = folder / "worker.log"
        command = [sys.executable, "-P", "-m", "worker", "--model", MODEL, "--name", "mini", *flags]
        environment = {**os.environ, "PROMPTMILL_DATA_DIR": str(folder / "data"), "PYTHONPATH": str(ROOT)}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)

    def port(self) -> int:
        """The port that it says its metrics are at."""
        found = until(lambda: re.search(r"http://127\.0\.0\.1:(\d+)/metrics", self.log.read_text()), "it says a port")
        return int(found[1])

    def scrape(self) -> str:
        return get(f"http://127.0.0.1:{self.port()}/metrics")

    def value(self, name: str, /, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        return value(self.scrape(), name, **labels)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)


StartWorker = Callable[..., Worker]


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as reply:
        return str(reply.read().decode())


def samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for family in text_string_to_metric_families(text):
        yield from ((sample.name, sample.labels, sample.value) for sample in family.samples)


def value(text: str, name: str, /, **labels: str) -> float:
    found = [number for sample, own, number in samples(text) if sample == name and labels.items() <= own.items()]
    assert found, f"{name} with {labels} is not told"
    return sum(found)


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """Start a worker on the pocket model; it is gone at the end of the test."""
    started: list[Worker] = []

    def start(*flags: str) -> Worker:
        started.append(Worker(tmp_path, *flags))
        return started[-1]

    yield start
    for worker in started:
        worker.process.kill()
        worker.process.wait()


@pytest.fixture
def busy_worker(start_worker: StartWorker, server_url: str) -> Worker:
    """A worker that has run a batch of three lines, of which one fails."""
    worker = start_worker("--redis", server_url, "--metrics-port", "0", "--memory-limit", "2G")
    lines: list[dict[str, Any]] = [
        {"prompt": "Once upon a time", "max_tokens": 5, "ignore_eos": True},
        {"prompt": "The sea is", "n": 2, "max_tokens": 7, "ignore_eos": True},
        {"prompt": "word " * 3000},
    ]
    with Client(server_url) as client:
        batch = client.submit(lines, model=MODEL)
        batch.wait(timeout=DEADLINE_S)
    until(lambda: worker.value("promptmill_shards_ended_total", outcome="finished") == 1, "its shard is done")
    until(lambda: worker.value("promptmill_lines_in_flight") == 0, "the engine has come to rest")
    return worker


def expressions(node: Any) -> Iterator[str]:
    """The queries of the dashboard, with its variables set to everything."""
    if isinstance(node, dict):
        if "expr" in node:
            yield str(node["expr"]).replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$model", ".*")
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from expressions(item)


def dashboard() -> Any:
    return orjson.loads((DEPLOY / "grafana" / "promptmill.json").read_bytes())


def rules() -> str:
    return (DEPLOY / "prometheus" / "alerts.yml").read_text()


def test_a_worker_counts_what_it_did(busy_worker: Worker) -> None:
    """Lines, texts, tokens, times and what it holds, as the batch's records say."""
    text = busy_worker.scrape()
    assert value(text, "promptmill_lines_total", outcome="completed", model=MODEL) == 2
    assert value(text, "promptmill_lines_total", outcome="failed") == 1
    assert value(text, "promptmill_texts_total", stop_reason="max_tokens") == 3
    assert value(text, "promptmill_line_errors_total", code="context_length_exceeded") == 1
    assert value(text, "promptmill_completion_tokens_total") == 19
    assert value(text, "promptmill_generated_tokens_total") == 19
    assert value(text, "promptmill_prompt_tokens_total") > 0
    assert value(text, "promptmill_time_to_first_token_seconds_count") == 2
    assert 0 < value(text, "promptmill_time_to_first_token_seconds_sum") < DEADLINE_S
    assert value(text, "promptmill_queue_seconds_count") == 2
    assert value(text, "promptmill_shards_taken_total") == 1
    assert value(text, "promptmill_shards_ended_total", outcome="finished") == 1
    assert value(text, "promptmill_model_loads_total") == 1
    assert value(text, "promptmill_model_bytes") > 10**6
    assert value(text, "promptmill_memory_used_bytes") >= value(text, "promptmill_model_bytes")
    assert value(text, "promptmill_memory_limit_bytes") == 2 * 2**30
    assert value(text, "promptmill_lines_in_flight") == value(text, "promptmill_lines_waiting") == 0
    assert value(text, "promptmill_records_delivered_total") == 3
    assert value(text, "promptmill_records_undelivered") == value(text, "promptmill_redis_outages_total") == 0
    assert value(text, "promptmill_worker_info", name="mini", worker=f"mini.{busy_worker.process.pid}") == 1
    assert 0 < value(text, "promptmill_decode_rows_total") <= value(text, "promptmill_decode_slots_total")
    assert "b_0" not in text  # no series is of a batch
    assert busy_worker.stop() == 0


def test_the_dashboard_the_alerts_and_the_table_name_what_there_is(busy_worker: Worker) -> None:
    """Every metric that they name is told by a worker, and every one that is told stands in the table."""
    text = busy_worker.scrape()
    told = {name for name, _, _ in samples(text)}
    used = {name for query in expressions(dashboard()) for name in METRIC.findall(query)}
    assert len(used) > 25
    assert used - told == set()
    assert set(METRIC.findall(rules())) - told == set()
    table = (DEPLOY / "prometheus" / "README.md").read_text()
    families = {re.sub("_(bucket|count|sum)$", "", name) for name in told if name.startswith("promptmill_")}
    assert set(re.findall(r"`(promptmill_[a-z_]+)`", table)) == families


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """Its panels take their data from its variable, have places and ids of their own, and titles."""
    board = dashboard()
    names = [variable["name"] for variable in board["templating"]["list"]]
    assert names == ["datasource", "instance", "model"]
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    assert all(panel["title"] and panel["targets"] for panel in panels)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places)


@needs("promtool")
def test_promtool_accepts_metrics_rules_and_settings(busy_worker: Worker) -> None:
    """Names, help texts and types follow Prometheus' conventions."""
    for arguments, given in (
        (["check", "metrics"], busy_worker.scrape()),
        (["check", "rules", "deploy/prometheus/alerts.yml"], ""),
        (["check", "config", "deploy/prometheus/prometheus.yml"], ""),
        (["test", "rules", "tests/e2e/alerts.test.yml"], ""),
    ):
        done = subprocess.run(["promtool", *arguments], input=given, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


@needs("prometheus")
def test_a_prometheus_finds_the_worker_and_answers_the_dashboard(busy_worker: Worker, tmp_path: Path) -> None:
    """Its target is up, every query is valid, and the worker's lines are in its store."""
    settings = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    targets = re.compile(r"targets:\n(?: {10,}.*\n)+", re.MULTILINE)
    assert targets.search(settings)
    settings = targets.sub(f'targets: ["127.0.0.1:{busy_worker.port()}"]\n', settings).replace("15s", "1s")
    (tmp_path / "prometheus.yml").write_text(settings)
    (tmp_path / "alerts.yml").write_text(rules())
    port = free_port()
    api = f"http://127.0.0.1:{port}/api/v1"
    command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=store", "--log.level=warn"]
    command.append(f"--web.listen-address=127.0.0.1:{port}")

    def ask(query: str) -> Any:
        return orjson.loads(get(f"{api}/query?{urllib.parse.urlencode({'query': query})}"))["data"]["result"]

    def ready() -> bool:
        try:
            targets = orjson.loads(get(f"{api}/targets"))["data"]["activeTargets"]
        except (urllib.error.URLError, OSError):
            return False
        return [target["health"] for target in targets] == ["up"]

    with (tmp_path / "prometheus.log").open("wb") as output:
        prometheus = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output)
    try:
        until(ready, "the target is up")
        until(lambda: ask("promptmill_lines_total"), "its metrics are there")
        lines = {sample["metric"]["outcome"]: sample["value"][1] for sample in ask("promptmill_lines_total")}
        assert lines == {"completed": "2", "failed": "1"}
        until(lambda: ask("rate(promptmill_lines_total[1m])"), "there are rates")
        for query in expressions(dashboard()):
            ask(query)  # a query that is none is answered by 400
        loaded = orjson.loads(get(f"{api}/rules"))["data"]["groups"]
        assert len(loaded[0]["rules"]) == rules().count("- alert:")
    finally:
        prometheus.terminate()
        prometheus.wait(20)


def test_a_recycled_worker_serves_its_metrics_again(start_worker: StartWorker, server_url: str) -> None:
    """On the same port, under the same process id; its counters begin anew."""
    port = free_port()
    worker = start_worker("--redis", server_url, "--metrics-port", str(port), "--recycle-after-tokens", "20")
    first = until(lambda: METRIC.search(worker.scrape()) and worker.value("promptmill_start_time_seconds"), "it began")
    with Client(server_url) as client:
        batch = client.submit([{"prompt": "Once", "max_tokens": 40, "ignore_eos": True}], model=MODEL)
        batch.wait(timeout=DEADLINE_S)

    def began_anew() -> bool:
        try:
            return worker.value("promptmill_start_time_seconds") > (first or 0.0)
        except (OSError, HTTPException):  # nobody listens in between, or nobody any more
            return False

    until(began_anew, "it serves them again")
    assert worker.value("promptmill_worker_info", worker=f"mini.{worker.process.pid}") == 1
    assert worker.value("promptmill_lines_total") == 0
    assert worker.stop() == 0


def test_the_worker_of_a_run_is_no_daemon(
    start_worker: StartWorker, server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings for this machine's workers do not take the port from them, nor its log from `promptmill run`."""
    monkeypatch.setenv("PROMPTMILL_WORKER_METRICS_PORT", "0")
    monkeypatch.setenv("PROMPTMILL_WORKER_LOG_FORMAT", "json")
    monkeypatch.setenv("PROMPTMILL_WORKER_LOG_FILE", str(tmp_path / "daemon.log"))
    worker = start_worker("--redis", server_url, "--exit-with-parent", str(os.getpid()), "--burst")
    assert worker.process.wait(DEADLINE_S) == 0
    assert re.search(r"^\S+ INFO mini\.\d+ serves", worker.log.read_text(), re.MULTILINE)
    assert "/metrics" not in worker.log.read_text()
    assert not (tmp_path / "daemon.log").exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1", "nowhere.invalid"])
def test_a_port_that_cannot_be_had_ends_the_worker_before_it_loads(
    start_worker: StartWorker, server_url: str, store: Store, host: str
) -> None:
    """It is somebody else's, or the address is; the message names the flags, and the status is 2."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        worker = start_worker("--redis", server_url, "--metrics-port", str(port), "--metrics-host", host)
        assert worker.process.wait(DEADLINE_S) == 2
    said = worker.log.read_text()
    assert f"metrics cannot be served on {host} port {port}: " in said
    assert "--metrics-port" in said
    assert "loaded" not in said
    assert "Traceback" not in said
