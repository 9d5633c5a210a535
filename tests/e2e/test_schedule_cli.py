"""`promptmill schedule` as a process: what it prints where, what it leaves in Redis, how it exits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from jobs.store.store import Store
from submit import Client
from submit.schedule.store import Schedules
from submit.schedule.table import schedule_table
from tests.e2e.test_submit_cli import environment
from tests.night import TWO, Night, lines_in
from tests.pool import prompts

NO_SCHEDULER = "no scheduler is running: `promptmill scheduler` starts one"


def schedule(
    url: str | None, *arguments: str, stdin: bytes = b"", config: Path | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [sys.executable, "-P", "-m", "submit.cli", *(["--config", str(config)] if config else []), "schedule"]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, input=stdin, timeout=60, check=False,
        env=environment(url) | environ,
    )  # fmt: skip
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def good(tmp_path: Path) -> str:
    return lines_in(tmp_path / "good.jsonl", '{"prompt":"a"}', '{"prompt":"b"}')


def test_add_list_run_remove(store: Store, server_url: str, good: str) -> None:
    """What a user does: data on stdout, all else on stderr."""
    flags = ["--temperature", "0.5", "--stop", "END", "--metadata", '{"k":1}', "--priority", "low", "--keep", "forever"]
    when = ["--cron", "0 2 * * *", "--tz", "Asia/Tokyo"]
    added = schedule(server_url, "add", "nightly", *when, good, "--model", "m", *flags, "--expires-in", "2h")
    assert (added.returncode, added.stdout) == (0, "")
    assert f"schedule nightly: 2 lines of {good}, first at 20" in added.stderr
    assert NO_SCHEDULER in added.stderr

    ran = schedule(server_url, "run", "nightly")
    assert ran.returncode == 0
    batch = store.batch(ran.stdout.removesuffix("\n"))
    assert (batch.schedule, batch.priority, batch.metadata, batch.keep_s) == ("nightly", "low", {"k": 1}, None)
    assert batch.defaults == {"model": "m", "temperature": 0.5, "stop": ["END"]}
    again = schedule(server_url, "run", "nightly", "--json")
    assert again.returncode == 2
    assert batch.id in orjson.loads(again.stdout)["error"]["message"]

    listed = schedule(server_url, "list")
    assert listed.returncode == 0
    header, row = listed.stdout.splitlines()
    assert header.split() == ["schedule", "cron", "zone", "next", "run", "last", "run", "source", "model"]
    assert all(
        text in row for text in ("nightly", "0 2 * * *", "Asia/Tokyo", "(in ", batch.id, "in_progress", "2 lines")
    )
    assert NO_SCHEDULER in listed.stderr
    (found,) = orjson.loads(schedule(server_url, "list", "--json").stdout)
    assert (found["name"], found["time_zone"], found["runs"][0]["batch_id"]) == ("nightly", "Asia/Tokyo", batch.id)
    assert found["next_run_at"].endswith("T17:00:00.000Z")

    paused = schedule(server_url, "pause", "nightly", "other")
    assert paused.returncode == 2
    assert "schedule nightly is paused" in paused.stderr
    assert " paused " in schedule(server_url, "list").stdout
    assert "schedule nightly goes on, next at 20" in schedule(server_url, "resume", "nightly").stderr

    removed = schedule(server_url, "remove", "bad name", "other", "nightly")
    assert removed.returncode == 2
    assert "'bad name' is no name for a schedule" in removed.stderr
    assert "schedule nightly is removed" in removed.stderr
    assert "there is no schedule 'other'" in removed.stderr
    assert store.batch(batch.id).status == "in_progress"
    assert "no schedules; `promptmill schedule add" in schedule(server_url, "list").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cron", "0 25 * * *"], "field 'hour': 25 is out of range 0-23"),
        (["--cron", "@daily", "--tz", "Mars"], "'Mars' is no time zone"),
        (["--cron", "@daily", "--keep", "long"], "is not a duration"),
        (["--cron", "@daily", "--metadata", "[]"], "--metadata must be a JSON object"),
        (["--cron", "@daily", "--temperature", "-1"], "--temperature"),
        (["--cron", "@daily", "--read-at-fire"], "absolute path"),
        ([], "--cron"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], said: str, server_url: str) -> None:
    """Exit status 2, one line that says what and how to mend it, never a traceback."""
    done = schedule(server_url, "add", "nightly", "prompts.jsonl", "--model", "m", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    with Client(server_url) as client:
        assert client.schedules() == []


def test_bad_lines_are_listed(store: Store, server_url: str, tmp_path: Path) -> None:
    """As `submit` does; with --on-bad-line skip the schedule is there, and its batches have error records."""
    bad = lines_in(tmp_path / "bad.jsonl", '{"prompt":"a"}', "nope", '{"prompt":"a","temprature":1}')
    done = schedule(server_url, "add", "nightly", bad, "--cron", "@daily", "--model", "m", "--json")
    assert done.returncode == 2
    assert [problem["line"] for problem in orjson.loads(done.stdout)["problems"]] == [2, 3]
    done = schedule(server_url, "add", "nightly", bad, "--cron", "@daily", "--model", "m", "--on-bad-line", "skip")
    assert done.returncode == 0
    assert "2 bad lines: each will have an error record" in done.stderr
    batch = store.batch(schedule(server_url, "run", "nightly").stdout.strip())
    assert (batch.total, batch.rejected) == (3, 2)


def test_a_model_that_gave_way_is_said(store: Store, server_url: str, tmp_path: Path) -> None:
    """As `submit` says it; with --override-model each batch of the schedule has the schedule's model."""
    path = lines_in(tmp_path / "a.jsonl", '{"prompt":"a","model":"gpt-4o-mini"}')
    done = schedule(server_url, "add", "nightly", path, "--cron", "@daily", "--model", "m")
    assert "1 line names its own model 'gpt-4o-mini': --model m is only for lines without one" in done.stderr
    flags = ("--cron", "@daily", "--model", "m", "--override-model", "--replace")
    assert "own model" not in schedule(server_url, "add", "nightly", path, *flags).stderr
    batch_id = schedule(server_url, "run", "nightly").stdout.strip()
    assert store.batch(batch_id).models == ("m",)


