"""``python -m worker.models.tune``: how fast a model decodes here by the number of rows, for ``promptmill tune``.

Standard input is one JSON object: ``{"model", "adapter_path", "settings", "tuning"}``, the last two with the fields of
``EngineSettings`` and of ``Tuning`` that are given. Standard output is JSON lines: ``{"loaded": NAME}``, then
``{"rows", "tokens_per_s"}`` for each speed that is measured, and at the end ``{"result"}`` or ``{"error"}``.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import IO, Any

import orjson

from jobs.app.worker_options import EngineSettings
from jobs.embedded.server import data_folder
from jobs.errors import PromptmillError
from jobs.shard import Group
from worker.allocator import glibc_mallopt, keep_large_arrays
from worker.models.autotune import FILE, Choice, TunedFile, Tuning, choose
from worker.models.engine_factory import EngineFactory
from worker.models.residency import WeightSize, left_for_caches, refuse_too_large


def tuned(request: Mapping[str, Any], file: TunedFile, say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Load the model, and measure it unless that is remembered in ``file``; the result, as it is printed.

    Raises:
        ModelLoadError: the model cannot be loaded.
        PromptmillError: it cannot run.
    """
    from worker.engine.loading.mlx_models import memory_budget, weight_bytes
    from worker.engine.tuning.measure import fingerprint

    settings, group = EngineSettings(**request["settings"]), Group(request["model"], request["adapter_path"])
    size = WeightSize(*weight_bytes(group.model, revision=settings.revision, adapter_path=group.adapter_path))
    budget = memory_budget(settings.memory_limit)
    refuse_too_large(group, size, budget, given=settings.memory_limit is not None)
    model = EngineFactory(settings).load(group)
    say({"loaded": model.name})
    memory = None if budget is None else left_for_caches(budget, {group: size})
    try:
        choice = choose(
            model,
            settings,
            memory,
            file,
            Tuning(**request["tuning"]),
            on_speed=lambda rows, rate: say({"rows": rows, "tokens_per_s": rate}),
        )
    except Exception as error:
        raise PromptmillError(f"model '{group.model}' cannot be measured: {type(error).__name__}: {error}") from error
    about = fingerprint(model, settings.wired_limit)
    return {
        "model": model.name,
        "revision": model.revision,
        "adapter_path": model.adapter_path,
        "one_at_a_time": model.unbatchable,
        "device": about["device"] or about["architecture"],
        "mlx": about["mlx"],
        "file": str(file.path) if choice.kept else None,
        **_described(choice),
    }


def _described(choice: Choice) -> dict[str, Any]:
    """The choice and what it was made by. Sizes are bytes, speeds tokens a second, the bandwidth bytes a second."""
    measured, limit = choice.tuned, choice.tuned.limit
    experts = limit.experts
    return {
        "choice": choice.rows,
        "remembered": choice.remembered,
        "measured_on": measured.measured_on,
        "prompt_tokens": measured.prompt_tokens,
        "weights": limit.weights,
        "expert_weights": limit.expert_weights,
        "experts": None if experts is None else experts.count,
        "experts_per_token": None if experts is None else experts.per_token,
        "row_bytes": limit.row_bytes,
        "bandwidth": limit.bandwidth,
        "prefill_tokens_per_s": limit.prefill,
        "sizes": [
            {"rows": rows, "tokens_per_s": rate, "limit": limit.at(rows)}
            for rows, rate in measured.curve.rates.items()
            if rows <= choice.most
        ],
    }


def _say(output: IO[bytes], said: dict[str, Any]) -> None:
    output.write(orjson.dumps(said) + b"\n")


def main() -> int:
    """Read standard input, write standard output; the exit status."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    keep_large_arrays(os.environ, glibc_mallopt())  # as in the workers that take the result
    logging.basicConfig(format="promptmill: %(message)s", level=logging.WARNING)
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # where a model's own code may print
    say = partial(_say, output)
    try:
        request = orjson.loads(sys.stdin.buffer.read())
        say({"result": tuned(request, TunedFile(data_folder(os.environ) / FILE), say)})
    except PromptmillError as error:
        say({"error": str(error)})
        return error.exit_status
    except BrokenPipeError:  # who asked is gone
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
