"""lm-evaluation-harness on generation tasks of local files: what it got is what `promptmill run` writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.clients.client import FAILED, PASSED, Check, Client, Place
from tests.clients.environment import POCKET, ROOT
from tests.clients.running import run_program

SUMS = tuple(f"What is {one} plus {other}?" for one in range(2, 12) for other in range(3, 7))
LONGER = (
    *(f"Count from {first} to {first + 20}." for first in range(1, 11)),
    *(f"Write the times table of {number}." for number in range(2, 12)),
    *(f"Tell me a story about {who}." for who in ("Mia the fox", "Tom the cat", "Anna the bear")),
    *(f"Write a poem about the {what}." for what in ("moon", "sea", "rain")),
)
TASKS: Mapping[str, tuple[Sequence[str], Sequence[str], int]] = {
    "sums": (SUMS, ["\n"], 60),
    "longer": (LONGER, [", 17", " = 2", "the end", "\n\n"], 90),
}
"""Questions, stop strings and most tokens by task."""
CHAT = "conversations"


def run(place: Place) -> list[Check]:
    tasks = place.folder / "tasks"
    tasks.mkdir()
    for name, (questions, until, most) in TASKS.items():
        write_task(tasks, name, questions, until, most)
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZER": str(POCKET)}
    checks = run_program(place, "use_lm_eval.py", str(tasks), *TASKS, **offline)
    told = place.folder / "said.json"
    if not told.exists():
        return checks
    said = json.loads(told.read_text())
    ours = {chat: texts_of_run(place.folder, chat=chat) for chat in (False, True)}
    for way, by_task in said.items():
        checks += [compared(way, task, texts, ours[way == CHAT][task]) for task, texts in by_task.items()]
    return checks


def write_task(folder: Path, name: str, questions: Sequence[str], until: Sequence[str], most: int) -> None:
    """A task as the harness reads it: its rows, and a YAML, which may be JSON."""
    rows = folder / f"{name}.jsonl"
    rows.write_text("".join(json.dumps({"question": question}) + "\n" for question in questions))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "",
        "generation_kwargs": {"until": until, "max_gen_toks": most, "do_sample": False, "temperature": 0.0},
        "metric_list": [{"metric": "exact_match"}],
    }
    (folder / f"{name}.yaml").write_text(json.dumps(task))


def texts_of_run(folder: Path, *, chat: bool) -> dict[str, dict[str, str]]:
    """What `promptmill run` writes for the same prompts, greedily, by task and question."""
    lines = [
        {"id": f"{task}-{number}", "stop": until, "max_tokens": most, "temperature": 0, **prompt(question, chat=chat)}
        for task, (questions, until, most) in TASKS.items()
        for number, question in enumerate(questions)
    ]
    given, made = folder / f"lines-{chat}.jsonl", folder / f"records-{chat}.jsonl"
    given.write_text("".join(json.dumps(line) + "\n" for line in lines))
    environ = {**os.environ, "PROMPTMILL_DATA_DIR": str(folder / "data")}
    command = [sys.executable, "-m", "promptmill", "run", str(given), "-o", str(made), "--model", str(POCKET)]
    subprocess.run(command, check=True, cwd=ROOT, env=environ, capture_output=True)
    records = {(record := json.loads(line))["id"]: record["text"] for line in made.read_text().splitlines()}
    return {
        task: {question: records[f"{task}-{number}"] for number, question in enumerate(questions)}
        for task, (questions, _, _) in TASKS.items()
    }


def prompt(question: str, *, chat: bool) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}]} if chat else {"prompt": question}


def compared(way: str, task: str, theirs: Mapping[str, str], ours: Mapping[str, str]) -> Check:
    """Whether the harness has the texts of `promptmill run`, all of them."""
    name = f"{way}: {task}: the texts of `promptmill run`"
    unlike = {question: (theirs.get(question), text) for question, text in ours.items() if theirs.get(question) != text}
    if not unlike and len(theirs) == len(ours):
        return Check(name, PASSED)
    return Check(name, FAILED, f"{len(unlike)} of {len(ours)} differ: {next(iter(unlike.items()), len(theirs))}"[:300])


CLIENT = Client(
    name="lm-eval",
    version="0.4.13",
    what="`local-completions` and `local-chat-completions` on two generation tasks of local files, greedy, with stop "
    "strings: each text is that of `promptmill run`",
    run=run,
    packages=("lm-eval[api]==0.4.13", "transformers==5.24.0", "datasets==5.2.0"),
)
