"""Workers that were deployed on this machine, and whoever examines it as another user."""

from __future__ import annotations

import shlex
from pathlib import Path

import orjson
import pytest

from deploy.doctor.deployed import Deployed, check_deployed, find_deployed
from deploy.doctor.finding import FindingState
from deploy.host import Host
from submit.cli import main
from tests.servers import Server

PROGRAM = "/opt/promptmill/venv/bin/promptmill"
FLAGS = ["--program", PROGRAM, "--redis", "redis://worker:pw@mini:6379/0"]


def deploy(root: Path, init: str, *flags: str, part: str = "worker") -> None:
    command = ["deploy", part, "--init", init, *FLAGS, *flags, "--root", str(root), "--install"]
    assert main(command) == 0


@pytest.mark.parametrize("init", ["launchd", "systemd"])
def test_a_deployed_worker_is_found(init: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the files that `promptmill deploy` writes: its user, folders and models; a scheduler is no worker."""
    limit = ["--wired-limit", "48G"] if init == "launchd" else []
    deploy(tmp_path, init, "--model", "org/m", "--model", "/models/it's 100%", "--hf-home", "/Volumes/a b", *limit)
    deploy(tmp_path, init, part="scheduler")
    (tmp_path / "etc/promptmill/other.toml").write_text("")
    capsys.readouterr()
    (found,) = find_deployed(Host(tmp_path))
    home = "/opt/promptmill/home" if init == "launchd" else "/var/lib/promptmill/home"
    assert found == Deployed(
        "promptmill-worker",
        "promptmill",
        PROGRAM,
        "/etc/promptmill/promptmill-worker.toml",
        ("org/m", "/models/it's 100%"),
        {"HOME": home, "PROMPTMILL_DATA_DIR": f"{home}/data", "HF_HOME": "/Volumes/a b"},
    )
    start = f"cd / && sudo -u promptmill env HOME={home} 'HF_HOME=/Volumes/a b' PROMPTMILL_DATA_DIR={home}/data"
    assert found.doctor.startswith(
        f"{start} {PROGRAM} --config /etc/promptmill/promptmill-worker.toml doctor --worker --model "
    )
    assert shlex.split(found.doctor)[-1] == "/models/it's 100%"


@pytest.mark.parametrize("damage", ["", "ExecStart='", "User=promptmill\nExecStart=/bin/x --config", "\x00\n[["])
def test_what_is_no_service_of_ours_is_left_out(damage: str, tmp_path: Path) -> None:
    """Files that are damaged, or somebody else's."""
    for place in ("etc/promptmill/w.toml", "etc/systemd/system/w.service", "Library/LaunchDaemons/w.plist"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(damage)
    assert list(find_deployed(Host(tmp_path))) == []
    assert list(find_deployed(Host(tmp_path / "nowhere"))) == []


WORKER = Deployed("promptmill-worker", "promptmill", PROGRAM, "/etc/promptmill/promptmill-worker.toml")


def test_only_another_user_is_told() -> None:
    """The worker's own user looks at the right things already."""
    assert list(check_deployed([WORKER], "promptmill")) == []
    (finding,) = check_deployed([WORKER], "admin")
    assert finding.state is FindingState.WARN
    assert "user 'promptmill'" in finding.reason
    assert finding.command == WORKER.doctor


def test_it_is_said_first_unless_a_redis_or_a_file_is_named(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who names either knows what to look at."""
    monkeypatch.setenv("PROMPTMILL_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("PROMPTMILL_REDIS_URL", server.url)
    monkeypatch.setattr("deploy.doctor.deployed.find_deployed", lambda _host: iter([WORKER]))
    settings = tmp_path / "promptmill.toml"
    settings.write_text(f'redis = "{server.url}"\n')

    def first(*flags: str, before: tuple[str, ...] = ()) -> str:
        assert main([*before, "doctor", "--no-worker", "--json", *flags]) == 0
        name: str = orjson.loads(capsys.readouterr().out)["checks"][0]["name"]
        return name

    assert first() == "deployed worker"
    assert first("--redis", server.url) == "python"
    assert first(before=("--config", str(settings))) == "python"