def test_settings_and_the_environment_apply(store: Store, server_url: str, good: str, tmp_path: Path) -> None:
    """The file's top-level keys and its [schedule] table, for each of the subcommands; TZ where --tz says nothing."""
    config = tmp_path / "promptmill.toml"
    config.write_text(f'redis = "{server_url}"\n[schedule]\nmodel = "m"\nmax_tokens = 7\ncatch_up = true\n')
    added = schedule(
        None, "add", "nightly", "-", "--cron", "@daily", config=config, stdin=Path(good).read_bytes(), TZ="Asia/Tokyo"
    )
    assert added.returncode == 0, added.stderr
    found = Schedules(store.connection).get("nightly")
    assert (found.cron.zone, found.catch_up, found.source) == ("Asia/Tokyo", True, "standard input")
    assert orjson.loads(Schedules(store.connection).order(found))["defaults"] == {"model": "m", "max_tokens": 7}
    assert "nightly" in schedule(None, "list", config=config).stdout
    config.write_text("[schedule]\ncorn = 1\n")
    refused = schedule(server_url, "list", config=config)
    assert refused.returncode == 2
    assert "'corn' in [schedule] is not a flag" in refused.stderr


def test_redis_away_is_said(tmp_path: Path, good: str) -> None:
    """Exit status 3, from each subcommand."""
    url = f"unix://{tmp_path}/none.sock"
    for arguments in (["list"], ["run", "x"], ["remove", "x"], ["add", "x", good, "--cron", "@daily", "--model", "m"]):
        done = schedule(url, *arguments)
        assert done.returncode == 3
        assert "cannot reach Redis" in done.stderr


def test_the_python_client_does_the_same(store: Store, server_url: str, good: str) -> None:
    """Dicts or a path; handles that run, tell and remove."""
    with Client(server_url) as client:
        made = client.add_schedule("nightly", prompts(2), cron="0 2 * * *", time_zone="UTC", model="m", max_tokens=5)
        client.add_schedule("file", Path(good), cron="@daily", model="m", allow_overlap=True, batch_name="x")
        assert [handle.name for handle in client.schedules()] == ["file", "nightly"]
        batch = made.run()
        assert (batch.status().schedule, batch.status().total) == ("nightly", 2)
        assert batch.status().defaults["max_tokens"] == 5
        (outcome,) = client.schedule("nightly").status().runs
        assert (outcome.state, outcome.batch_id, outcome.asked) == ("submitted", batch.id, True)
        assert client.run_schedule("file").status().name == "x"
        assert (client.remove_schedule("file"), client.remove_schedule("file"), made.remove()) == (True, False, True)
        assert client.schedules() == []


def test_the_list_says_what_went_wrong(store: Store, tmp_path: Path) -> None:
    """Skipped and failed runs with their reasons; columns go as the terminal gets narrow; nothing steers it."""
    night = Night(store)
    night.add("skipped")
    night.add("failed", file=str(tmp_path / "none.jsonl"))
    night.add("waits", cron="0 4 * * *", order={"metadata": {}})
    night.hash_set("source", "a\x1b[31m.jsonl", "waits")
    night.at(TWO + 7200 - 60)
    night.at(TWO + 7200 - 59)
    found = [night.schedules.get(name) for name in night.schedules.names()]
    lines = schedule_table(found, {}, TWO + 3600)
    assert "\x1b" not in "".join(lines)
    assert any("skipped: the run of" in line and "no scheduler was there" in line for line in lines)
    narrow = schedule_table(found, {}, TWO + 3600, width=80)
    assert max(map(len, narrow[:4])) <= 80
    assert "(in 1h00m)" in narrow[3]
