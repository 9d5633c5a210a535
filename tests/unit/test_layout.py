"""The shape of the code: who may import whom, and what a light start costs."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MLX_LM_MODULE = Path("worker/engine/loading/mlx_models.py")

PACKAGES = ("jobs", "submit", "serve", "worker", "deploy", "promptmill", "bench")
MOST_MODULES = 15

CHECK_OF_PACKAGES = "promptmill.packages"
"""What each program does first, before it imports anything else of ours: this module imports none."""

NAMED_BY_STRING = {"jobs.tasks", "jobs.embedded.supervisor"}
"""RQ finds the first by the name that stands in each job, Python the second as a process of its own: no side imports
them, and both need them."""


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
        if name.split(".")[0] in roots and name != CHECK_OF_PACKAGES
    ]


@pytest.mark.parametrize(
    ("package", "roots"),
    [
        ("jobs", ("mlx", "mlx_lm", "click", "submit", "serve", "worker", "deploy", "promptmill")),
        ("submit", ("mlx", "mlx_lm", "worker", "serve", "deploy", "promptmill", "transformers")),
        ("serve", ("mlx", "mlx_lm", "worker", "deploy", "promptmill", "transformers")),
        ("worker", ("submit", "serve", "deploy", "promptmill")),
        ("deploy", ("mlx", "mlx_lm", "worker", "serve", "promptmill", "transformers")),
        ("promptmill", ("mlx", "mlx_lm", "worker", "deploy", "jobs")),
    ],
)
def test_packages_import_only_what_they_may(package: str, roots: tuple[str, ...]) -> None:
    """deploy knows submit, submit and worker know jobs and not each other; jobs knows none of them, nor mlx, nor click.
    promptmill is the face of submit."""
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
    folders = (*PACKAGES, "docs", "tests", "examples")
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_bytes().splitlines())
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > 500} == {}


@cache
def import_graph() -> Mapping[str, frozenset[str]]:
    """Which of our modules each imports, wherever it does so: within functions and for types too."""
    files = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
    return {name: frozenset(imported_modules(path, files)) - {name} for name, path in files.items()}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path, modules: Iterable[str]) -> Iterator[str]:
    """`from a.b import c` is an import of the module a.b.c, or where that is none of a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                found = name if name in modules else node.module
                if found in modules:
                    yield found


def reached_from(*packages: str) -> set[str]:
    """All modules that these packages are made of or import, directly or not."""
    graph = import_graph()
    waiting = [name for name in graph if name.split(".")[0] in packages]
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += graph[name]
    return reached


def cycle_in(graph: Mapping[str, Iterable[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other() -> None:
    """There is an order in which each module comes after all that it imports, also in functions and for types."""
    assert cycle_in(import_graph()) == []


def test_a_cycle_is_found() -> None:
    """The check above sees one."""
    assert sorted(set(cycle_in({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}))) == ["a", "b", "c"]


def test_no_folder_is_full() -> None:
    """Of what has more modules than a reader takes in at once, some go together into a folder."""
    counts = Counter(
        path.parent.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    )
    assert {folder for folder, count in counts.items() if count > MOST_MODULES} == set()


def test_jobs_holds_what_both_sides_use() -> None:
    """What only one side imports belongs there."""
    graph = import_graph()
    packages = {name.rpartition(".")[0] for name in graph}
    ours = {name for name in graph if name.split(".")[0] == "jobs"} - packages - {"jobs"} - NAMED_BY_STRING
    for side in (("worker",), ("submit", "serve", "deploy")):
        assert sorted(ours - reached_from(*side)) == []
