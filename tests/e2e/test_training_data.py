"""Results as training data: what `--format chat` and `--format completions` write, mlx-lm's own trainer reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "examples" / "pocket" / "model")
DEADLINE_S = 120.0


@pytest.mark.parametrize("form", ["chat", "completions"])
def test_lora_trains_on_results(server_url: str, tmp_path: Path, form: str) -> None:
    """`promptmill run --format FORM` gives a file that `mlx_lm.lora --train` takes as it is."""
    chat = {"messages": [{"role": "user", "content": "Hello"}], "chat_template_kwargs": {"enable_thinking": False}}
    line = {"prompt": "2 + 3 ="} if form == "completions" else chat
    source, data = tmp_path / "in.jsonl", tmp_path / "data"
    data.mkdir()
    source.write_bytes(b"".join(orjson.dumps({**line, "max_tokens": 4, "seed": n}) + b"\n" for n in range(6)))
    environment = {**os.environ, "PROMPTMILL_DATA_DIR": str(tmp_path / "promptmill"), "HF_HUB_OFFLINE": "1"}
    flags = ["-o", str(data / "train.jsonl"), "--model", MODEL, "--format", form, "--keep-cut", "--redis", server_url]
    subprocess.run(
        [sys.executable, "-P", "-m", "submit.cli", "run", str(source), *flags],
        check=True, timeout=DEADLINE_S, env=environment, capture_output=True,
    )  # fmt: skip
    (data / "valid.jsonl").write_bytes((data / "train.jsonl").read_bytes())
    # Not our kernels, and g++ takes long for those of the training.
    environment["MLX_DISABLE_COMPILE"] = "1"
    trained = subprocess.run(
        [sys.executable, "-P", "-m", "mlx_lm", "lora", "--train", "--model", MODEL, "--data", str(data), "--iters", "2",
         "--batch-size", "2", "--num-layers", "1", "--val-batches", "1", "--adapter-path", str(tmp_path / "adapter")],
        check=False, timeout=DEADLINE_S, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "adapter" / "adapters.safetensors").exists()
