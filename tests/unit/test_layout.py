"""The shape of the code: who may import whom, and what a light start costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MLX_LM_MODULE = Path("worker/engine/loading/mlx_models.py")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


def forbidden_imports(package: str, *roots: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in imports(path)
        if name.split(".")[0] in roots
    ]


@pytest.mark.parametrize(
    ("package", "roots"),
    [
        ("jobs", ("mlx", "mlx_lm", "click", "submit", "worker")),
        ("submit", ("mlx", "mlx_lm", "worker", "transformers")),
        ("worker", ("submit",)),
    ],
)
def test_packages_import_only_what_they_may(package: str, roots: tuple[str, ...]) -> None:
    """submit and worker know jobs and not each other; jobs knows neither, nor mlx, nor click."""
    assert forbidden_imports(package, *roots) == []


def test_only_the_engine_imports_mlx() -> None:
    """MLX stays behind worker/engine, and mlx-lm behind one module of it."""
    engine = ROOT / "worker" / "engine"
    outside = [line for line in forbidden_imports("worker", "mlx", "mlx_lm") if not line.startswith("worker/engine/")]
    with_mlx_lm = {path.relative_to(ROOT) for path in engine.rglob("*.py") if any(map(is_mlx_lm, imports(path)))}
    assert outside == []
    assert with_mlx_lm == {MLX_LM_MODULE}


def is_mlx_lm(name: str) -> bool:
    return name.split(".")[0] == "mlx_lm"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        *([name, "--help"] for name in ("submit", "run", "results", "status", "workers", "doctor", "scheduler")),
        ["schedule", "add", "--help"],
    ],
)
def test_help_is_light(arguments: list[str]) -> None:
    """Help imports neither redis, rq, rich nor mlx."""
    script = (
        "import sys; from submit.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(sorted({'redis', 'rq', 'rich', 'mlx', 'mlx_lm', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_only_tables_and_full_screens_import_rich() -> None:
    """Neither the Python client, nor what submits, follows and runs batches, pays for it."""
    script = (
        "import sys, submit.client.client, submit.upload.submitter, submit.results.follow, submit.run.run; "
        "import submit.status.progress; print('rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_every_module_fits_in_a_head() -> None:
    """None has more than 500 lines."""
    folders = ("jobs", "submit", "worker", "tests", "bench", "examples")
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_bytes().splitlines())
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > 500} == {}
