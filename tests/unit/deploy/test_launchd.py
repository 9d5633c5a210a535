"""Daemons of launchd, as `promptmill deploy` renders them: each key read back from the property list."""

from __future__ import annotations

import os
import plistlib
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.init import launchd
from deploy.init.service import Account, Deployment
from deploy.plan import File, Plan
from deploy.pool import WorkerFlags, scheduler_plan, worker_plan
from deploy.server import ServerFlags, server_plan
from jobs.errors import RefusedError
from submit.commands.pool.scheduler import command as scheduler_command
from worker.cli import command as worker_command

HOME = Path("/opt/promptmill/home")
ACCOUNT = Account("promptmill", "promptmill", HOME)
URL = "rediss://worker:s3cret@redis.local:6379/0"
WORKER = Deployment("launchd", "promptmill-worker", ACCOUNT, Path("/opt/promptmill/venv/bin/promptmill"), URL)
FLAGS = WorkerFlags(("org/model", "/models/other"), HOME / "huggingface", name="mini-1", drain_s=45)


def server(account: Account) -> Deployment:
    return Deployment("launchd", "promptmill-server", account, Path("/opt/homebrew/bin/redis-server"))


def only(plan: Plan, name: str) -> File:
    """The file of a plan that has this name."""
    (found,) = [file for file in plan.files if file.path.name == name]
    return found


def daemon(plan: Plan, label: str) -> dict[str, Any]:
    """The keys of a daemon, of the file that launchd would read."""
    file = only(plan, f"{label}.plist")
    assert file.path.parent == Path("/Library/LaunchDaemons")
    assert (file.mode, file.owner, file.group) == (0o644, "root", "wheel")
    found: dict[str, Any] = plistlib.loads(file.text.encode())
    return found


def test_a_workers_daemon() -> None:
    """A daemon of its own user, at full speed, started again after failures only, with time to drain."""
    assert daemon(worker_plan(WORKER, FLAGS), "promptmill-worker") == {
        "Label": "promptmill-worker",
        "ProgramArguments": [
            "/opt/promptmill/venv/bin/promptmill", "--config", "/etc/promptmill/promptmill-worker.toml", "worker",
            "--model", "org/model", "--model", "/models/other", "--name", "mini-1", "--drain", "45",
        ],
        "UserName": "promptmill",
        "GroupName": "promptmill",
        "InitGroups": True,
        "Umask": 0o077,
        "WorkingDirectory": "/opt/promptmill/home",
        "EnvironmentVariables": {
            "HOME": "/opt/promptmill/home",
            "PATH": "/opt/promptmill/venv/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "PROMPTMILL_DATA_DIR": "/opt/promptmill/home/data",
            "PROMPTMILL_WORKER_LOG_FILE": "/var/log/promptmill-worker/promptmill-worker.log",
            "HF_HOME": "/opt/promptmill/home/huggingface",
        },
        "ProcessType": "Interactive",
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 30,
        "ExitTimeOut": 75,
        "SoftResourceLimits": {"NumberOfFiles": 8192},
        "HardResourceLimits": {"NumberOfFiles": 8192},
        "StandardOutPath": "/var/log/promptmill-worker/promptmill-worker.err",
        "StandardErrorPath": "/var/log/promptmill-worker/promptmill-worker.err",
    }  # fmt: skip


@pytest.mark.parametrize("drain", [0, 0.5, 30, 3000])
def test_launchd_waits_longer_than_a_worker_drains(drain: float) -> None:
    """It kills what still runs after ExitTimeOut: lines under way would be generated again elsewhere."""
    found = daemon(worker_plan(WORKER, replace(FLAGS, drain_s=drain)), "promptmill-worker")
    assert found["ExitTimeOut"] >= drain + 30


