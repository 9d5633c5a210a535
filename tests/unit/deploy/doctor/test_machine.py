"""What the doctor makes of packages, of MLX's device, and of folders and disks."""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.doctor.disk import check_data_folder, check_disks, check_room
from deploy.doctor.finding import FindingState
from deploy.doctor.mac import Mac
from deploy.doctor.machine import (
    SIDE,
    Device,
    Machine,
    Package,
    ask_device,
    ask_machine,
    bounds,
    check_device,
    check_package,
)
from deploy.host import Host

MAC = Machine("Darwin", "arm64", (3, 12, 0), 2**36, Mac(version=(15, 5)))
LINUX = Machine("Linux", "x86_64", (3, 12, 0), 2**36)


def python(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def answer(device: str, total: float, info: str = "{}") -> list[str]:
    return python(f"""print('{{"device": "{device}", "total": {total}, "info": {info}}}')""")


def test_bounds_are_those_of_this_system() -> None:
    """Of requirements with conditions those of workers on this system are taken."""
    requirements = [
        "click<9,>=8.2",
        'mlx<0.33,>=0.32.4; sys_platform == "darwin" and extra == "worker"',
        'mlx[cpu]<0.34,>=0.33; sys_platform == "linux" and extra == "worker"',
        'mlx-lm (>=0.32.2,<0.33) ; extra == "worker"',
        'mlx-lm>=9; extra == "bench"',
    ]
    assert bounds(requirements, "darwin")["mlx"] == "<0.33,>=0.32.4"
    assert bounds(requirements, "linux")["mlx"] == "<0.34,>=0.33"
    assert "click" not in bounds(requirements, "linux")


@pytest.mark.parametrize(
    ("installed", "wanted", "state"),
    [
        ("0.32.4", "<0.33,>=0.32.4", FindingState.OK),
        ("0.32.10", "<0.33,>=0.32.4", FindingState.OK),
        ("0.33", "<0.33,>=0.32.4", FindingState.FAIL),
        ("0.33.0", "<0.33,>=0.32.4", FindingState.FAIL),
        ("0.32.3.dev2", "<0.33,>=0.32.4", FindingState.FAIL),
        ("1.0", "", FindingState.OK),
        (None, ">=1", FindingState.FAIL),
    ],
)
def test_versions_are_held_against_the_bounds(installed: str | None, wanted: str, state: FindingState) -> None:
    """Numbers are compared as numbers; what is installed and what is needed are said."""
    finding = check_package("mlx", Package(installed, wanted))
    assert finding.state is state
    if state is FindingState.FAIL:
        assert (installed or "not installed") in finding.reason
        assert "promptmill[worker]" in (finding.remedy or "")


def test_the_host_at_hand_is_asked() -> None:
    """The versions are those that are installed, and the bounds those of the package itself."""
    host = ask_machine(Host())
    assert host.packages["mlx-lm"].installed == importlib.metadata.version("mlx-lm")
    assert ">=" in host.packages["mlx"].wanted
    assert check_package("mlx", host.packages["mlx"]).state is FindingState.OK
    assert host.memory is not None
    assert host.memory > 2**28


def test_the_device_at_hand_computes() -> None:
    """MLX is tried in a process of its own: this one never imports it."""
    device = ask_device()
    assert device.error is None
    assert check_device(LINUX, device).state is FindingState.OK


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            python("import sys; print('some noise', file=sys.stderr); sys.exit('no such symbol: _mlx')"),
            "no such symbol",
        ),
        (python("import os; os.abort()"), "ended by signal 6"),
        (python("print('hello')"), "it answered 'hello'"),
        (python("print('[]')"), "it answered"),
        (answer("Device(gpu, 0)", SIDE**3 - 1), "is right"),
        (["/nonexistent/python"], "No such file"),
    ],
)
def test_an_mlx_that_does_not_work_fails(command: list[str], said: str) -> None:
    """The last that it said is in the reason."""
    finding = check_device(MAC, ask_device(command))
    assert finding.state is FindingState.FAIL
    assert said in finding.reason


def test_an_mlx_that_hangs_is_not_waited_for() -> None:
    """Its time is limited, and it is ended."""
    device = ask_device(python("import time; time.sleep(600)"), timeout_s=0.2)
    assert device.error == "no answer within 0.2 s"


def test_a_mac_computes_on_its_gpu() -> None:
    """What the device recommends is read; a build without Metal is warned of."""
    info = '{"device_name": "Apple M4", "max_recommended_working_set_size": 11453251584}'
    device = ask_device(answer("Device(gpu, 0)", SIDE**3, info))
    assert device == Device("Apple M4", gpu=True, recommended=11453251584)
    assert check_device(MAC, device).state is FindingState.OK
    assert "10.7 GiB" in check_device(MAC, device).reason
    assert check_device(MAC, ask_device(answer("Device(cpu, 0)", SIDE**3))).state is FindingState.WARN


