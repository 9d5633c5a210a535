"""What the doctor makes of models: their files in a folder or in the hub's cache, and the memory they need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from deploy.doctor.finding import Finding, FindingState
from deploy.doctor.mac import Mac
from deploy.doctor.machine import Device, Machine
from deploy.doctor.models import ModelFiles, check_memory, check_model, find_model, hub_cache

POCKET = Path(__file__).parents[4] / "examples" / "pocket" / "model"
NAME = "mlx-community/Qwen3-4B-4bit"
GIB = 2**30


def fill(folder: Path, *, parts: int = 2, missing: int = 0) -> Path:
    """A model's folder with an index, weights in parts of 1000 bytes, and a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"model-{number:05}-of-{parts:05}.safetensors" for number in range(1, parts + 1)]
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    (folder / "tokenizer.json").write_text("{}")
    index = {"weight_map": {f"layer.{number}": name for number, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_bytes(orjson.dumps(index))
    for name in names[: parts - missing]:
        (folder / name).write_bytes(b"x" * 1000)
    return folder


def cached(home: Path, *, revision: str = "main", missing: int = 0) -> Path:
    """A model in the hub's cache below ``home``, as huggingface_hub lays it out."""
    kept = home / ".cache" / "huggingface" / "hub" / "models--mlx-community--Qwen3-4B-4bit"
    (kept / "refs").mkdir(parents=True, exist_ok=True)
    (kept / "blobs").mkdir(exist_ok=True)
    (kept / "refs" / revision).write_text("0123abc")
    fill(kept / "snapshots" / "0123abc", missing=missing)
    return kept


def test_a_folder_with_everything_passes() -> None:
    """The pocket model is complete, and its weights are counted."""
    found = find_model(str(POCKET), {})
    assert check_model(found).state is FindingState.OK
    assert found.weights == sum(path.stat().st_size for path in POCKET.glob("model*.safetensors"))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("config.json", "config.json"),
        ("tokenizer.json", "no tokenizer"),
        ("model-00002-of-00002.safetensors", "1 file of its weights are missing, such as model-00002"),
    ],
)
def test_a_folder_that_lacks_something_fails(tmp_path: Path, broken: str, said: str) -> None:
    """Nobody will fetch what a folder lacks; the finding names it."""
    folder = fill(tmp_path / "model")
    (folder / broken).unlink()
    finding = check_model(find_model(str(folder), {}))
    assert finding.state is FindingState.FAIL
    assert said in finding.reason


@pytest.mark.parametrize("text", [b"[]", b"{", b"\xff", b'{"weight_map": 3}'])
def test_damaged_json_is_no_traceback(tmp_path: Path, text: bytes) -> None:
    """An index and a config that cannot be read fail the check of the model."""
    folder = fill(tmp_path / "model")
    (folder / "model.safetensors.index.json").write_bytes(text)
    assert "cannot be read" in check_model(find_model(str(folder), {})).reason
    (folder / "config.json").write_bytes(text)
    assert check_model(find_model(str(folder), {})).state is FindingState.FAIL


def test_a_model_in_the_cache_is_found_by_name_and_revision(tmp_path: Path) -> None:
    """By a branch's name, and by the commit itself; another revision is not there."""
    cached(tmp_path)
    environ = {"HOME": str(tmp_path)}
    found = find_model(NAME, environ)
    assert (found.weights, found.problem) == (2000, None)
    assert "hub's cache" in check_model(found).reason
    assert find_model(f"{NAME}@0123abc", environ).problem is None
    other = check_model(find_model(f"{NAME}@v2", environ))
    assert other.state is FindingState.WARN
    assert other.remedy == f"hf download {NAME} --revision v2"


def test_a_model_that_is_missing_or_incomplete_has_its_command(tmp_path: Path) -> None:
    """A worker fetches it by itself, so that is a warning; with the hub shut off it fails."""
    environ = {"HOME": str(tmp_path)}
    missing = check_model(find_model(NAME, environ))
    assert (missing.state, missing.remedy) == (FindingState.WARN, f"hf download {NAME}")
    kept = cached(tmp_path, missing=1)
    assert "weights are missing" in check_model(find_model(NAME, environ)).reason
    (kept / "blobs" / "abc.incomplete").write_bytes(b"x")
    assert "download did not end (1 file begun)" in check_model(find_model(NAME, environ)).reason
    offline = check_model(find_model(NAME, {**environ, "HF_HUB_OFFLINE": "1"}))
    assert (offline.state, offline.remedy) == (FindingState.FAIL, f"HF_HUB_OFFLINE=0 hf download {NAME}")


