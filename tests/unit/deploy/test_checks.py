"""What `promptmill deploy` refuses before it writes anything, and how that reads."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.checks import (
    check_model_name,
    check_redis_url,
    check_user,
    flags_problem,
    folder_problem,
    memory_problem,
    model_problem,
    owned_by_another,
    reach_problem,
    unreachable,
)
from deploy.gpu_limit import low_limit, wired_limit
from deploy.host import User
from deploy.plan import ETC
from deploy.settings import changed
from jobs.app.units import parse_size
from jobs.errors import RefusedError
from submit.cli import main

GIB = 2**30
PROMPTMILL = str(Path(sys.executable).with_name("promptmill"))
URL = "redis://worker:s3cret@redis.local"
NOBODY = User("promptmill", 54321)  # an id that no test file belongs to


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROMPTMILL_REDIS_URL", "RQ_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may pass, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="pm-", dir="/tmp") as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        yield folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["worker", "--redis", URL], "--model is missing"),
        (["worker", "--model", "m"], "--redis-file"),
        (["worker", "--model", "./m", "--redis", URL], "absolute path"),
        (["worker", "--model", "~/m", "--redis", URL], "absolute path"),
        (["worker", "--model", " ", "--redis", URL], "--model is empty"),
        (["worker", "--model", "m", "--redis", "http://h"], "redis://HOST"),
        (["worker", "--model", "m", "--redis", "redis://:s3c/ret@h"], "%-encoded"),
        (["worker", "--model", "m", "--redis", "redis://"], "names no host"),
        (["worker", "--model", "m", "--redis", URL, "--user", "root"], "--user 'root'"),
        (["worker", "--model", "m", "--redis", URL, "--user", "Anna Smith"], "--user 'Anna Smith'"),
        (["worker", "--model", "m", "--redis", URL, "--label", "../x"], "--label '../x'"),
        (["worker", "--model", "m", "--redis", URL, "--program", "bin/promptmill"], "--program bin/promptmill"),
        (["worker", "--model", "m", "--redis", URL, "--home", "x"], "--home x"),
        (["worker", "--model", "m", "--redis", URL, "--hf-home", "/a/../b"], "--hf-home"),
        (["worker", "--model", "m", "--redis", URL, "--", "--redis", "x"], "before `--`"),
        (["worker", "--model", "m", "--redis", URL, "--", "--drain=4"], "before `--`"),
        (["worker", "--model", "m", "--redis", URL, "--", "--burst"], "ends by itself"),
        (["worker", "--model", "m", "--redis", URL, "--name", "a\nb"], "cannot be printed"),
        (["worker", "--model", "m", "--redis", URL, "--init", "systemd", "--power"], "--init launchd"),
        (["worker", "--model", "m", "--redis", URL, "--init", "launchd", "--wired-limit", "x"], "48G"),
        (["worker", "--model", "m", "--redis", URL, "--init", "launchd", "--wired-limit", "10"], "below 1G"),
        (["worker", "--model", "m", "--redis", URL, "--install", "--uninstall"], "--install excludes"),
        (["worker", "--model", "m", "--redis", URL, "--install", "--dry-run"], "--install excludes"),
        (["worker", "--model", "m", "--redis", URL, "--redis-file", "-"], "both name the pool's Redis"),
        (["worker", "--model", "http://x", "--redis", URL], "ORG/NAME@REVISION"),
        (["worker", "--model", "a/b/c/d", "--redis", URL], "ORG/NAME@REVISION"),
        (["worker", "--model", "org/a@", "--redis", URL], "ORG/NAME@REVISION"),
        (["worker", "--model", "org/a--b", "--redis", URL], "ORG/NAME@REVISION"),
        (["worker", "--model", "org/" + "a" * 93, "--redis", URL], "ORG/NAME@REVISION"),
        (["worker", "--model", "m", "--redis", URL, "--", "--help"], "ends at once"),
        (["scheduler", "--redis", URL, "--", "--check"], "ends at once"),
        (["worker", "--uninstall", "--label", "no-such-worker"], "nothing is installed"),
        (["worker", "--model", "m", "--redis", URL, "--ca", __file__], "--ca"),
        (["worker", "--model", "m", "--redis", URL, "--", "--log-file", "/x"], "leave it out"),
        (["worker", "--model", "m", "--redis", URL, "--", "--spool", "x"], "--spool x"),
        (["scheduler"], "--redis-file"),
        (["scheduler", "--redis", URL, "--", "--redis=x"], "before `--`"),
        (["scheduler", "--redis", URL, "--", "--webhook-secret", "s3cx"], "--webhook-secret-file"),
        (["scheduler", "--redis", URL, "--", "--log-file=/x"], "leave it out"),
        (["scheduler", "--redis", URL, "--", "--read-from", "x"], "--read-from x"),
        (["scheduler", "--redis", URL, "--init", "systemd", "--", "--read-from", "/tmp/x"], "/srv/promptmill"),
        (["scheduler", "--redis", URL, "--webhook-secret-file", __file__], "whsec_"),
        (["scheduler", "--redis-file", "-", "--webhook-secret-file", "-"], "standard input"),
        (["server", "--maxmemory", "1G"], "--host is missing"),
        (["server", "--host", "h"], "--maxmemory is missing"),
        (["server", "--host", "h", "--maxmemory", "1M"], "at least 64M"),
        (["server", "--host", "a b", "--maxmemory", "1G"], "--host 'a b'"),
        (["server", "--host", "h;x", "--maxmemory", "1G"], "--host 'h;x'"),
        (["server", "--host", "h", "--maxmemory", "1G", "--bind", "0.0.0.0\nport 1"], "--bind"),
        (["server", "--host", "h", "--maxmemory", "lots"], "48G"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, the field and the remedy, nothing on stdout and no password."""
    program = [] if "--program" in arguments else ["--program", sys.executable]
    status = main(["deploy", arguments[0], *program, *arguments[1:]])
    shown = capsys.readouterr()
    assert (status, shown.out) == (2, "")
    assert said in shown.err
    assert "s3c" not in shown.err


