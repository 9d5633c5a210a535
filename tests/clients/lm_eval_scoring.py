"""lm-evaluation-harness's `local-completions` on tasks of local files, beside mlx_lm.evaluate on the same."""

from __future__ import annotations

from importlib.metadata import version

from tests.clients.client import Check, Client, Place
from tests.clients.environment import POCKET
from tests.clients.running import run_program

HARNESS = "0.4.13"


def run(place: Place) -> list[Check]:
    """Nothing comes from a hub: tasks and tokenizer are local."""
    more = {
        "MODEL_FOLDER": str(POCKET),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return run_program(place, "use_lm_eval_scoring.py", **more)


CLIENT = Client(
    name="lm-eval-scoring",
    version=HARNESS,
    what="lm-evaluation-harness `local-completions`: choices and perplexity, beside `mlx_lm.evaluate`",
    run=run,
    packages=(
        f"lm-eval[api]=={HARNESS}",
        f"mlx-lm=={version('mlx-lm')}",
        f"mlx=={version('mlx')}",
        f"mlx[cpu]=={version('mlx')}; sys_platform == 'linux'",
        f"transformers=={version('transformers')}",
    ),
)
