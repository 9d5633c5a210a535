"""lm-evaluation-harness on tasks of a folder, as its command line runs them. Arguments: the folder, and tasks.

Writes `said.json`: what the model said, by way of asking, task and prompt.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from checks import check

URL, MODEL, TOKENIZER = (os.environ[name] for name in ("OPENAI_BASE_URL", "MODEL", "TOKENIZER"))
COMPLETIONS = ("--model", "local-completions")
WAYS = {
    "prompts as text, 8 requests at once": (*COMPLETIONS, "--model_args", "tokenizer_backend=None,num_concurrent=8"),
    "prompts as token ids, 8 in a request": (
        *COMPLETIONS, "--batch_size", "8", "--model_args", f"tokenizer_backend=huggingface,tokenizer={TOKENIZER}",
    ),
    "conversations": ("--model", "local-chat-completions", "--apply_chat_template", "--model_args", "num_concurrent=8"),
}  # fmt: skip
"""How the harness can ask, and its flags for it."""


def evaluated(way: str, folder: str, tasks: list[str]) -> dict[str, dict[str, str]]:
    """What the model said, by task and prompt."""
    path = "chat/completions" if way == "conversations" else "completions"
    *flags, last = WAYS[way]
    out = Path("out", way)
    command = [
        str(Path(sys.executable).with_name("lm_eval")), *flags, f"model={MODEL},base_url={URL}/{path},{last}",
        "--tasks", ",".join(tasks), "--include_path", folder, "--output_path", str(out), "--log_samples",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=sys.stderr)
    return {task: said_in(next(out.rglob(f"samples_{task}_*.jsonl"))) for task in tasks}


def said_in(samples: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    return {row["doc"]["question"]: row["resps"][0][0] for row in rows}


def main() -> None:
    folder, *tasks = sys.argv[1:]
    said = {way: evaluated(way, folder, tasks) for way in WAYS}
    for way, by_task in said.items():
        empty = [question for texts in by_task.values() for question, text in texts.items() if not text]
        check(f"{way}: no text is empty", not empty, empty)
    Path("said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