@pytest.mark.parametrize(
    "url", ["unix:///run/redis.sock", "redis://h", "rediss://u:p@h:1/2?ssl_ca_certs=/x", "redis://[::1]:1"]
)
def test_urls_of_all_kinds_are_taken(url: str) -> None:
    """As they are."""
    assert check_redis_url(url) == url


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["worker", "--model", "org/a", "--", "--autotune", "--bogus"], "No such option.*--bogus"),
        (["worker", "--model", "org/a", "--", "--memory-limit", "lots"], "'lots' is not a size"),
        (["worker", "--model", "org/a", "--", "--kv-group-size", "64"], "does nothing without --kv-bits: give that"),
        (["scheduler", "--", "--bogus"], "No such option.*--bogus"),
    ],
)
@pytest.mark.parametrize("action", ["--dry-run", "--install"])
def test_flags_that_the_program_does_not_take_are_refused(
    arguments: list[str], said: str, action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In its own words, before anything is written: the daemon would fail at each start, unseen."""
    first = [arguments[0], "--redis", URL, "--root", str(tmp_path / "root"), action]
    assert main(["deploy", *first, "--program", PROMPTMILL, *arguments[1:]]) == 2
    shown = capsys.readouterr()
    assert re.search(f"`promptmill {arguments[0]}` would not start: .*{said}", shown.err)
    assert shown.out == ""
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["worker", "--model", "org/a@main", "--name", "mini", "--", "--autotune", "--memory-limit", "40G"],
        ["scheduler", "--", "--read-from", "/nonexistent/prompts", "--webhook-hosts=*.example.com"],
    ],
)
def test_flags_that_it_takes_pass(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing is said of them, even where a folder to read from is another machine's."""
    assert main(["deploy", arguments[0], "--redis", URL, "--program", PROMPTMILL, *arguments[1:]]) == 0
    assert "flags" not in capsys.readouterr().err


def test_settings_of_before_are_checked_with_the_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The daemon reads both."""
    settings = tmp_path / "etc/promptmill/promptmill-worker.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f'redis = "{URL}"\n[worker]\nmemory-limit = "lots"\n')
    arguments = ["--model", "org/a", "--root", str(tmp_path), "--program", PROMPTMILL, "--install"]
    assert main(["deploy", "worker", *arguments]) == 2
    shown = capsys.readouterr()
    assert "`promptmill worker` would not start" in shown.err
    assert "'lots' is not a size" in shown.err
    assert "s3c" not in shown.err


@pytest.mark.parametrize(
    ("status", "output", "problem"),
    [
        (2, "Usage: promptmill worker [OPTIONS]\nTry x\n\nError: No such option: --bogus", "No such option: --bogus"),
        (2, "promptmill worker: x.toml: [worker]\nis bad.", "x.toml: [worker] is bad"),
        (2, "Usage: promptmill worker [OPTIONS]\n\nError: No such option: --check", None),
        (2, "Usage: promptmill worker [OPTIONS]\n\nError: No such option '--check'. (Did you mean x?)", None),
        (2, "promptmill: a worker needs MLX: pip install 'promptmill[worker]'", None),
        (2, "unknown option --config\nusage: python", None),
        (1, "Traceback (most recent call last):", None),
    ],
)
def test_what_a_program_says_of_its_flags(status: int, output: str, problem: str | None) -> None:
    """A usage error is; an older program, one without MLX, and another program say nothing of them."""
    assert flags_problem(status, output) == problem


def test_a_program_that_cannot_be_asked_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is only shown, or written into a folder, may be for another machine."""
    program = tmp_path / "promptmill"
    program.write_text('#!/bin/sh\necho "promptmill: a worker needs MLX"; exit 2\n')
    program.chmod(0o755)
    assert main(["deploy", "worker", "--model", "org/a", "--redis", URL, "--program", str(program)]) == 0
    assert f"warning: {program} cannot check the worker's flags: promptmill: a worker needs MLX" in (
        capsys.readouterr().err
    )


def test_root_runs_no_program_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's user, say, could have changed it; that of the command itself runs already."""
    program = tmp_path / "promptmill"
    program.write_text("")
    monkeypatch.setattr("deploy.checks.ROOT_UID", program.stat().st_uid)
    assert not owned_by_another(program)
    monkeypatch.setattr("deploy.checks.ROOT_UID", NOBODY.uid)
    assert owned_by_another(program)
    assert not owned_by_another(Path(PROMPTMILL))


@pytest.mark.parametrize("model", ["gpt2", "org/Qwen3-4B-4bit", "org/a.b_c@main", "org/a@refs/pr/1", "/any/folder"])
def test_models_of_the_hub_and_folders_are_taken(model: str) -> None:
    """As they are."""
    assert check_model_name(model) == model


def test_a_models_folder_is_there_and_open(open_folder: Path) -> None:
    """Else the worker would end at each start; the Hub's are not looked for."""
    assert model_problem("org/a", NOBODY) is None
    assert model_problem(str(open_folder), NOBODY) is None
    assert "no folder of that name" in str(model_problem(f"{open_folder}/x", NOBODY))
    (open_folder / "mine").mkdir(0o700)
    assert f"may not pass {open_folder}/mine" in str(model_problem(f"{open_folder}/mine", NOBODY))


def test_a_server_that_takes_too_much_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    """Three quarters of the memory are the most that is right."""
    assert memory_problem(48 * GIB, 64 * GIB) is None
    assert "48.1G is more than three quarters of this machine's 64G" in str(memory_problem(48 * GIB + 2**27, 64 * GIB))
    assert main(["deploy", "server", "--host", "h", "--maxmemory", "900T", "--program", "/bin/sh"]) == 0
    assert "warning: --maxmemory" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["promptmill", "_promptmill", "mlx-2"])
