"""The public face: what `import promptmill` gives, and what is said where another package is in the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import promptmill
import submit

ROOT = Path(__file__).parents[2]


def python(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A Python outside of this folder, which finds what is in ``path`` first, and then promptmill."""
    places = [str(place) for place in (path, ROOT) if place is not None]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    command = [sys.executable, "-P", *arguments]
    return subprocess.run(command, cwd="/", env=environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(params=["jobs/__init__.py", "jobs.py"])
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with another package, or a module, that is called jobs."""
    place = tmp_path / str(request.param)
    place.parent.mkdir(exist_ok=True)
    place.write_text("raise SystemExit('the foreign one was imported')\n")
    return tmp_path


def test_all_public_names_are_submits() -> None:
    """`from promptmill import Client` is that of submit, and so are all others."""
    assert sorted(set(promptmill.__all__) - {"__version__"}) == sorted(submit.__all__)
    assert promptmill.Client is submit.Client
    assert promptmill.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="has no attribute 'Klient'"):
        promptmill.Klient  # noqa: B018


def test_the_import_is_light() -> None:
    """It loads nothing but itself."""
    script = "import sys, promptmill; print({'redis', 'rq', 'click', 'jobs', 'submit'} & set(sys.modules))"
    assert python("-c", script).stdout == "set()\n"


def test_the_command_line_is_a_module() -> None:
    """`python -m promptmill` is the command."""
    done = python("-m", "promptmill", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: promptmill [OPTIONS] COMMAND")


@pytest.mark.parametrize(
    "arguments",
    [
        ["promptmill", "--help"],
        ["promptmill", "run", "in.jsonl", "-o", "out"],
        ["promptmill", "worker", "--model", "m"],
        ["worker", "--model", "m"],
    ],
)
def test_a_foreign_package_in_the_way_is_named(foreign: Path, arguments: list[str]) -> None:
    """Not a traceback: exit 2, which one it is, where ours lies and what to do. The foreign one is not imported."""
    done = python("-m", *arguments, path=foreign)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"promptmill: another package named 'jobs' is in the way: Python finds {foreign}/job")
    assert str(ROOT / "jobs") in done.stderr
    assert "PYTHONPATH" in done.stderr


def test_a_foreign_package_fails_the_import_of_a_client(foreign: Path) -> None:
    """Programs get an ImportError that says the same."""
    done = python("-c", "from promptmill import Client", path=foreign)
    assert done.returncode == 1
    assert "ImportError: another package named 'jobs' is in the way" in done.stderr


def test_a_folder_of_a_packages_name_does_no_harm(tmp_path: Path) -> None:
    """A folder `jobs` without a package in it, as somebody may have for their files, is not taken for ours."""
    (tmp_path / "jobs").mkdir()
    assert python("-m", "promptmill", "--help", path=tmp_path).returncode == 0


def test_ctrl_c_while_modules_are_imported_is_130() -> None:
    """No traceback of imports."""
    script = (
        "import os, runpy, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'promptmill.packages': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "runpy.run_module('promptmill', run_name='__main__', alter_sys=True)\n"
    )
    done = python("-c", script)
    assert (done.returncode, done.stderr) == (130, "")
