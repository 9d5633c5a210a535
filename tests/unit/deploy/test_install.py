"""Installing, bringing up to date and uninstalling: into a folder, and on a machine whose commands are recorded."""

from __future__ import annotations

import grp
import json
import os
import plistlib
import pwd
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from deploy.host import DeployError, Host, User
from deploy.init import launchd, systemd
from deploy.init.service import Account
from deploy.install import install, record_file, show, uninstall
from deploy.plan import File, Folder, Plan, PlanStep
from jobs.errors import RefusedError
from submit.cli import main

SECRET = "s3cret-of-the-pool"
URL = f"rediss://worker:{SECRET}@redis.local:6379/0"
PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROMPTMILL_REDIS_URL", "RQ_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)


def deploy(root: Path, *arguments: str, init: str = "launchd") -> int:
    program = [] if "--uninstall" in arguments else ["--init", init, "--program", sys.executable]
    return main(["deploy", arguments[0], "--root", str(root), *program, *arguments[1:]])


def files_under(root: Path) -> dict[str, str]:
    return {f"/{path.relative_to(root)}": path.read_text() for path in root.rglob("*") if path.is_file()}


def folder_for(tmp_path: Path) -> tuple[Path, Path]:
    """A folder that stands for a machine, and a file with the URL of its pool."""
    root, url = tmp_path / "root", tmp_path / "worker.url"
    root.mkdir()
    url.write_text(f"{URL}\n")
    return root, url


def test_a_worker_is_installed_changed_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice brings up to date, what is no longer asked for goes, and the end leaves data alone."""
    root, url = folder_for(tmp_path)
    authority = tmp_path / "ca.crt"
    authority.write_text(PEM)
    first = ["worker", "--model", "org/a", "--redis-file", str(url), "--ca", str(authority), "--wired-limit", "20G"]
    assert deploy(root, *first, "--install") == 0
    assert sorted(files_under(root)) == [
        "/Library/LaunchDaemons/promptmill-worker-wired-limit.plist",
        "/Library/LaunchDaemons/promptmill-worker.plist",
        "/etc/newsyslog.d/promptmill-worker.conf",
        "/etc/promptmill/ca.crt",
        "/etc/promptmill/promptmill-worker.json",
        "/etc/promptmill/promptmill-worker.toml",
        "/var/log/promptmill-worker/promptmill-worker.err",
        "/var/log/promptmill-worker/promptmill-worker.log",
    ]
    settings = root / "etc/promptmill/promptmill-worker.toml"
    assert settings.read_text() == f'redis = "{URL}?ssl_ca_certs=/etc/promptmill/ca.crt"\n'
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    assert "not run: launchctl bootstrap system" in capsys.readouterr().out

    (root / "var/log/promptmill-worker/promptmill-worker.log").write_text("served\n")
    before = files_under(root)
    assert deploy(root, *first, "--install") == 0
    assert files_under(root) == before

    # The URL of before is kept, the limit goes, the model is new.
    assert deploy(root, "worker", "--model", "org/b", "--install") == 0
    assert "not run: /usr/sbin/sysctl iogpu.wired_limit_mb=0" in capsys.readouterr().out
    after = files_under(root)
    assert "/Library/LaunchDaemons/promptmill-worker-wired-limit.plist" not in after
    assert "org/b" in after["/Library/LaunchDaemons/promptmill-worker.plist"]
    assert after["/etc/promptmill/promptmill-worker.toml"] == before["/etc/promptmill/promptmill-worker.toml"]

    (root / "opt/promptmill/home/spool").write_text("records")
    capsys.readouterr()
    assert deploy(root, "worker", "--uninstall") == 0
    shown = capsys.readouterr().out
    assert sorted(files_under(root)) == [
        "/etc/promptmill/ca.crt", "/opt/promptmill/home/spool",
        "/var/log/promptmill-worker/promptmill-worker.err", "/var/log/promptmill-worker/promptmill-worker.log",
    ]  # fmt: skip
    assert f"removed {root}/etc/promptmill/promptmill-worker.toml (with redis)" in shown.splitlines()
    assert "left: /etc/promptmill/ca.crt" in shown
    assert "left: /opt/promptmill/home (models, spool)" in shown
    assert "left: user promptmill" in shown
    assert deploy(root, "worker", "--uninstall") == 2


@pytest.mark.parametrize("init", ["launchd", "systemd"])
@pytest.mark.parametrize("kind", ["worker", "scheduler", "server"])
def test_no_secret_is_shown_or_open(kind: str, init: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run, an installation and its removal print none; only files of one user hold any."""
    root, url = folder_for(tmp_path)
    flags = {
        "worker": ["--model", "org/a", "--redis-file", str(url)],
        "scheduler": ["--redis-file", str(url)],
        "server": ["--host", "redis.local", "--maxmemory", "1G"],
    }[kind]
    assert deploy(root, kind, *flags, init=init) == 0
    shown = capsys.readouterr().out
    assert files_under(root) == {}
    assert "***" in shown
    assert deploy(root, kind, *flags, "--install", init=init) == 0
    written = files_under(root)
    secrets = {SECRET} if kind != "server" else {
        text.partition("@")[0].rpartition(":")[2] for name, text in written.items() if name.endswith(".url")
    }  # fmt: skip
    holding = [name for name, text in written.items() if any(secret in text for secret in secrets)]
    assert len(secrets) == (3 if kind == "server" else 1)
    assert len(holding) == (3 if kind == "server" else 1)
    assert {stat.S_IMODE((root / name[1:]).stat().st_mode) for name in holding} == {0o600}
    assert deploy(root, kind, "--uninstall", init=init) == 0
    shown += "".join(capsys.readouterr())
    assert not any(secret in shown for secret in secrets)


