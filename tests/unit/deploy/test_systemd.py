"""Units of systemd, as `promptmill deploy` renders them, and the files in deploy/."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.init.service import Account, Deployment, ServiceSpec
from deploy.init.systemd import quoted, unit, user_steps
from deploy.plan import Plan
from deploy.pool import WorkerFlags, scheduler_plan, worker_plan
from deploy.server import ServerFlags, server_plan
from jobs.errors import RefusedError
from tests.deploy_examples import DEPLOY, examples
from tests.programs import needs

HOME = Path("/var/lib/promptmill/home")
ACCOUNT = Account("promptmill", "promptmill", HOME)
WORKER = Deployment("systemd", "promptmill-worker", ACCOUNT, Path(sys.executable), "redis://:s3cret@redis")
SERVER = Deployment("systemd", "promptmill-server", ACCOUNT, Path(sys.executable))
FLAGS = WorkerFlags(("org/model",), HOME / "huggingface")
VERIFY = ["systemd-analyze", "verify"]


def plans() -> dict[str, Plan]:
    server = ServerFlags(("redis.local",), 2**30, token=lambda: "pw")
    odd = replace(FLAGS, extra=("--adapter-path", '/odd "path"/with $dollar %percent;#'), hf_home=Path("/srv/a b"))
    return {
        "worker": worker_plan(WORKER, odd),
        "scheduler": scheduler_plan(replace(WORKER, label="promptmill-scheduler")),
        "server": server_plan(SERVER, server),
    }


def unit_text(plan: Plan) -> str:
    return next(file.text for file in plan.files if file.path.suffix == ".service")


@needs("systemd-analyze")
@pytest.mark.parametrize("name", ["worker", "scheduler", "server"])
def test_systemd_finds_nothing_wrong(name: str, tmp_path: Path) -> None:
    """systemd's own check says nothing of any line."""
    path = tmp_path / f"{name}.service"
    path.write_text(unit_text(plans()[name]))
    done = subprocess.run([*VERIFY, str(path)], capture_output=True, text=True, timeout=60)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if path.name in line]
    assert (done.returncode, ours) == (0, [])


@needs("systemd-analyze")
def test_systemd_would_say_what_is_wrong(tmp_path: Path) -> None:
    """The check above is one: a key that is none, and a program that is missing, are found."""
    path = tmp_path / "bad.service"
    path.write_text(unit_text(plans()["worker"]).replace("TimeoutStopSec", "TimeoutStopSecs"))
    done = subprocess.run([*VERIFY, str(path)], capture_output=True, text=True, timeout=60)
    assert "TimeoutStopSecs" in done.stdout + done.stderr


def test_a_workers_unit() -> None:
    """Its user, its environment, restarts on failure only, and time to drain."""
    lines = unit_text(worker_plan(WORKER, replace(FLAGS, drain_s=10))).splitlines()
    for line in (
        f"ExecStart={sys.executable} --config /etc/promptmill/promptmill-worker.toml "
        "worker --model org/model --drain 10",
        "User=promptmill",
        "Environment=HOME=/var/lib/promptmill/home",
        "Environment=HF_HOME=/var/lib/promptmill/home/huggingface",
        "Environment=PROMPTMILL_DATA_DIR=/var/lib/promptmill/home/data",
        "Restart=on-failure",
        "KillMode=mixed",
        "TimeoutStopSec=40",
        "ReadWritePaths=/var/lib/promptmill/home",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
    ):
        assert line in lines
    assert not any("LOG_FILE" in line or "s3cret" in line for line in lines)  # the journal; the settings file
    assert "MemoryDenyWriteExecute=yes" not in lines  # MLX compiles kernels


def test_a_cache_elsewhere_is_made_and_may_be_written() -> None:
    """A unit with a path that is missing would not start."""
    plan = worker_plan(WORKER, replace(FLAGS, hf_home=Path("/srv/models"), extra=("--spool", "/srv/spool")))
    for place in ("/srv/models", "/srv/spool"):
        assert f"ReadWritePaths={place}" in unit_text(plan).splitlines()
        assert Path(place) in [folder.path for folder in plan.folders]


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("plain", "plain"),
        ("a b", '"a b"'),
        ("", '""'),
        ("50%", "50%%"),
        ("$HOME", "$$HOME"),
        ('say "a"', '"say \\"a\\""'),
        ("back\\slash", '"back\\\\slash"'),
    ],
)
def test_words_are_quoted_for_systemd(word: str, written: str) -> None:
    """What systemd would expand or split stays as it is."""
    assert quoted(word) == written