def test_a_worker_takes_the_command_line_that_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's own parser reads the flags and the environment of the daemon."""
    found = daemon(worker_plan(WORKER, replace(FLAGS, extra=("--autotune", "--memory-limit=40G"))), "promptmill-worker")
    for name, value in found["EnvironmentVariables"].items():
        monkeypatch.setenv(name, value)
    arguments = found["ProgramArguments"][4:]
    parsed = worker_command.make_context("promptmill worker", list(arguments)).params
    assert parsed["model"] == ("org/model", "/models/other")
    assert (parsed["drain"], parsed["name"], parsed["autotune"]) == (45.0, "mini-1", True)
    assert parsed["memory_limit"] == 40 * 2**30
    assert parsed["log_file"] == Path("/var/log/promptmill-worker/promptmill-worker.log")


def test_the_limit_of_wired_memory_is_set_at_each_boot() -> None:
    """By root, once, before the worker looks at it; only when asked for."""
    plan = worker_plan(WORKER, replace(FLAGS, wired_mib=49152))
    limit = daemon(plan, "promptmill-worker-wired-limit")
    assert limit["ProgramArguments"] == ["/usr/sbin/sysctl", "iogpu.wired_limit_mb=49152"]
    assert limit["RunAtLoad"] is True
    assert not {"KeepAlive", "UserName"} & set(limit)
    bootstraps = [step.command[-1] for step in plan.start if step.command[:2] == ("launchctl", "bootstrap")]
    assert [Path(path).name for path in bootstraps] == [
        "promptmill-worker-wired-limit.plist", "promptmill-worker.plist",
    ]  # fmt: skip
    waiting = daemon(plan, "promptmill-worker")["ProgramArguments"]
    assert waiting[:2] == ["/bin/sh", "-c"]
    assert waiting[4:7] == ["49152", "/usr/sbin/sysctl", "/opt/promptmill/venv/bin/promptmill"]
    assert not any("wired" in str(file.path) for file in worker_plan(WORKER, FLAGS).files)


def test_a_worker_waits_for_the_limit(tmp_path: Path) -> None:
    """Until sysctl tells the value; then the worker takes the shell's place, its arguments as they were."""
    asked, tool = tmp_path / "asked", tmp_path / "sysctl"
    tool.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >>"{asked}"\n[ "$(wc -l <"{asked}")" -lt 2 ] && echo 0 || echo 49152\n'
    )
    tool.chmod(0o755)
    shown = launchd.after_limit(("/bin/echo", "a b", "$c", "*"), 49152, sysctl=str(tool))
    done = subprocess.run(shown, capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path)
    assert done.stdout == "a b $c *\n"
    assert asked.read_text() == "-n iogpu.wired_limit_mb\n" * 2


def test_logs_are_rotated_without_a_signal() -> None:
    """newsyslog gives the new file to the daemon's user, sends nothing, and puts no line of its own in it."""
    file = only(worker_plan(WORKER, FLAGS), "promptmill-worker.conf")
    assert file.path.parent == Path("/etc/newsyslog.d")
    lines = [line.split() for line in file.text.splitlines() if not line.startswith("#")]
    folder = "/var/log/promptmill-worker/promptmill-worker"
    rest = ["promptmill:promptmill", "600", "7", "10240", "*", "BN"]
    assert lines == [[f"{folder}.log", *rest], [f"{folder}.err", *rest]]


def test_the_url_is_in_a_file_of_the_user_alone() -> None:
    """Not in the property list, which everybody may read, and not in what is shown."""
    plan = worker_plan(WORKER, FLAGS)
    settings = only(plan, "promptmill-worker.toml")
    assert (settings.mode, settings.owner) == (0o600, "promptmill")
    assert settings.text == f'redis = "{URL}"\n'
    assert settings.shown == 'redis = "rediss://worker:***@redis.local:6379/0"\n'
    assert [file.path for file in plan.files if "s3cret" in file.text] == [settings.path]