def test_a_servers_passwords_stay(tmp_path: Path) -> None:
    """An installation over another keeps users, those added by hand too; their rules are the new ones."""
    root, _ = folder_for(tmp_path)
    flags = ["server", "--host", "redis.local", "--maxmemory", "1G", "--install"]
    assert deploy(root, *flags) == 0
    acl, urls = root / "opt/promptmill/redis/users.acl", root / "etc/promptmill"
    written, url = acl.read_text(), (urls / "worker.url").read_text()
    acl.write_text(written.replace("~rq:* ", "~old:* ") + "user grafana on #" + "a" * 64 + " ~x +get\n")
    assert deploy(root, *flags) == 0
    assert acl.read_text() == written + "user grafana on #" + "a" * 64 + " ~x +get\n"
    assert (urls / "worker.url").read_text() == url
    assert deploy(root, *flags, "--new-passwords") == 0
    assert (urls / "worker.url").read_text() != url
    assert "user grafana on" in acl.read_text()
    assert not set(written.split()) & {word for word in acl.read_text().split() if len(word) == 65}


def test_no_password_is_lost_where_an_installation_breaks_off(tmp_path: Path) -> None:
    """The server's users are written when their URLs are: else the next one would keep passwords that nobody knows."""
    root, _ = folder_for(tmp_path)
    blocked = root / "etc/promptmill/worker.url"
    blocked.mkdir(parents=True)
    flags = ["server", "--host", "redis.local", "--maxmemory", "1G", "--install"]
    assert deploy(root, *flags) == 1
    assert not (root / "opt/promptmill/redis/users.acl").exists()
    blocked.rmdir()
    assert deploy(root, *flags) == 0
    assert blocked.read_text().startswith("rediss://worker:")


