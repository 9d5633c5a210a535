"""What the doctor makes of a Mac: the words of macOS' own tools are read, and findings made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from deploy.doctor.finding import Finding, FindingState
from deploy.doctor.mac import POWER_CHECKS, Mac, WiredAtBoot, ask_mac, check_power
from deploy.doctor.machine import Machine, check_macos, check_processor, check_python, check_wired_limit
from deploy.gpu_limit import least_left, most_wired
from deploy.host import Host
from deploy.init.launchd import wired_limit

SYSCTL = """\
hw.memsize: 68719476736
hw.optional.arm64: 1
iogpu.wired_limit_mb: 0
machdep.cpu.brand_string: Apple M4 Pro
sysctl.proc_translated: 0
"""
INTEL = """\
hw.memsize: 17179869184
machdep.cpu.brand_string: Intel(R) Core(TM) i7-8700B CPU @ 3.20GHz
"""
MINI = """\
AC Power:
 Sleep On Power Button 1
 autorestart          1
 lowpowermode         0
 standby              0
 ttyskeepawake        1
 powernap             1
 disksleep            10
 sleep                0
 displaysleep         10
 tcpkeepalive         1
 womp                 1
 networkoversleep     0
"""
BOOK = """\
Battery Power:
 Sleep On Power Button 1
 lowpowermode         1
 standby              1
 sleep                1
 displaysleep         2
 disksleep            10
AC Power:
 Sleep On Power Button 1
 lowpowermode         0
 standby              1
 sleep                1 (sleep prevented by powerd)
 displaysleep         10
 disksleep            10
"""
MAINS = "Now drawing from 'AC Power'\n"
BATTERY = """\
Now drawing from 'Battery Power'
 -InternalBattery-0 (id=22806627)\t87%; discharging; 9:12 remaining present: true
"""


def tools(
    sysctl: str = SYSCTL,
    custom: str = MINI,
    source: str = MAINS,
    vault: str = "FileVault is Off.\n",
    version: str = "15.5\n",
    daemons: Path = Path("/nonexistent"),
) -> Mac:
    """The facts of a Mac whose tools print this."""
    answers = {"sysctl": sysctl, "custom": custom, "ps": source, "status": vault, "-productVersion": version}

    def run(command: Sequence[str], _timeout_s: float | None) -> CompletedProcess[str]:
        said = next(text for word, text in answers.items() if word in (command[-1], command[0].rpartition("/")[2]))
        return CompletedProcess((), 0, said, "")

    return ask_mac(Host(runner=run), daemons)


def host(mac: Mac | None, architecture: str = "arm64") -> Machine:
    memory = mac.memory if mac is not None else 2**34
    return Machine("Darwin" if mac else "Linux", architecture, (3, 12, 4), memory, mac)


def power(mac: Mac | None) -> dict[str, Finding]:
    return {finding.name: finding for finding in check_power(mac)}


def test_a_mac_that_is_set_up_well_passes() -> None:
    """A Mac mini that never sleeps, starts by itself and has an Apple chip: nothing to say."""
    mac = tools()
    machine = host(mac)
    found = [check_processor(machine), check_macos(machine), check_python(machine), check_wired_limit(machine)]
    found += check_power(mac)
    assert {finding.state for finding in found} == {FindingState.OK}
    assert found[0].reason == "Apple M4 Pro, native arm64"
    assert found[1].reason == "15.5"
    assert mac.memory == 64 * 2**30


def test_rosetta_is_told_from_an_intel_mac() -> None:
    """A translated Python on an Apple chip is to be replaced; on an Intel Mac nothing helps."""
    translated = check_processor(host(tools(sysctl=SYSCTL.replace("translated: 0", "translated: 1")), "x86_64"))
    assert translated.state is FindingState.FAIL
    assert "Rosetta" in translated.reason
    assert "uv python install" in (translated.remedy or "")
    intel = check_processor(host(tools(sysctl=INTEL), "x86_64"))
    assert intel.state is FindingState.FAIL
    assert "Intel(R) Core(TM) i7" in intel.reason
    assert "Rosetta" not in intel.reason
    # Where sysctl itself runs natively, the architecture of this Python tells.
    assert "Rosetta" in check_processor(host(tools(), "x86_64")).reason


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ("13.6.9\n", FindingState.FAIL),
        ("14.0\n", FindingState.OK),
        ("26.1\n", FindingState.OK),
        ("", FindingState.WARN),
    ],
)
def test_an_old_macos_fails(version: str, state: FindingState) -> None:
    """MLX has no wheels for macOS before 14; a version that nobody says is no failure."""
    assert check_macos(host(tools(version=version))).state is state


def test_a_mac_that_sleeps_is_told_how_not_to() -> None:
    """The number of minutes on mains power counts, not that on the battery."""
    found = power(tools(custom=BOOK))
    assert found["sleep"].state is FindingState.WARN
    assert "for a minute and no worker holds lines" in found["sleep"].reason
    assert found["sleep"].remedy == "sudo pmset -c sleep 0"
    awake = power(tools(custom=BOOK.replace("sleep                1 (sleep prevented by powerd)", "sleep 0")))
    assert awake["sleep"].state is FindingState.OK
    assert "10 minutes" in power(tools(custom=MINI.replace("sleep                0", "sleep 10")))["sleep"].reason


def test_low_power_is_seen_under_both_names() -> None:
    """Older systems have lowpowermode, newer ones powermode, whose 2 is high power; a battery is said first."""
    slow = power(tools(custom=MINI.replace("lowpowermode         0", "lowpowermode         1")))["power"]
    assert (slow.state, slow.remedy) == (FindingState.WARN, "sudo pmset -a lowpowermode 0")
    slow = power(tools(custom=MINI.replace("lowpowermode         0", "powermode            1")))["power"]
    assert (slow.state, slow.remedy) == (FindingState.WARN, "sudo pmset -a powermode 0")
    assert power(tools(custom=MINI.replace("lowpowermode         0", "powermode 2")))["power"].state is FindingState.OK
    assert power(tools(custom=BOOK, source=BATTERY))["power"].remedy == "plug it in"


def test_what_a_power_cut_does() -> None:
    """A Mac that stays off, or waits at FileVault's lock, does no work; a laptop has somebody at it."""
    off = power(tools(custom=MINI.replace("autorestart          1", "autorestart          0")))["power cut"]
    assert (off.state, off.remedy) == (FindingState.WARN, "sudo pmset -a autorestart 1")
    assert power(tools(vault="FileVault is On.\n"))["FileVault"].state is FindingState.WARN
    book = power(tools(custom=BOOK, source=BATTERY.replace("'Battery", "'AC"), vault="FileVault is On.\n"))
    assert book["FileVault"].state is FindingState.SKIP
    assert book["power cut"].state is FindingState.SKIP


