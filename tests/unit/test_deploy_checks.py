"""What `promptmill deploy` refuses before it writes anything, and how that reads."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.errors import RefusedError
from jobs.size import parse_size
from submit.cli import main
from submit.deploy.checks import (
    check_url,
    check_user,
    folder_problem,
    low_limit,
    reach_problem,
    unreachable,
    wired_limit,
)
from submit.deploy.plan import ETC
from submit.deploy.settings import changed

GIB = 2**30
URL = "redis://worker:s3cret@redis.local"
NOBODY = 54321  # an id that no test file belongs to


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
        (["worker", "--model", "m", "--redis", URL, "--install", "--uninstall"], "exclude each other"),
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
    assert check_url(url) == url


@pytest.mark.parametrize("name", ["promptmill", "_promptmill", "mlx-2"])
def test_users_are_named_as_both_systems_do(name: str) -> None:
    """Lower case, digits, dashes."""
    assert check_user(name) == name


def test_a_program_that_is_not_there_is_said(tmp_path: Path) -> None:
    """With how to install one."""
    problem = reach_problem(tmp_path / "promptmill", NOBODY, frozenset(), "promptmill")
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
    assert reach_problem(program, NOBODY, frozenset(), "promptmill") is None
    (closed if what == "Python" else program.parent).chmod(0o700)
    problem = reach_problem(program, NOBODY, frozenset(), "promptmill")
    (closed if what == "Python" else program.parent).chmod(0o755)
    assert problem is not None
    assert f"the {what}" in problem
    assert "/opt/promptmill/venv" in problem


def test_owners_and_groups_pass_by_their_own_bits(open_folder: Path) -> None:
    """As the kernel decides: the owner's bits for the owner, the group's for members, the others' for all else."""
    inner = open_folder / "x"
    inner.mkdir()
    inner.chmod(0o710)
    found = inner.stat()
    (inner / "file").write_text("")
    (inner / "file").chmod(0o755)
    assert unreachable(inner / "file", found.st_uid) is None
    assert unreachable(inner / "file", NOBODY, frozenset({found.st_gid})) is None
    assert unreachable(inner / "file", NOBODY) == inner
    assert unreachable(inner / "file", None) == inner


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
    assert folder_problem(open_folder, NOBODY, frozenset(), "promptmill") is None
    (open_folder / "mine").mkdir(0o700)
    assert "may not pass" in str(folder_problem(open_folder / "mine", NOBODY, frozenset(), "promptmill"))
    assert "make it first" in str(folder_problem(open_folder / "none", NOBODY, frozenset(), "promptmill"))


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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may install")
def test_others_than_root_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is written."""
    init = "launchd" if sys.platform == "darwin" else "systemd"
    arguments = ["deploy", "worker", "--model", "m", "--redis", URL, "--install", "--init", init]
    assert main([*arguments, "--program", "/bin/sh"]) == 2
    assert "sudo" in capsys.readouterr().err