def test_a_root_that_is_missing_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By an installation; what only shows makes nothing, and one that never was is said."""
    root = tmp_path / "deep" / "root"
    flags = ["--model", "org/a", "--redis", URL]
    assert deploy(root, "worker", *flags) == 0
    assert deploy(root, "worker", "--uninstall") == 2
    assert not root.parent.exists()
    assert deploy(root, "worker", *flags, "--install") == 0
    assert (root / "etc/promptmill/promptmill-worker.toml").is_file()
    assert "nothing is installed under the label promptmill-worker" in capsys.readouterr().err


@pytest.mark.parametrize("init", ["launchd", "systemd"])
def test_what_an_uninstallation_would_do_is_shown(
    init: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same files, commands and rest as it has then, and nothing is changed."""
    root, url = folder_for(tmp_path)
    assert deploy(root, "worker", "--model", "org/a", "--redis-file", str(url), "--install", init=init) == 0
    before = files_under(root)
    capsys.readouterr()
    assert deploy(root, "worker", "--uninstall", "--dry-run") == 0
    assert files_under(root) == before
    shown = capsys.readouterr().out
    assert deploy(root, "worker", "--uninstall") == 0
    done = capsys.readouterr().out.splitlines()
    words = (("would remove ", "removed "), ("would run ", "not run: "), ("would leave ", "left: "))
    for would, did in words:
        expected = [line.removeprefix(did) for line in done if line.startswith(did)]
        assert [line.removeprefix(would) for line in shown.splitlines() if line.startswith(would)] == expected != []
    assert SECRET not in shown
    assert deploy(root, "worker", "--uninstall", "--dry-run") == 2


def test_a_dry_run_shows_all_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files with their modes and owners, commands, notes."""
    root, url = folder_for(tmp_path)
    assert deploy(root, "worker", "--model", "org/a", "--redis-file", str(url), "--dry-run") == 0
    shown = capsys.readouterr().out
    assert files_under(root) == {}
    for line in (
        "file /Library/LaunchDaemons/promptmill-worker.plist  0644 root:wheel",
        "file /etc/promptmill/promptmill-worker.toml  0600 promptmill:promptmill",
        "    launchctl bootstrap system /Library/LaunchDaemons/promptmill-worker.plist",
        "    launchctl bootout system/promptmill-worker || true",
    ):
        assert line in shown.splitlines()
    assert "pmset -a sleep 0" in shown


class Machine:
    """A machine that writes down its commands; those that begin with words of ``failing`` fail so often, and the
    others print what ``prints`` has for them."""

    def __init__(self, prints: Mapping[str, str] | None = None, **failing: int) -> None:
        self.commands: list[str] = []
        self.prints = prints or {}
        self.failing = failing
        self.now = 0.0

    def run(self, command: Sequence[str], _timeout_s: float | None) -> CompletedProcess[str]:
        self.commands.append(" ".join(command))
        word = command[1] if len(command) > 1 else command[0]
        if " ".join(command) in self.prints:
            return CompletedProcess((), 0, self.prints[" ".join(command)], "")
        if self.failing.get(word, 0) > 0:
            self.failing[word] -= 1
            return CompletedProcess((), 5, "Input/output error", "")
        return CompletedProcess((), 0, "", "")

    def host(self, platform: str = sys.platform, is_mount: Callable[[Path], bool] = os.path.ismount) -> Host:
        def sleep(seconds: float) -> None:
            self.now += seconds

        return Host(runner=self.run, platform=platform, uid=0, clock=lambda: self.now, sleep=sleep, is_mount=is_mount)


def test_a_command_is_repeated_until_it_works() -> None:
    """Just after a daemon ended launchd may not take it anew for a moment."""
    machine = Machine(bootstrap=3)
    machine.host().run(PlanStep(("launchctl", "bootstrap"), until_works_s=10))
    assert len(machine.commands) == 4


def test_a_command_that_does_not_work_is_named() -> None:
    """With what it printed; one that may fail is passed over."""
    with pytest.raises(DeployError, match="`launchctl bootstrap` failed with status 5: Input/output error"):
        Machine(bootstrap=99).host().run(PlanStep(("launchctl", "bootstrap"), until_works_s=3))
    Machine(bootout=1).host().run(PlanStep(("launchctl", "bootout"), may_fail=True))


def test_a_daemon_is_waited_for() -> None:
    """Until launchd knows it no longer, and not for ever."""
    machine = Machine(print=0)
    with pytest.raises(DeployError, match="still runs after 75 seconds"):
        machine.host().run(PlanStep(("launchctl", "print"), until_fails_s=75))
    assert 75 <= machine.now < 80
    gone = Machine(print=1)
    gone.host().run(PlanStep(("launchctl", "print"), until_fails_s=75))
    assert gone.now == 0


def test_what_is_waited_for_is_said() -> None:
    """Once: where a daemon ends at once nothing is, and systemd's own waiting is said before it begins."""
    said: list[str] = []
    step = PlanStep(("launchctl", "print"), until_fails_s=5, waits="waiting until x has ended")
    Machine(print=1).host().run(step, said.append)
    assert said == []
    with pytest.raises(DeployError):
        Machine().host().run(step, said.append)
    assert said == ["waiting until x has ended"]
    Machine().host().run(systemd.start("x", 60)[-1], said.append)
    assert said[1:] == ["starting x: one that runs ends first, within 60 seconds"]


