"""An evaluation by the command line of Inspect, with `--batch`. This file is also the file of its tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from batch_answers import MODEL, QUESTIONS, RIGHT, TOO_LONG, check_answers
from checks import check
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import ModelInfo, set_model_info
from inspect_ai.scorer import match
from inspect_ai.solver import generate

# A name that Inspect does not know is one of OpenAI's newest models to it, which take no temperature.
set_model_info(f"openai/{MODEL}", ModelInfo(family="gpt-4o"))

BATCH = {"size": len(QUESTIONS), "send_delay": 2, "tick": 1}


@task
def sums() -> Task:
    samples = [Sample(id=f"sum-{n}", input=question, target=RIGHT[question]) for n, question in enumerate(QUESTIONS)]
    return Task(dataset=samples, solver=generate(), scorer=match())


@task
def one_too_long() -> Task:
    samples = [Sample(id=f"sum-{n}", input=text, target="6") for n, text in enumerate((*QUESTIONS[:5], TOO_LONG))]
    return Task(dataset=samples, solver=generate(), scorer=match())


def evaluated(name: str, *flags: str) -> EvalLog:
    """The log of a task that the command line ran."""
    logs = Path("logs", name)
    settings = Path("batch.json")
    settings.write_text(json.dumps(BATCH))
    command = [
        str(Path(sys.executable).with_name("inspect")), "eval", f"{__file__}@{name}", "--model", f"openai/{MODEL}",
        "-M", "responses_api=false", "--batch", str(settings), "--temperature", "0", "--max-tokens", "100",
        "--log-dir", str(logs), "--log-format", "json", "--display", "plain", *flags,
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=sys.stderr)
    (path,) = logs.glob("*.json")
    return read_eval_log(str(path))


def main() -> None:
    log = evaluated("sums")
    samples = log.samples or []
    check(
        "the evaluation ends well", log.status == "success" and not any(sample.error for sample in samples), log.error
    )
    said = {str(sample.input): sample.output.completion for sample in samples}
    (usage,) = log.stats.model_usage.values()
    check_answers(said, usage.input_tokens, usage.output_tokens)
    ends = {sample.output.stop_reason for sample in samples}
    check("it reads why the texts ended", ends == {"stop"}, ends)
    failed = evaluated("one_too_long", "--no-fail-on-error", "--max-retries", "1")
    lost = [sample.id for sample in failed.samples or [] if sample.error is not None]
    check("a line that fails fails alone", lost == ["sum-5"], lost)


if __name__ == "__main__":
    main()
