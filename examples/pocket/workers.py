"""Training in two processes: MLX uses one core for most of its work on a CPU."""

from __future__ import annotations

import ctypes.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORKERS = 2
"""Fixed, not the number of cores, so that the same seed gives the same weights."""

POLL_SECONDS = 0.2

_RANK = "MLX_RANK"
"""Which worker a process is; mx.distributed.init("ring") reads it, and the addresses in MLX_HOSTFILE."""


def is_worker() -> bool:
    """Whether this process is one of the workers."""
    return _RANK in os.environ


def _free_addresses(count: int) -> list[str]:
    """`count` addresses on this machine with ports that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in sockets]
    for sock in sockets:
        sock.close()
    return addresses


def _environment(rank: int, hostfile: Path) -> dict[str, str]:
    added = {_RANK: str(rank), "MLX_HOSTFILE": str(hostfile), "OPENBLAS_NUM_THREADS": "1"}
    library = ctypes.util.find_library("openblas")
    if sys.platform == "linux" and library is not None:
        # MLX for Linux brings a slow matrix product, which OpenBLAS replaces when it is loaded first.
        added["LD_PRELOAD"] = f"{library} {os.environ.get('LD_PRELOAD', '')}".strip()
    return {**os.environ, **added}


def run_workers() -> int:
    """Run this same command line once per worker; the first exit status that is not 0, or 0."""
    with tempfile.TemporaryDirectory() as folder:
        hostfile = Path(folder) / "hosts.json"
        hostfile.write_text(json.dumps([[address] for address in _free_addresses(WORKERS)]), encoding="utf-8")
        command = [sys.executable, *sys.argv]
        processes = [subprocess.Popen(command, env=_environment(rank, hostfile)) for rank in range(WORKERS)]
        return _joint_status(processes)


def _joint_status(processes: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all processes; once one fails, end the others, which would wait for it for ever."""
    failed = 0
    while any(process.poll() is None for process in processes):
        failed = failed or next((process.returncode for process in processes if process.returncode), 0)
        if failed:
            for process in processes:
                process.terminate()
        time.sleep(POLL_SECONDS)
    return failed or next((process.returncode for process in processes if process.returncode), 0)