def test_users_are_named_as_both_systems_do(name: str) -> None:
    """Lower case, digits, dashes."""
    assert check_user(name) == name


def test_a_program_that_is_not_there_is_said(tmp_path: Path) -> None:
    """With how to install one."""
    problem = reach_problem(tmp_path / "promptmill", NOBODY)
    assert problem is not None
    assert "not there" in problem


@pytest.mark.parametrize("what", ["program", "Python"])
def test_a_program_that_the_user_cannot_reach_is_said(open_folder: Path, what: str) -> None:
    """Be it the program or what runs it, through links too: the closed folder is named."""
    closed, program = open_folder / "closed", open_folder / "bin" / "promptmill"
    for folder in (closed, program.parent):
        folder.mkdir()
    python = closed / "python"
    python.write_text("")
    (program.parent / "python").symlink_to(python)
    program.write_text(f"#!{program.parent}/python\n")
    program.chmod(0o755)
    python.chmod(0o755)
    assert reach_problem(program, NOBODY) is None
    (closed if what == "Python" else program.parent).chmod(0o700)
    problem = reach_problem(program, NOBODY)
    (closed if what == "Python" else program.parent).chmod(0o755)
    assert problem is not None
    assert f"the {what}" in problem
    assert problem.count(f"{program}") == 1
    assert "/opt/promptmill/venv" in problem


def test_owners_and_groups_pass_by_their_own_bits(open_folder: Path) -> None:
    """As the kernel decides: the owner's bits for the owner, the group's for members, the others' for all else."""
    inner = open_folder / "x"
    inner.mkdir()
    inner.chmod(0o710)
    found = inner.stat()
    (inner / "file").write_text("")
    (inner / "file").chmod(0o755)
    assert unreachable(inner / "file", User("x", found.st_uid)) is None
    assert unreachable(inner / "file", replace(NOBODY, gids=frozenset({found.st_gid}))) is None
    assert unreachable(inner / "file", NOBODY) == inner
    assert unreachable(inner / "file", User("x")) == inner