@pytest.mark.parametrize(
    ("url", "written"),
    [
        (URL, f"{URL}?ssl_ca_certs=/etc/promptmill/ca.crt"),
        (f"{URL}?db=1", f"{URL}?db=1&ssl_ca_certs=/etc/promptmill/ca.crt"),
        (f"{URL}?ssl_ca_certs=/own.crt", f"{URL}?ssl_ca_certs=/own.crt"),
    ],
)
def test_an_authority_is_copied_and_named_in_the_url(url: str, written: str) -> None:
    """Unless the URL names one already."""
    plan = worker_plan(replace(WORKER, url=url, authority="CERTIFICATE\n"), FLAGS)
    assert only(plan, "promptmill-worker.toml").text == f'redis = "{written}"\n'
    assert only(plan, "ca.crt").text == "CERTIFICATE\n"


def test_a_url_without_tls_is_remarked_upon() -> None:
    """Unless it is of the machine itself."""

    def remarks(url: str) -> list[str]:
        return [note for note in worker_plan(replace(WORKER, url=url), FLAGS).notes if "TLS" in note]

    assert len(remarks("redis://:s3cret@redis.local")) == 1
    assert not any(map(remarks, ("redis://localhost", "redis://[::1]:1", "unix:///run/redis.sock", URL)))


def test_an_authority_without_tls_is_refused() -> None:
    """It would be of no use, and the password would go over the network as it is."""
    with pytest.raises(RefusedError, match="rediss://"):
        worker_plan(replace(WORKER, url="redis://:s3cret@h", authority="CERTIFICATE\n"), FLAGS)


def test_the_schedulers_daemon() -> None:
    """The same, without what only a worker needs."""
    found = daemon(scheduler_plan(replace(WORKER, label="promptmill-scheduler")), "promptmill-scheduler")
    assert found["ProgramArguments"] == [
        "/opt/promptmill/venv/bin/promptmill", "--config", "/etc/promptmill/promptmill-scheduler.toml", "scheduler",
    ]  # fmt: skip
    assert found["ProcessType"] == "Standard"
    assert found["KeepAlive"] == {"SuccessfulExit": False}
    assert found["EnvironmentVariables"]["PROMPTMILL_SCHEDULER_LOG_FILE"].endswith("/promptmill-scheduler.log")
    assert "HF_HOME" not in found["EnvironmentVariables"]


def test_the_servers_daemon() -> None:
    """Homebrew's program with our configuration, as a user of its own."""
    account = Account("promptmill-redis", "promptmill-redis", Path("/opt/promptmill/redis"))
    flags = ServerFlags(("redis.local",), 2**30, token=lambda: "pw")
    plan = server_plan(server(account), flags)
    found = daemon(plan, "promptmill-server")
    assert found["ProgramArguments"] == ["/opt/homebrew/bin/redis-server", "/etc/promptmill/redis.conf"]
    assert (found["UserName"], found["ProcessType"]) == ("promptmill-redis", "Interactive")
    assert 'logfile "/var/log/promptmill-server/promptmill-server.log"' in only(plan, "redis.conf").text


def test_a_user_is_made_hidden_and_without_a_login() -> None:
    """With one free number for user and group."""
    made = launchd.user_steps(ACCOUNT, 351)
    steps = [step.command for step in made]
    values = {(step[3], step[4]): step[5] for step in steps if len(step) == 6}
    assert values["/Groups/promptmill", "PrimaryGroupID"] == "351"
    assert values["/Users/promptmill", "UniqueID"] == values["/Users/promptmill", "PrimaryGroupID"] == "351"
    assert values["/Users/promptmill", "UserShell"] == "/usr/bin/false"
    assert values["/Users/promptmill", "NFSHomeDirectory"] == "/opt/promptmill/home"
    assert values["/Users/promptmill", "IsHidden"] == "1"
    assert [step.command[4] for step in made if step.may_fail and len(step.command) == 6] == ["NFSHomeDirectory"]