@pytest.mark.parametrize(
    "name",
    ["/nonexistent/model", "./nonexistent", "a/b/c", "", "org/model name", "~nobody-here/model", "a\0b", "x/" * 3000],
)
def test_what_is_no_models_name_fails(name: str) -> None:
    """Neither a folder nor a name of the hub: nothing is offered for download."""
    found = find_model(name or "..nothing", {})
    assert check_model(found).state is FindingState.FAIL
    assert found.fetch is None


def test_the_cache_is_where_the_hub_library_has_it(tmp_path: Path) -> None:
    """The environment's names win in the library's order."""
    home = {"HOME": str(tmp_path)}
    assert hub_cache(home) == tmp_path / ".cache" / "huggingface" / "hub"
    assert hub_cache({**home, "XDG_CACHE_HOME": "/x"}) == Path("/x/huggingface/hub")
    assert hub_cache({**home, "HF_HOME": "/hf"}) == Path("/hf/hub")
    assert hub_cache({**home, "HF_HOME": "/hf", "HF_HUB_CACHE": "/c"}) == Path("/c")


def mac(memory_gib: int) -> Machine:
    memory = memory_gib * GIB
    return Machine("Darwin", "arm64", (3, 12, 0), memory, Mac(version=(15, 5), memory=memory, wired_limit_mb=0))


def memory(machine: Machine, recommended_gib: float, *weights_gib: float) -> list[Finding]:
    device = Device("Apple M4", gpu=True, recommended=int(recommended_gib * GIB))
    models = [ModelFiles(f"m{number}", weights=int(gib * GIB)) for number, gib in enumerate(weights_gib)]
    return list(check_memory(machine, device, models))


def test_a_model_that_fits_passes() -> None:
    """With room for caches there is nothing to say."""
    (finding,) = memory(mac(64), 48, 20)
    assert finding.state is FindingState.OK
    assert finding.reason == "20.0 GiB of the 43.2 GiB that a worker may use"


def test_a_model_that_fills_the_memory_is_warned_of() -> None:
    """More than seven tenths of what a worker may use leaves little to the caches: the wired limit helps."""
    (finding,) = memory(mac(64), 48, 35)
    assert finding.state is FindingState.WARN
    assert (finding.remedy or "").startswith("sudo sysctl iogpu.wired_limit_mb=5")


def test_a_model_that_fits_with_a_raised_limit_is_told_so() -> None:
    """Too large for macOS's own limit, but not for the memory."""
    (finding,) = memory(mac(64), 48, 45)
    assert finding.state is FindingState.FAIL
    assert "sudo sysctl iogpu.wired_limit_mb=57344 until the next start" in (finding.remedy or "")
    assert "--wired-limit 57344M of `promptmill deploy worker`" in (finding.remedy or "")


def test_a_model_too_large_for_the_mac_needs_another() -> None:
    """On a small Mac no limit makes room for it."""
    (finding,) = memory(mac(16), 10.67, 17)
    assert finding.state is FindingState.FAIL
    assert "sysctl" not in (finding.remedy or "")
    assert "fewer bits" in (finding.remedy or "")


def test_models_that_fit_one_by_one_take_turns() -> None:
    """That is slower and no failure; where all fit together, or one fits by no means, there is no more to say."""
    *each, together = memory(mac(64), 48, 25, 25)
    assert [finding.state for finding in each] == [FindingState.OK, FindingState.OK]
    assert together.state is FindingState.WARN
    assert "take turns" in together.reason
    assert [finding.state for finding in memory(mac(64), 48, 10, 10)] == [FindingState.OK, FindingState.OK]
    assert [finding.state for finding in memory(mac(16), 10.67, 2, 17)] == [FindingState.OK, FindingState.FAIL]


def test_without_a_model_or_its_size_memory_is_not_judged() -> None:
    """The finding says what would have it judged."""
    (finding,) = memory(mac(64), 48)
    assert finding.state is FindingState.SKIP
    assert "--model" in finding.reason
    unknown = list(check_memory(mac(64), Device(), [ModelFiles("m", problem="not there")]))
    assert unknown[0].state is FindingState.SKIP


def test_without_metal_the_machines_memory_counts() -> None:
    """The CPU build recommends nothing."""
    host = replace(mac(16), mac=None)
    (finding,) = check_memory(host, Device("cpu"), [ModelFiles("m", weights=15 * GIB)])
    assert finding.state is FindingState.FAIL
    assert finding.reason == "15.0 GiB do not fit into the 14.4 GiB that a worker may use"
    assert "sysctl" not in (finding.remedy or "")