def test_disks_are_named_once_with_all_that_lies_there(tmp_path: Path) -> None:
    """Folders of one disk are one finding; those not made yet are on the disk of their parent."""
    folders = [("data folder", tmp_path), ("spool", tmp_path / "not" / "there"), ("hub's cache", Path("/"))]
    room = {tmp_path: (1, 5 * 10**9), Path("/"): (2, 10**8)}
    scarce, full = check_disks(folders, lambda folder: room[folder])
    assert (scarce.state, full.state) == (FindingState.WARN, FindingState.FAIL)
    assert scarce.reason == "5.0 GB free for the data folder and spool"
    assert full.reason == "0.1 GB free for the hub's cache"
    (good,) = check_disks(folders, lambda folder: (1, 10**11))
    assert good.state is FindingState.OK


def test_a_disk_that_is_gone_is_said(tmp_path: Path) -> None:
    """A volume that cannot be asked fails, with the system's word."""

    def gone(folder: Path) -> tuple[int, int]:
        raise OSError(5, "Input/output error")

    (finding,) = check_disks([("spool", tmp_path)], gone)
    assert finding.state is FindingState.FAIL
    assert "Input/output error" in finding.reason


def test_the_data_folder_is_this_users_alone(tmp_path: Path) -> None:
    """One that others can read, that is another's, or that is no folder is found."""
    folder = tmp_path / "it's data"
    assert "will be made" in check_data_folder(folder).reason
    folder.mkdir(mode=0o700)
    assert check_data_folder(folder).state is FindingState.OK
    folder.chmod(0o755)
    shared = check_data_folder(folder)
    assert (shared.state, shared.remedy) == (FindingState.WARN, f"""chmod 700 '{tmp_path}/it'"'"'s data'""")
    file = tmp_path / "file"
    file.write_text("")
    assert check_data_folder(file).state is FindingState.FAIL
    assert check_data_folder(file / "below").state is FindingState.FAIL


def refused(*modes: int) -> Callable[[Path, int], bool]:
    """A user who may not do these."""
    return lambda _path, mode: not any(mode & one for one in modes)


def test_no_remedy_gives_away_more_than_the_folder(tmp_path: Path) -> None:
    """Whatever of the path to it is there: what is above it stays whose it is."""
    missing = Path("/nonexistent/promptmill data")
    file = tmp_path / "file"
    file.write_text("")
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    found = [
        check_data_folder(missing, may=refused(os.W_OK)),
        check_data_folder(missing, may=refused(os.X_OK)),
        check_data_folder(file),
        check_data_folder(file / "below"),
        check_data_folder(folder, may=refused(os.W_OK)),
        check_data_folder(folder, user=os.getuid() + 1),
        check_data_folder(folder / "below", may=refused(os.W_OK)),
    ]
    assert {finding.state for finding in found} == {FindingState.FAIL}
    for finding, own in zip(
        found, [missing] * 2 + [file, file / "below", folder, folder, folder / "below"], strict=True
    ):
        remedy = (finding.remedy or "").replace(str(own), "FOLDER")
        assert "chown" not in remedy
        assert re.findall(r"(?<!\S)'?/", remedy) == []  # no other path
    assert found[0].remedy is not None
    assert found[0].remedy.startswith(f"sudo install -d -o $(id -un) -m 700 '{missing}'")


def test_a_folder_of_another_user_is_examined_as_that_user(tmp_path: Path) -> None:
    """Whether it is seen, or hidden in one that this user may not look into; it is given to nobody else."""
    owner = getpass.getuser()
    seen = check_data_folder(tmp_path, user=os.getuid() + 1)
    hidden = check_data_folder(tmp_path / "below", may=refused(os.X_OK))
    for finding in (seen, hidden):
        assert finding.state is FindingState.FAIL
        assert f"`sudo -u {owner} promptmill doctor ...`" in (finding.remedy or "")
        assert "install" not in (finding.remedy or "")


def test_room_for_models_that_are_still_to_be_fetched(tmp_path: Path) -> None:
    """Their size is not known: little room is warned of, and where nothing is to be fetched there is no more to say."""
    scarce = check_room(["org/m@v1"], tmp_path / "hub", lambda _folder: (1, 30 * 10**9))
    assert scarce is not None
    assert (scarce.state, scarce.reason) == (
        FindingState.WARN,
        "30.0 GB free for org/m@v1, still to be fetched, of unknown size",
    )
    assert "https://huggingface.co/org/m;" in (scarce.remedy or "")
    enough = check_room(["org/m"], tmp_path, lambda _folder: (1, 10**11))
    assert enough is not None
    assert enough.state is FindingState.OK
    assert check_room([], tmp_path) is None
