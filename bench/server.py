"""mlx-lm's server with as many clients as it has rows, over HTTP on this machine."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from bench.models import saved
from bench.task import Measured, Task
from bench.work import CONCURRENCY, Row, make_work, text_of

HOST = "127.0.0.1"
START_S = 120.0
WORK_S = 600.0
"""A request that has no answer by then is counted as failed, so that a server that hangs ends the round."""
WARM_LINES = 2
WARM_TOKENS = 4


def serve(task: Task) -> list[Measured]:
    """The work as requests of :data:`CONCURRENCY` clients. Failed requests are counted, and give no tokens."""
    with _server(task.model) as port:
        for row in make_work(WARM_LINES, task.vocab, -1 - task.seed):
            _ask(port, row, WARM_TOKENS, WORK_S)
        waiting: queue.SimpleQueue[Row] = queue.SimpleQueue()
        for row in task.rows:
            waiting.put(row)
        tokens: list[int] = []
        failures: Counter[str] = Counter()
        began = time.perf_counter()
        clients = [
            threading.Thread(target=_client, args=(port, waiting, task.new_tokens, tokens, failures, began + WORK_S))
            for _ in range(CONCURRENCY)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        seconds = time.perf_counter() - began
    if not tokens:
        raise RuntimeError(f"no request was answered: {dict(failures)}")
    extra = {"failed_requests": failures.total(), "failures": dict(failures)} if failures else {}
    return [Measured("mlx_lm_server", sum(tokens), seconds, task.lines, extra=extra)]


def _client(
    port: int,
    waiting: queue.SimpleQueue[Row],
    new_tokens: int,
    tokens: list[int],
    failures: Counter[str],
    deadline: float,
) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            row = waiting.get_nowait()
            try:
                tokens.append(_ask(port, row, new_tokens, max(0.1, deadline - time.perf_counter())))
            except (OSError, http.client.HTTPException, ValueError) as error:
                failures[type(error).__name__] += 1


def _ask(port: int, row: Row, new_tokens: int, patience: float) -> int:
    """One request; how many tokens came back. No seed: with one, the server takes a request out of its batch."""
    body = {"prompt": text_of(row.prompt), "max_tokens": new_tokens, **row.fields}
    connection = http.client.HTTPConnection(HOST, port, timeout=patience)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        raise ValueError(f"status {response.status}: {answer}")
    usage = answer["usage"]
    if usage["prompt_tokens"] != len(row.prompt):
        raise RuntimeError(f"the server read {usage['prompt_tokens']} tokens of a prompt of {len(row.prompt)}")
    return int(usage["completion_tokens"])


@contextlib.contextmanager
def _server(model: str) -> Iterator[int]:
    """A server on a free port, ready for requests; the port."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(saved(model)), "--host", HOST]
    command += ["--port", str(port), "--decode-concurrency", str(CONCURRENCY), "--log-level", "ERROR"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _wait_until_ready(process, port)
        yield port
    finally:
        process.terminate()
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _wait_until_ready(process: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"mlx_lm.server ended: {process.communicate()[1][-2000:]}")
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(HOST, port, timeout=1)
            connection.request("GET", "/health")
            if connection.getresponse().status == http.HTTPStatus.OK:
                connection.close()
                return
        time.sleep(0.1)
    raise RuntimeError(f"mlx_lm.server was not ready after {START_S:.0f} s")