def test_a_failure_has_its_remedy() -> None:
    """Over SSH macOS may refuse even root to make a user."""
    steps = launchd.user_steps(Account("promptmill", "promptmill", Path("/opt/x")), 351)
    with pytest.raises(DeployError, match=r"14120.*Allow full disk access for remote users"):
        Host(runner=lambda *_: CompletedProcess((), 40, "eDSPermissionError (-14120)", "")).run(steps[0])


POWER_SHOWN = """Battery Power:
 sleep                1 (sleep prevented by sharingd)
 powernap             1
AC Power:
 Sleep On Power Button 1
 womp                 1
 sleep                10
 displaysleep         10
"""


def test_former_power_settings_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of before the first installation, by the source of power, and how they come back is said at the end."""
    monkeypatch.setattr(Host, "at", lambda _self, path: tmp_path / path.relative_to("/"))
    monkeypatch.setattr(Host, "_own", lambda *_: None)
    back = ["sudo pmset -b sleep 1 powernap 1", "sudo pmset -c womp 1 sleep 10"]
    plan = Plan("x", "launchd", (), (), start=(PlanStep(("pmset", "-a", "sleep", "0")),), power=True)
    for shown in (POWER_SHOWN, POWER_SHOWN.replace("10", "0")):
        install(plan, Machine({"pmset -g custom": shown}).host("darwin"), lambda _: None)
        record = json.loads((tmp_path / str(record_file("x"))[1:]).read_text())
        assert record["power"] == back
    said: list[str] = []
    uninstall("x", Machine().host("darwin"), said.append)
    assert said[-2:] == [f"the power settings of before: {command}" for command in back]


def test_what_was_set_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an installation without it, and at the end; not by one that sets it anew."""
    monkeypatch.setattr(Host, "at", lambda _self, path: tmp_path / path.relative_to("/"))
    monkeypatch.setattr(Host, "_own", lambda *_: None)
    with_limit, without = Plan("x", "launchd", (), (), undo=(launchd.NO_LIMIT,)), Plan("x", "launchd", (), ())
    reset = "/usr/sbin/sysctl iogpu.wired_limit_mb=0"
    for plan, commands in ((with_limit, []), (with_limit, []), (without, [reset]), (without, []), (with_limit, [])):
        machine, said = Machine(), list[str]()
        install(plan, machine.host("darwin"), said.append)
        assert machine.commands == commands
        assert said == [f"ran {command}" for command in commands]
    machine = Machine()
    uninstall("x", machine.host("darwin"), lambda _: None)
    assert machine.commands == [reset]


def test_a_disk_that_is_away_is_not_made() -> None:
    """Its folder would be on the disk of the system, and hide the real one's place; nothing is written."""
    machine = Machine()
    plan = Plan("x", "launchd", (Folder(Path("/Volumes/Models/hf"), 0o700, "x", "x"),), (), (PlanStep(("dscl",)),))
    with pytest.raises(RefusedError, match=r"/Volumes/Models: attach it"):
        install(plan, machine.host("darwin", lambda _: False), lambda _: None)
    assert machine.commands == []
    machine.host("darwin", lambda path: path == Path("/Volumes/Models")).check_disk(Path("/Volumes/Models/hf"))
    machine.host("linux", lambda _: False).check_disk(Path("/Volumes/Models/hf"))
    machine.host("darwin", lambda _: False).check_disk(Path("/opt/promptmill"))


