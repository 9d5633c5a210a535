"""What a server takes in and answers: a large file, many requests at once, one after the other."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from redis import Redis

from bench.serve.clients import COMPLETIONS, HEAD, Connection, completion, post
from jobs.record_head import whole
from jobs.store.shard_records import ShardRecords, loaded

BLOCK = 1 << 20
POLL_S = 0.2
PAUSE_S = 0.13
"""Between two requests of who asks alone: the worker is idle meanwhile."""
WARM = 3


@dataclass(frozen=True, slots=True)
class Upload:
    """A file's upload and its check, in seconds, and its size."""

    lines: int
    size: int
    upload_s: float
    check_s: float

    @property
    def rate(self) -> float:
        """Lines per second from the first byte of the upload to ``in_progress``."""
        return self.lines / (self.upload_s + self.check_s)


def write_lines(path: Path, lines: int, model: str) -> None:
    """A file of lines of about 500 bytes."""
    padding = "x" * 326
    with path.open("w", encoding="utf-8") as file:
        for number in range(lines):
            body = {"model": model, "prompt": f"{padding} {number}", "max_tokens": 64, "temperature": 0.7}
            line = {"custom_id": f"row-{number}", "method": "POST", "url": COMPLETIONS, "body": body}
            file.write(json.dumps(line) + "\n")


async def upload(url: str, path: Path, lines: int) -> Upload:
    """Upload a file and make a batch of it.

    Raises:
        RuntimeError: when the batch does not come to run.
    """
    connection = await Connection.to(url)
    size = path.stat().st_size
    disposition = 'Content-Disposition: form-data; name="{}"'
    begin = f"--B\r\n{disposition.format('purpose')}\r\n\r\nbatch\r\n--B\r\n{disposition.format('file')}; "
    begin += 'filename="x.jsonl"\r\n\r\n'
    end = "\r\n--B--\r\n"
    kind = "Content-Type: multipart/form-data; boundary=B"
    began = time.perf_counter()
    await connection.send(
        f"POST /v1/files HTTP/1.1\r\n{HEAD}{kind}\r\n"
        f"Content-Length: {len(begin) + size + len(end)}\r\n\r\n{begin}".encode()
    )
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            await connection.send(block)
    status, said = await connection.ask(end.encode())
    uploaded = time.perf_counter()
    order = {"input_file_id": json.loads(said).get("id"), "endpoint": COMPLETIONS, "completion_window": "24h"}
    _, said = await connection.ask(post("/v1/batches", json.dumps(order).encode()))
    batch = json.loads(said)
    while batch.get("status") == "validating":
        await asyncio.sleep(POLL_S)
        _, said = await connection.ask(f"GET /v1/batches/{batch['id']} HTTP/1.1\r\n{HEAD}\r\n".encode())
        batch = json.loads(said)
    connection.close()
    if status != 200 or batch.get("status") not in ("in_progress", "completed"):
        raise RuntimeError(f"the upload was not taken: {said[:300]!r}")
    return Upload(lines, size, uploaded - began, time.perf_counter() - uploaded)


async def at_once(url: str, model: str, clients: int, requests: int) -> tuple[float, Counter[int]]:
    """So many clients, each of whom asks again as soon as it is answered: the seconds, and the statuses."""
    found: Counter[int] = Counter()
    numbers = iter(range(requests))
    connections = [await Connection.to(url) for _ in range(clients)]

    async def client(connection: Connection) -> None:
        for number in numbers:
            status, _ = await connection.ask(completion(model, f"hello {number}"))
            found[status] += 1
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*map(client, connections))
    return time.perf_counter() - began, found


async def alone(url: str, model: str, count: int, redis: Redis) -> tuple[float, float]:
    """Requests one after the other: the medians of what was added to the engine's time, and of that time, in
    milliseconds."""
    connection, found = await Connection.to(url), []
    for number in range(count + WARM):
        began = time.perf_counter()
        status, said = await connection.ask(completion(model, f"hello {number}", max_tokens=4, temperature=0))
        took = (time.perf_counter() - began) * 1000
        if status != 200:
            raise RuntimeError(f"status {status}: {said[:300]!r}")
        found.append((took, _engine_ms(redis, said)))
        await asyncio.sleep(PAUSE_S)
    connection.close()
    found = found[WARM:]
    return statistics.median(took - engine for took, engine in found), statistics.median(engine for _, engine in found)


def _engine_ms(redis: Redis, answer: bytes) -> float:
    """What the engine took for a request, as its record says, which stays in Redis for a moment."""
    batch_id = json.loads(answer)["id"].split("-", 1)[1].rpartition("_")[0]
    for _, record in ShardRecords(redis, batch_id).part(0, -1, [0]).records:
        stats = whole(loaded(record))["stats"]
        return float(stats["time_to_first_token_s"] + stats["decode_s"]) * 1000
    return 0.0