def test_a_dollar_in_an_assignment_stays() -> None:
    """systemd replaces variables in commands only."""
    service = ServiceSpec(SERVER, "x", ("/bin/true",), {"A": "$b %c d"}, 1)
    assert 'Environment="A=$b %%c d"' in unit(service).files[0].text.splitlines()
    service = ServiceSpec(SERVER, "x", ("/bin/true",), {}, 1, writable=(Path("/srv/$a %b"), Path("/srv/a$$b")))
    lines = unit(service).files[0].text.splitlines()
    assert 'ReadWritePaths="/srv/$a %%b"' in lines
    assert "ReadWritePaths=/srv/a$$b" in lines


def test_the_servers_certificate_is_looked_at_each_week() -> None:
    """By a timer, which is what is started and stopped; without TLS there is none."""
    plan = plans()["server"]
    texts = {file.path.name: file.text for file in plan.files if "renewal" in file.path.name}
    script = "/etc/promptmill/renew-certs.sh promptmill-server promptmill redis.local"
    assert f"ExecStart=/bin/sh {script}" in texts["promptmill-server-renewal.service"].splitlines()
    assert {"OnCalendar=weekly", "Persistent=yes"} <= set(texts["promptmill-server-renewal.timer"].splitlines())
    assert plan.start[-1].command == ("systemctl", "restart", "promptmill-server-renewal.timer")
    open_flags = ServerFlags(("redis.local",), 2**30, tls=False, token=lambda: "pw")
    without = server_plan(SERVER, open_flags)
    assert not any("renew" in file.path.name for file in without.files)


@needs("systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_timer(tmp_path: Path) -> None:
    """Nor with what it starts."""
    files = [file for file in plans()["server"].files if "renewal" in file.path.name]
    for file in files:
        (tmp_path / file.path.name).write_text(file.text)
    paths = [str(tmp_path / file.path.name) for file in files]
    done = subprocess.run([*VERIFY, *paths], capture_output=True, text=True, timeout=60)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "renewal" in line]
    assert (len(paths), done.returncode, ours) == (2, 0, [])


def test_a_worker_keeps_its_devices() -> None:
    """Before systemd 254 ProtectClock= closes all but the clock's, the GPU too."""
    found = {name: unit_text(plan).splitlines() for name, plan in plans().items()}
    assert not {"ProtectClock=yes", "PrivateDevices=yes"} & set(found["worker"])
    for name in ("scheduler", "server"):
        assert {"ProtectClock=yes", "PrivateDevices=yes"} <= set(found[name])


def test_a_scheduler_reads_what_people_prepare() -> None:
    """Files of `schedule add --read-at-fire` may be in homes; the server has nothing to look for there."""
    found = {name: unit_text(plan).splitlines() for name, plan in plans().items()}
    assert "ProtectHome=read-only" in found["scheduler"]
    assert "ProtectHome=yes" in found["server"]


def test_a_user_joins_a_group_that_is_there() -> None:
    """useradd would make none of that name, and no user either."""
    (alone,), (joining,) = user_steps(ACCOUNT), user_steps(ACCOUNT, with_group=False)
    assert "--user-group" in alone.command
    assert joining.command[2:4] == ("--gid", "promptmill")
    assert "--user-group" not in joining.command


@pytest.mark.parametrize("flags", [{"wired_mib": 1024}, {"power": True}])
def test_what_is_macoss_is_refused(flags: dict[str, object]) -> None:
    """With the remedy."""
    with pytest.raises(RefusedError, match="--init launchd"):
        worker_plan(WORKER, replace(FLAGS, **flags))  # type: ignore[arg-type]


def test_the_files_to_read_are_what_the_command_writes() -> None:
    """deploy/ shows nothing that is not so: `python -m tests.deploy_examples` writes them anew."""
    shown = examples()
    kinds = {".plist", ".service", ".timer", ".conf", ".sh", ".acl"}
    assert sorted(shown) == sorted(str(path.relative_to(DEPLOY)) for path in DEPLOY.rglob("*") if path.suffix in kinds)
    for name, text in shown.items():
        assert (DEPLOY / name).read_text(encoding="utf-8") == text, name