def test_what_a_service_may_have_put_there_is_not_followed(tmp_path: Path) -> None:
    """Root keeps no file that is a link, or one more name of another: it would give that one away."""
    other, host = tmp_path / "other", Host(tmp_path)
    other.write_text("")
    other.chmod(0o644)
    (tmp_path / "link").symlink_to(other)
    (tmp_path / "name").hardlink_to(other)
    (tmp_path / "folder").mkdir()
    for name in ("link", "name", "folder"):
        with pytest.raises(DeployError, match=name):
            host.keep(File(Path("/") / name, "", 0o600, "x", "x", kept=True))
    assert stat.S_IMODE(other.stat().st_mode) == 0o644


def test_an_administrator_to_be_is_none_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who is not there yet would join the group of its name."""
    monkeypatch.setattr(Host, "gid_of", lambda _self, name: {"sudo": 27, "wheel": 0, "games": 60}.get(name))
    assert [Host().is_admin(User(name)) for name in ("sudo", "wheel", "games", "promptmill")] == [
        True,
        True,
        False,
        False,
    ]


SECRET_OF_HOOKS = "whsec_" + "QUFB" * 8


def test_a_scheduler_has_its_secret_and_its_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The secret is in the settings, never shown, and stays when the URL is another; so does what a person added."""
    root, url = folder_for(tmp_path)
    secret = tmp_path / "webhook.secret"
    secret.write_text(f"{SECRET_OF_HOOKS}\n")
    flags = ["scheduler", "--redis-file", str(url), "--webhook-secret-file", str(secret), "--install"]
    assert deploy(root, *flags, "--", "--read-from", "/srv/x", "--webhook-hosts", "*.example.com") == 0
    settings = root / "etc/promptmill/promptmill-scheduler.toml"
    table = f'[scheduler]\nwebhook-secret = "{SECRET_OF_HOOKS}"\n'
    assert settings.read_text() == f'redis = "{URL}"\n\n{table}'
    daemon = plistlib.loads((root / "Library/LaunchDaemons/promptmill-scheduler.plist").read_bytes())
    assert daemon["ProgramArguments"][3:] == ["scheduler", "--read-from", "/srv/x", "--webhook-hosts", "*.example.com"]
    settings.write_text(settings.read_text() + '# by hand\nname = "n"\n')
    url.write_text("redis://localhost")
    assert deploy(root, "scheduler", "--redis-file", str(url), "--install") == 0
    assert settings.read_text() == f'redis = "redis://localhost"\n\n{table}# by hand\nname = "n"\n'
    assert deploy(root, "scheduler", "--redis-file", str(url)) == 0
    assert "# kept as it is: scheduler.webhook-secret, scheduler.name" in capsys.readouterr().out
    assert deploy(root, "scheduler", "--uninstall") == 0
    shown = capsys.readouterr()
    assert "promptmill-scheduler.toml (with redis, scheduler.webhook-secret, scheduler.name)" in shown.out
    assert "QUFB" not in "".join(shown)


def test_a_program_that_is_missing_is_said() -> None:
    """As the system says it."""
    with pytest.raises(DeployError, match="No such file"):
        Host().run(PlanStep(("/nonexistent/tool",)))


def test_another_system_is_refused() -> None:
    """With what can be done instead."""
    plan = Plan("x", "launchd", (), ())
    with pytest.raises(RefusedError, match="--init systemd"):
        install(plan, Host(platform="linux", uid=0), print)
    with pytest.raises(RefusedError, match="--init launchd"):
        install(replace(plan, init="systemd"), Host(platform="darwin", uid=0), print)
    with pytest.raises(RefusedError, match="sudo"):
        install(plan, Host(platform="darwin", uid=501), print)