def test_a_user_is_there_only_when_it_is_whole() -> None:
    """The ids are last: after a failure the next installation finds no such user, and makes all of it anew."""
    steps = [step.command for step in launchd.user_steps(ACCOUNT, 351) if step.command[0] == "dscl"]
    of_group = [step for step in steps if step[3].startswith("/Groups/")]
    assert steps[: len(of_group)] == of_group
    assert of_group[-1][4] == "PrimaryGroupID"
    assert steps[-1][3:] == ("/Users/promptmill", "UniqueID", "351")


def test_a_group_that_is_there_stays_as_it_is() -> None:
    """Its number would be another's: files of it would change hands."""
    steps = [step.command for step in launchd.user_steps(ACCOUNT, 352, 777)]
    assert not any(word.startswith("/Groups/") for step in steps for word in step)
    assert ("dscl", ".", "-create", "/Users/promptmill", "PrimaryGroupID", "777") in steps
    assert ("dscl", ".", "-create", "/Users/promptmill", "UniqueID", "352") in steps


def test_logs_are_in_a_folder_of_roots() -> None:
    """newsyslog works there as root: a service could have it follow its links. So the logs are made for it."""
    plan = worker_plan(WORKER, FLAGS)
    (folder,) = [folder for folder in plan.folders if folder.path == Path("/var/log/promptmill-worker")]
    assert (folder.mode, folder.owner, folder.group) == (0o755, "root", "wheel")
    for kind in ("log", "err"):
        file = only(plan, f"promptmill-worker.{kind}")
        assert (file.text, file.mode, file.owner, file.once, file.left) == ("", 0o600, "promptmill", True, True)


def test_nothing_is_for_a_groups_other_members() -> None:
    """An account that was there before may have staff as its group: homes and the server's key are the user's alone."""
    account = Account("someone", "staff", Path("/opt/promptmill/redis"))
    flags = ServerFlags(("redis.local",), 2**30, token=lambda: "pw")
    plan = server_plan(server(account), flags)
    key = "/etc/promptmill/tls/server.key"
    assert [step.command[:2] for step in plan.start if step.command[-1] == key] == [
        ("chmod", "400"),
        ("chown", "someone"),
    ]
    assert {folder.mode for folder in plan.folders if folder.owner == "someone"} == {0o700}
    assert {file.mode for file in plan.files if file.owner == "someone"} == {0o600}


def test_the_servers_certificate_is_looked_at_each_week() -> None:
    """By root, with macOS's own tools."""
    account = Account("promptmill-redis", "promptmill-redis", Path("/opt/promptmill/redis"))
    flags = ServerFlags(("redis.local", "10.0.0.1"), 2**30, token=lambda: "pw")
    plan = server_plan(server(account), flags)
    found = daemon(plan, "promptmill-server-renewal")
    assert found["ProgramArguments"] == [
        "/bin/sh", "/etc/promptmill/renew-certs.sh", "promptmill-server", "promptmill-redis", "redis.local", "10.0.0.1",
    ]  # fmt: skip
    assert set(found["StartCalendarInterval"]) == {"Weekday", "Hour", "Minute"}
    assert not {"KeepAlive", "RunAtLoad", "UserName"} & set(found)
    assert plan.start[-1].command[-1] == "/Library/LaunchDaemons/promptmill-server-renewal.plist"


def test_a_spool_elsewhere_is_made() -> None:
    """The daemon's user could not make it itself."""
    for extra in (("--spool", "/srv/spool"), ("--spool=/srv/spool",)):
        plan = worker_plan(WORKER, replace(FLAGS, extra=extra))
        assert Path("/srv/spool") in [folder.path for folder in plan.folders if folder.owner == "promptmill"]
        assert "/srv/spool" in plan.left
    inside = worker_plan(WORKER, replace(FLAGS, extra=("--spool", str(HOME / "spool"))))
    assert [folder.path for folder in inside.folders] == [folder.path for folder in worker_plan(WORKER, FLAGS).folders]