def test_the_wired_limit_leaves_macos_room() -> None:
    """What macOS chooses is good, what is set is said, and too much is warned of with a number to set."""
    machine = host(tools())
    assert machine.mac is not None
    raised = replace(machine, mac=replace(machine.mac, wired_limit_mb=57344))
    assert check_wired_limit(raised).state is FindingState.OK
    assert "57344 until the next start" in check_wired_limit(raised).reason
    wild = check_wired_limit(replace(machine, mac=replace(machine.mac, wired_limit_mb=64512)))
    assert wild.state is FindingState.WARN
    assert wild.remedy == "sudo sysctl iogpu.wired_limit_mb=57344"
    small = tools(
        sysctl=SYSCTL.replace("68719476736", "17179869184").replace("wired_limit_mb: 0", "wired_limit_mb: 14336")
    )
    assert check_wired_limit(host(small)).remedy == "sudo sysctl iogpu.wired_limit_mb=0 (macOS's own)"


@pytest.mark.parametrize(("gib", "most"), [(8, None), (16, None), (24, 16), (32, 24), (64, 56), (128, 112), (512, 448)])
def test_one_rule_for_the_wired_limit(gib: int, most: int | None) -> None:
    """An eighth is left to the system, and 8 GiB; where that is no more than macOS gives there is no limit to set. What
    is recommended is never warned of."""
    found = most_wired(gib * 2**30)
    assert found == (None if most is None else most * 2**30)
    if found is not None:
        assert gib * 2**30 - found >= least_left(gib * 2**30)


def daemon(folder: Path, mebibytes: int) -> Path:
    """The daemon of `promptmill deploy worker --wired-limit`, and others' files."""
    (file,) = wired_limit("promptmill-worker-wired-limit", mebibytes).files
    (folder / file.path.name).write_text(file.text)
    (folder / "a-wired-limit.plist").write_text("<plist>")
    (folder / "b-wired-limit.plist").write_text(file.text.replace("iogpu.", "other."))
    return folder


def test_a_daemon_that_sets_the_wired_limit_is_found(tmp_path: Path) -> None:
    """Then it is not only until the next start; what it did not set, or what is too much in it, is warned of."""
    raised = SYSCTL.replace("wired_limit_mb: 0", "wired_limit_mb: 57344")
    mac = tools(sysctl=raised, daemons=daemon(tmp_path, 57344))
    assert mac.wired_at_boot == WiredAtBoot("promptmill-worker-wired-limit", 57344)
    kept = check_wired_limit(host(mac))
    assert kept.state is FindingState.OK
    assert "57344, set by the daemon promptmill-worker-wired-limit at each start" in kept.reason
    other = check_wired_limit(host(tools(daemons=tmp_path)))
    assert other.state is FindingState.WARN
    assert "launchctl kickstart system/promptmill-worker-wired-limit" in (other.remedy or "")
    much = SYSCTL.replace("wired_limit_mb: 0", "wired_limit_mb: 64512")
    wild = check_wired_limit(host(tools(sysctl=much, daemons=daemon(tmp_path, 64512))))
    assert wild.state is FindingState.WARN
    assert "install promptmill-worker again with --wired-limit 57344M" in (wild.remedy or "")


def test_tools_that_say_nothing_are_no_failure() -> None:
    """Where a tool is missing, or prints something else, its checks are skipped, and never fail."""
    for said in ("", "no such thing\n", ": :\n\x00"):
        mac = tools(said, said, said, said, said)
        assert {finding.state for finding in check_power(mac)} == {FindingState.SKIP}
        assert check_wired_limit(host(mac)).state is FindingState.SKIP
        assert check_processor(host(mac)).state is FindingState.OK


def test_elsewhere_than_on_a_mac_nothing_of_it_is_asked() -> None:
    """Linux runs workers for development: these checks are skipped there."""
    machine = host(None, "x86_64")
    found = [check_processor(machine), check_macos(machine), check_wired_limit(machine), *check_power(None)]
    assert {finding.state for finding in found} == {FindingState.SKIP}
    assert tuple(finding.name for finding in found[3:]) == POWER_CHECKS


def test_a_tool_that_is_missing_or_fails_is_read_all_the_same() -> None:
    """sysctl prints what it knows and fails for what it does not; a program that is not there prints nothing."""
    assert Host().output(["/bin/sh", "-c", "echo here; exit 1"]) == "here\n"
    assert Host().output(["/nonexistent/tool"]) == ""
