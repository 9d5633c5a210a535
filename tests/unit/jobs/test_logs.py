"""The log of a long-lived process: JSON that any collector reads, text as it was, in a file that may be moved away."""

from __future__ import annotations

import logging
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import orjson
import pytest

from jobs.app.logs import JsonFormatter
from submit.commands.pool.scheduler import command as scheduler_command
from worker.cli import command as worker_command

ROOT = Path(__file__).parents[3]
PREAMBLE = """
import logging, sys, os, pathlib
from jobs.app.logs import set_up_logging
log = logging.getLogger('promptmill.x')
"""


def formatted(message: str, *arguments: object, error: BaseException | None = None, **extra: Any) -> dict[str, Any]:
    """The JSON of a record made by the logging module itself."""
    found: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(self.format(record))

    handler = Kept()
    handler.setFormatter(JsonFormatter({"worker": "mini.1"}))
    log = logging.Logger("promptmill.test")
    log.addHandler(handler)
    log.warning(message, *arguments, extra=extra, exc_info=error)
    [line] = found
    assert "\n" not in line
    return dict(orjson.loads(line))


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, whose log is set up by the script."""
    return subprocess.run(
        [sys.executable, "-c", PREAMBLE + script, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )


def test_a_line_says_when_who_what_and_why() -> None:
    """UTC to the millisecond, the action, other extras, and the process that says it."""
    found = formatted("loaded %s", "m", action="model_loaded", lines=3, group=("a", 1))
    at = datetime.fromisoformat(found.pop("time"))
    assert at.utcoffset() is not None
    assert at.utcoffset().total_seconds() == 0  # type: ignore[union-attr]
    assert found.pop("pid") > 0
    assert found == {
        "level": "WARNING", "logger": "promptmill.test", "message": "loaded m", "worker": "mini.1",
        "action": "model_loaded", "lines": 3, "group": "('a', 1)",
    }  # fmt: skip


def test_an_exception_is_one_line_with_its_traceback() -> None:
    """Line breaks are JSON's."""
    try:
        raise KeyError("row-1\nrow-2")
    except KeyError as error:
        found = formatted("failed", error=error)
    assert found["exception"].startswith("Traceback (most recent call last):\n")
    assert "KeyError: 'row-1\\nrow-2'" in found["exception"]


def test_whatever_is_logged_is_json() -> None:
    """Half surrogate pairs, control characters, huge numbers, and extras that would take another field's place."""
    found = formatted("a\udce9\x00\n\x1b[31m", size=2**70, ratio=float("nan"), pid="no", worker="no", nothing=None)
    assert found["message"] == "a\\udce9\x00\n\x1b[31m"
    assert (found["size"], found["ratio"], found["nothing"]) == (str(2**70), None, None)
    assert found["worker"] == "mini.1"
    assert isinstance(found["pid"], int)


def test_text_is_what_it_was_and_libraries_only_warn() -> None:
    """Time, level, message on stderr; with ``verbose`` everybody says more."""
    script = "set_up_logging(sys.argv[1], verbose=sys.argv[2] == 'v')\n"
    script += "log.info('a'); log.debug('b'); logging.getLogger('other').info('c')"
    text = run(script, "text", "").stderr
    [line] = text.splitlines()
    assert line[10] == "T"
    assert line.endswith(" INFO a")
    assert [row.split()[-1] for row in run(script, "text", "v").stderr.splitlines()] == ["a", "b", "c"]
    [row] = run(script, "json", "").stderr.splitlines()
    assert orjson.loads(row)["message"] == "a"


def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    """As newsyslog and logrotate do it; nothing goes to stderr."""
    file = tmp_path / "worker.log"
    script = """
path = pathlib.Path(sys.argv[1])
set_up_logging(file=path)
log.info("before\\udce9")
path.rename(path.with_suffix(".0"))
log.info("after")
"""
    assert run(script, str(file)).stderr == ""
    assert file.with_suffix(".0").read_text().endswith("INFO before\\udce9\n")
    assert file.read_text().endswith("INFO after\n")
    assert len(file.read_text().splitlines()) == 1


def test_a_log_goes_on_while_the_new_file_is_not_there_yet(tmp_path: Path) -> None:
    """newsyslog renames it and makes the new one a moment later, in a folder where only root makes files: what is said
    between is in the old one, and no line ends the process."""
    script = """
folder, away = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
set_up_logging(file=folder / "w.log")
folder.rename(away)  # nothing can be opened by its name
log.info("between")
folder.mkdir()
(folder / "w.log").touch()
log.info("after")
"""
    folder, away = tmp_path / "log", tmp_path / "away"
    folder.mkdir()
    assert run(script, str(folder), str(away)).stderr == ""
    assert [line.split()[-1] for line in (away / "w.log").read_text().splitlines()] == ["between"]
    assert [line.split()[-1] for line in (folder / "w.log").read_text().splitlines()] == ["after"]


def test_a_daemons_stderr_goes_into_its_log(tmp_path: Path) -> None:
    """launchd opens it once, and never anew: what is written there after the start would grow beyond any rotation.
    A crash stands in the log of its time."""
    script = """
path = pathlib.Path(sys.argv[1])
print("early", file=sys.stderr, flush=True)
set_up_logging(file=path)
os.write(2, b"first\\n")
path.rename(path.with_suffix(".0"))
log.info("said")
print("out", flush=True)
raise SystemExit(os.write(2, b"crash\\n") - 6)
"""
    log, error = tmp_path / "w.log", tmp_path / "w.err"
    with error.open("wb") as file:
        subprocess.run(
            [sys.executable, "-c", PREAMBLE + script, str(log)], cwd=ROOT, stdout=file, stderr=file, check=True
        )
    assert error.read_text() == "early\n"
    assert log.with_suffix(".0").read_text() == "first\n"
    assert [line.split()[-1] for line in log.read_text().splitlines()] == ["said", "out", "crash"]


def test_a_terminals_or_pipes_stderr_stays(tmp_path: Path) -> None:
    """Who reads it goes on reading it."""
    script = "set_up_logging(file=pathlib.Path(sys.argv[1])); os.write(2, b'seen')"
    assert run(script, str(tmp_path / "w.log")).stderr == "seen"


def test_both_sides_commands_have_the_same_flags() -> None:
    """The worker cannot import the scheduler's options: they are declared twice."""

    def described(command: click.Command) -> list[dict[str, Any]]:
        found = [option.to_info_dict() for option in command.params if (option.name or "").startswith("log_")]
        return sorted(found, key=lambda option: str(option["name"]))

    assert len(described(scheduler_command)) == 2
    assert described(scheduler_command) == described(worker_command)


@pytest.mark.parametrize("flags", [["--log-format", "json"], ["--log-file", "w.log"], []])
def test_what_ends_a_worker_at_its_start_stands_in_its_log(tmp_path: Path, flags: list[str]) -> None:
    """In the file, and on stderr as what is expected there; of a Redis URL no password in any."""
    url = "redis://worker:s3cret@127.0.0.1:1/0"
    command = [sys.executable, "-P", "-m", "worker", "--model", "m", "--redis", url, *flags]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 3
    file = tmp_path / "w.log"
    logged = file.read_text() if file.exists() else ""
    assert "s3cret" not in done.stderr + logged
    if "json" in flags:
        [line] = done.stderr.splitlines()
        found = orjson.loads(line)
        assert (found["level"], found["action"]) == ("ERROR", "ended")
        assert "127.0.0.1:1" in found["message"]
    else:
        assert done.stderr.startswith("promptmill worker: ")
        assert ("127.0.0.1:1" in logged) == bool(flags)