def test_links_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    """Root follows nobody's links, and gives no folder away."""
    host = Host(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("link", "file"):
        (tmp_path / "file").write_text("")
        with pytest.raises(RefusedError, match="not a folder"):
            host.make_folder(Folder(Path("/") / name, 0o755, "x", "x"))
    with pytest.raises(RefusedError, match="is not nobody's"):
        Host().make_folder(Folder(tmp_path, 0o755, "nobody", "nogroup"))


def test_a_file_takes_the_place_of_another_whole(tmp_path: Path) -> None:
    """Never in part, never open for longer than its mode says, and nothing is left beside it."""
    host, path = Host(tmp_path), tmp_path / "etc" / "f"
    host.write(File(Path("/etc/f"), "old", 0o644, "x", "x"))
    before = path.stat().st_ino
    host.write(File(Path("/etc/f"), "new", 0o600, "x", "x"))
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o600)
    assert path.stat().st_ino != before
    assert list(path.parent.iterdir()) == [path]


def test_files_get_their_owner(tmp_path: Path) -> None:
    """One who is there; else it is said, and nothing is left."""
    user, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name
    Host().write(File(tmp_path / "a", "", 0o640, user, group))
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    with pytest.raises(DeployError, match="nobody-of-that-name"):
        Host().write(File(tmp_path / "b", "", 0o640, "nobody-of-that-name", group))
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_an_installation_that_broke_off_can_be_removed(tmp_path: Path) -> None:
    """What it wrote is on record before it is written."""
    blocked = tmp_path / "etc" / "b"
    blocked.mkdir(parents=True)
    files = tuple(File(Path("/etc") / name, "", 0o644, "x", "x") for name in ("a", "b"))
    with pytest.raises(DeployError):
        install(Plan("x", "launchd", (), files), Host(tmp_path), lambda _: None)
    blocked.rmdir()
    said: list[str] = []
    uninstall("x", Host(tmp_path), said.append)
    assert said[0] == f"removed {tmp_path}/etc/a"
    assert files_under(tmp_path) == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"init": 1}', '{"init":"launchd","files":3,"daemons":[],"left":[]}'])
def test_a_damaged_record_is_said(tmp_path: Path, text: str) -> None:
    """By its name."""
    path = tmp_path / str(record_file("x"))[1:]
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(RefusedError, match=r"x\.json is damaged"):
        uninstall("x", Host(tmp_path), print)


def test_the_record_names_files_and_daemons(tmp_path: Path) -> None:
    """And nothing secret."""
    root, url = folder_for(tmp_path)
    assert deploy(root, "worker", "--model", "org/a", "--redis-file", str(url), "--install", init="systemd") == 0
    text = (root / "etc/promptmill/promptmill-worker.json").read_text()
    assert json.loads(text) == {
        "init": "systemd",
        "files": ["/etc/promptmill/promptmill-worker.toml", "/etc/systemd/system/promptmill-worker.service"],
        "daemons": ["promptmill-worker"],
        "left": ["/var/lib/promptmill/home (models, spool)", "user promptmill"],
        "undo": [],
        "power": [],
    }


def test_a_timer_is_what_is_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not what it starts once a week."""
    root, _ = folder_for(tmp_path)
    flags = ["server", "--host", "redis.local", "--maxmemory", "1G", "--install"]
    assert deploy(root, *flags, init="systemd") == 0
    record = json.loads((root / "etc/promptmill/promptmill-server.json").read_text())
    assert record["daemons"] == ["promptmill-server", "promptmill-server-renewal.timer"]
    capsys.readouterr()
    assert deploy(root, "server", "--uninstall") == 0
    shown = capsys.readouterr().out.splitlines()
    assert "not run: systemctl disable --now promptmill-server-renewal.timer || true" in shown
    assert not list((root / "etc/systemd/system").iterdir())


def test_a_plan_without_commands_or_notes_is_shown(tmp_path: Path) -> None:
    """No empty headings."""
    plan = Plan("x", "launchd", (), (File(Path("/etc/a"), "one\n\ntwo\n", 0o644, "root", "wheel"),))
    assert show(plan) == ["", "file /etc/a  0644 root:wheel", "    one", "", "    two"]