def test_a_scheduler_takes_the_command_line_that_is_rendered() -> None:
    """Its own parser reads the flags."""
    extra = ("--webhook-hosts", "*.example.com", "--name=one", "--read-from", "/")
    found = daemon(scheduler_plan(replace(WORKER, label="s"), extra=extra), "s")
    parsed = scheduler_command.make_context("promptmill scheduler", found["ProgramArguments"][4:]).params
    assert (parsed["webhook_hosts"], parsed["name"], parsed["read_from"]) == (("*.example.com",), "one", (Path("/"),))


def test_power_settings_are_run_only_with_leave() -> None:
    """Else they are shown."""
    asked = [step.command for step in worker_plan(WORKER, replace(FLAGS, power=True)).start]
    assert ("pmset", "-a", "sleep", "0") in asked
    assert ("pmset", "-a", "autorestart", "1") in asked
    plan = worker_plan(WORKER, FLAGS)
    assert not any(step.command[0] == "pmset" for step in plan.start)
    assert any("pmset -a sleep 0" in note for note in plan.notes)


def test_a_daemon_is_gone_before_it_is_started_anew() -> None:
    """launchctl returns before a worker has drained, and would refuse to start it."""
    words = [step.command[1] for step in launchd.start("x", 75)]
    assert words == ["-lint", "bootout", "print", "enable", "bootstrap"]
    waits = [step.until_fails_s for step in launchd.start("x", 75) if step.command[1] == "print"]
    assert waits == [85]


def test_what_a_property_list_cannot_hold_is_refused() -> None:
    """The message names the daemon."""
    for value in ("a\x00b", "a\rb", 2**70):
        with pytest.raises(RefusedError, match="promptmill-worker"):
            launchd.plist({"Label": "promptmill-worker", "X": value})


def test_how_models_are_fetched_is_said() -> None:
    """As the daemon's user, into its cache, at the revision; folders need none of that."""
    flags = replace(FLAGS, models=("org/a@v2", "/models/b"))
    (note,) = [note for note in worker_plan(WORKER, flags).notes if note.startswith("fetch")]
    assert note.startswith("fetch org/a@v2 after --install --no-start: ")
    assert note.endswith(
        "cd / && sudo -u promptmill env HOME=/opt/promptmill/home HF_HOME=/opt/promptmill/home/huggingface "
        "/opt/promptmill/venv/bin/hf download org/a --revision v2"
    )


def test_a_worker_may_be_installed_without_a_start() -> None:
    """One that runs is stopped; nothing is started, and power settings are made."""
    commands = [step.command for step in worker_plan(WORKER, replace(FLAGS, power=True)).not_started().start]
    assert ("launchctl", "bootout", "system/promptmill-worker") in commands
    assert ("pmset", "-a", "sleep", "0") in commands
    assert not any("bootstrap" in command for command in commands)


@pytest.mark.parametrize("extra", [("--wired-limit", "3G"), ("--wired-limit=3G",), ("-v", "--wired-limit", "3G", "-v")])
def test_a_worker_may_not_wire_more_than_macos_gives(extra: tuple[str, ...]) -> None:
    """Metal would refuse it at the worker's start."""
    with pytest.raises(RefusedError, match="lower it"):
        worker_plan(WORKER, replace(FLAGS, wired_mib=2048, extra=extra))
    worker_plan(WORKER, replace(FLAGS, wired_mib=3072, extra=extra))


@pytest.mark.skipif(not Path("/usr/bin/plutil").exists(), reason="plutil is macOS's")
def test_plutil_finds_nothing_wrong(tmp_path: Path) -> None:
    """macOS's own check of property lists."""
    for file in worker_plan(WORKER, replace(FLAGS, wired_mib=1024)).files:
        if file.path.suffix == ".plist":
            path = tmp_path / file.path.name
            path.write_text(file.text)
            subprocess.run(["plutil", "-lint", os.fspath(path)], check=True)
