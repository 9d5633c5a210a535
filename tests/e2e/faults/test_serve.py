"""The HTTP server, a worker or Redis is killed while clients wait and files are uploaded."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.e2e.faults.conftest import THOROUGH
from tests.e2e.faults.pool import MODEL, Pool
from tests.proxy import Proxy
from tests.servers import free_port
from tests.serving import serving

CLIENTS, UPLOADERS = (500, 5) if THOROUGH else (40, 2)
LINES = 200
AGAIN_S = 0.2
RETRYABLE = (429, 503, 504)
SECONDS = 90.0
LOST: dict[str, Any] = {"lost": True}
BODY = {"model": MODEL, "max_tokens": 2}


class Clients:
    """Clients that send a request again, under its name, until it is answered; and some that make batches of files."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.over = threading.Event()
        self.answered: Counter[str] = Counter()
        self.refused: Counter[int] = Counter()
        self.batches: list[str] = []
        self.data = b""
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CLIENTS)]
        self._threads += [threading.Thread(target=self._upload) for _ in range(UPLOADERS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(SECONDS)
        assert not any(thread.is_alive() for thread in self._threads), "somebody was never answered"

    def _ask(self, client: int) -> None:
        count = 0
        with httpx.Client(base_url=self._url, timeout=30) as http:
            while not self.over.is_set():
                count += 1
                name = f"{client}-{count}"
                body = {**BODY, "prompt": name}
                if self._answered(http, "/completions", json=body, headers={"Idempotency-Key": name}):
                    self.answered[name] += 1

    def _answered(self, http: httpx.Client, path: str, **request: object) -> httpx.Response | None:
        """The answer to a request that is sent until there is one; None for a refusal."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                answer = http.post(path, **request)  # type: ignore[arg-type]
                if answer.status_code == 200:
                    return answer
                if answer.status_code not in RETRYABLE:
                    self.refused[answer.status_code] += 1
                    return None
            self.over.wait(AGAIN_S)
        raise AssertionError(f"{path} was never answered")

    def _upload(self) -> None:
        url = "/v1/completions"
        lines = [
            {
                "custom_id": f"row-{n}",
                "method": "POST",
                "url": url,
                "body": {"model": MODEL, "prompt": f"{n}", "max_tokens": 2},
            }
            for n in range(LINES)
        ]
        data = self.data = "\n".join(map(json.dumps, lines)).encode()
        with httpx.Client(base_url=self._url, timeout=30) as http:
            while not self.over.is_set():
                file = self._answered(http, "/files", files={"file": ("x.jsonl", data)}, data={"purpose": "batch"})
                if file is not None:
                    order = {"input_file_id": file.json()["id"], "endpoint": url, "completion_window": "1h"}
                    batch = self._answered(http, "/batches", json=order)
                    if batch is not None:
                        self.batches.append(batch.json()["id"])
                self.over.wait(1)


@pytest.mark.faults
@pytest.mark.parametrize("victim", ["server", "one of two servers", "worker", "redis"])
def test_killed_while_clients_wait(victim: str, pool: Pool, tmp_path: Path) -> None:
    """Each request is answered in the end, each file is whole, and each line of each batch runs once."""
    port, files = free_port(), tmp_path / "files"
    first, second = pool.worker(), pool.worker()
    pool.ready(first, second)
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(serving(pool.server.url, files, port=port))
        url = f"http://127.0.0.1:{port}/v1"
        if victim == "one of two servers":
            other = stack.enter_context(serving(pool.server.url, files))
            places = [urlsplit(server.url).netloc for server in (served, other)]
            proxy = stack.enter_context(contextlib.closing(Proxy(*(f"tcp://{place}" for place in places))))
            url = f"http://{urlsplit(proxy.url).netloc}/v1"
        clients = Clients(url)
        clients.start()
        pool.until(lambda: len(clients.answered) > CLIENTS and clients.batches, "clients are answered")
        before = len(clients.answered)
        if victim == "worker":
            first.signal(signal.SIGKILL)
        elif victim == "redis":
            pool.server.kill()
            pool.server.start()
        else:
            served.process.kill()
            served.process.wait()
            if victim == "server":
                stack.enter_context(serving(pool.server.url, files, port=port))
        pool.until(lambda: len(clients.answered) > before + 2 * CLIENTS, "clients are answered again")
        clients.join()
        assert not clients.refused
        with httpx.Client(base_url=url, timeout=30) as http:
            check_files(http, clients)
            for batch_id in clients.batches:
                batch = pool.until(lambda name=batch_id: ended(http, name), f"{batch_id} ends")
                if batch == LOST and victim == "redis":
                    continue  # it was in the last second, which a server that is killed may lose
                assert batch["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
                content = http.get(f"/files/{batch['output_file_id']}/content").text
                found = Counter(json.loads(line)["custom_id"] for line in content.splitlines())
                assert found == Counter(f"row-{n}" for n in range(LINES))


def check_files(http: httpx.Client, clients: Clients) -> None:
    """Every file that is listed, whether its upload was answered or not, has all its bytes."""
    for file in http.get("/files", params={"purpose": "batch"}).json()["data"]:
        assert http.get(f"/files/{file['id']}/content").content == clients.data


def ended(http: httpx.Client, batch_id: str) -> dict[str, Any] | None:
    """The batch, once it is completed; LOST where nobody knows it."""
    answer = http.get(f"/batches/{batch_id}")
    if answer.status_code == 404:
        return LOST
    batch: dict[str, Any] = answer.json()
    return batch if batch["status"] == "completed" else None