@pytest.mark.parametrize(
    ("size", "memory", "mebibytes"),
    [
        (48 * GIB, 64 * GIB, 48 * 1024),
        (48 * GIB, None, 48 * 1024),
        (None, 24 * GIB, 16 * 1024),
        (None, 64 * GIB, 56 * 1024),
        (None, 512 * GIB, 448 * 1024),
    ],
)
def test_the_wired_limit(size: int | None, memory: int | None, mebibytes: int) -> None:
    """What is asked for, or an eighth less than there is and 8G at least."""
    assert wired_limit(size, memory) == mebibytes


def test_a_limit_that_only_takes_away_is_remarked_upon() -> None:
    """macOS gives two thirds anyway."""
    assert low_limit(43 * 1024, 64 * GIB) is None
    assert low_limit(10 * 1024, 64 * GIB) == (
        "--wired-limit 10G is less than macOS gives its GPU anyway, about 42G of 64G: models have less room with it "
        "than without"
    )


def test_a_folder_of_files_to_read_is_there_and_open(open_folder: Path) -> None:
    """Else the scheduler would end at each start, or find nothing."""
    assert folder_problem(open_folder, NOBODY) is None
    (open_folder / "mine").mkdir(0o700)
    assert "may not pass" in str(folder_problem(open_folder / "mine", NOBODY))
    assert "make it first" in str(folder_problem(open_folder / "none", NOBODY))


SETTINGS = ETC / "x.toml"


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("", 'redis = "new"\n\n[scheduler]\nwebhook-secret = "s"\n'),
        ('# a\nredis = "old"  # b\n', '# a\nredis = "new"\n\n[scheduler]\nwebhook-secret = "s"\n'),
        (
            '[scheduler] # c\nwebhook_secret = "old"\nname = "n"\n[worker]\n',
            'redis = "new"\n[scheduler] # c\nwebhook-secret = "s"\nname = "n"\n[worker]\n',
        ),
        (
            '[worker]\nredis = "w"\n[scheduler]\n',
            'redis = "new"\n[worker]\nredis = "w"\n[scheduler]\nwebhook-secret = "s"\n',
        ),
    ],
)  # fmt: skip
def test_settings_are_changed_line_by_line(text: str, made: str) -> None:
    """What a person wrote besides stays, comments too."""
    assert changed(SETTINGS, text, {("", "redis"): "new", ("scheduler", "webhook-secret"): "s"}) == made


@pytest.mark.parametrize("text", ["redis =", "scheduler = 3", 'redis = """\nx"""', 'scheduler = {name = "x"}'])
def test_settings_that_cannot_be_changed_are_said(text: str) -> None:
    """With the file's name, and nothing of what is in it is lost."""
    with pytest.raises(RefusedError, match=r"x\.toml"):
        changed(SETTINGS, text, {("", "redis"): "new", ("scheduler", "webhook-secret"): "s"})


@pytest.mark.parametrize(("size", "memory"), [(None, None), (None, 16 * GIB), (63 * GIB, 64 * GIB), (1, None)])
def test_a_wired_limit_that_stalls_the_system_is_refused(size: int | None, memory: int | None) -> None:
    """Also one that is no more than what macOS gives."""
    with pytest.raises(RefusedError, match="wired-limit"):
        wired_limit(size, memory)


@pytest.mark.parametrize(
    ("text", "size"), [("48G", 48 * GIB), ("512MB", 2**29), ("1.5 GiB", 3 * 2**29), ("7", 7), ("2t", 2**41)]
)
def test_sizes(text: str, size: int) -> None:
    """Units of 1024, whatever is written behind them."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "1X", "1e3", "4 8G"])
def test_no_sizes(text: str) -> None:
    """Refused with an example."""
    with pytest.raises(RefusedError, match="48G"):
        parse_size(text)


def test_others_than_root_are_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written."""
    monkeypatch.setattr("os.getuid", lambda: 501)
    monkeypatch.setattr("os.geteuid", lambda: 501)
    init = "launchd" if sys.platform == "darwin" else "systemd"
    arguments = ["deploy", "worker", "--model", "m", "--redis", URL, "--install", "--init", init]
    assert main([*arguments, "--program", str(shutil.which("true"))]) == 2
    assert "run it with sudo" in capsys.readouterr().err
