"""A file of mixed prompt lines for the pocket model, and an audit of what came out. Also a script:

python tests/mixed.py make N FILE [--shuffle SEED] [--seeded]
python tests/mixed.py audit FILE OUT [--errors ERR]
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

QUESTIONS = (
    "What is {a} plus {b}?",
    "What is the capital of France?",
    "Reverse the word {word}.",
    "Count from {a} to {c}.",
    "Tell me a story.",
    "Give me JSON for a person named Ben aged {c}.",
    "What sound does a dog make?",
    "Spell the word {word}.",
)
WORDS = ("cat", "lamp", "tree", "house", "green", "stone")


def lines(count: int, seed: int = 7, *, seeded: bool = False) -> Iterator[dict[str, Any]]:
    """``count`` lines of all kinds and parameters, the same for the same seed; about 1 in 50 is too long for the
    pocket model's context. ``seeded`` gives each sampled line its own seed and leaves out default ids."""
    draw = random.Random(seed)
    for number in range(count):
        yield _line(draw, number, seeded=seeded)


def _line(draw: random.Random, number: int, *, seeded: bool) -> dict[str, Any]:
    question = draw.choice(QUESTIONS).format(
        a=draw.randint(1, 9), b=draw.randint(1, 9), c=draw.randint(10, 30), word=draw.choice(WORDS)
    )
    if number % 50 == 49:
        question = " ".join(["word"] * 3000)
    fields: dict[str, Any] = {"max_tokens": draw.choice([1, 5, 20, 40])} | _parameters(draw, number, seeded=seeded)
    messages = [{"role": "user", "content": question}]
    if number % 5 == 0:
        body = {"messages": messages, **fields}
        return {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    if number % 5 == 1:
        prompt = question if number % 50 == 49 else "Once upon a time"
        return {"id": f"row-{number}", "prompt": prompt, **fields}
    identity = {} if number % 7 == 0 and not seeded else {"id": f"row-{number}"}
    return {**identity, "messages": messages, "metadata": {"number": number}, **fields}


def _parameters(draw: random.Random, number: int, *, seeded: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if draw.random() < 0.7:
        fields |= {"temperature": round(draw.uniform(0.1, 1.5), 2), "top_p": round(draw.uniform(0.5, 1.0), 2)}
    if draw.random() < 0.4:
        fields["top_k"] = draw.randint(1, 50)
    if draw.random() < 0.3:
        fields["min_p"] = round(draw.uniform(0.01, 0.2), 2)
    if draw.random() < 0.3:
        fields["repetition_penalty"] = round(draw.uniform(1.0, 1.4), 2)
    if draw.random() < 0.2:
        fields["presence_penalty"] = round(draw.uniform(-0.5, 1.0), 2)
    if draw.random() < 0.2:
        fields["frequency_penalty"] = round(draw.uniform(-0.5, 1.0), 2)
    if draw.random() < 0.2:
        fields["stop"] = draw.choice(["\n", ["and", "."], "7"])
    if draw.random() < 0.1:
        fields["n"] = draw.randint(2, 3)
    if draw.random() < 0.1:
        fields["logprobs"] = True
    if seeded:
        fields["seed"] = 1000 + number
    return fields


def records(path: Path) -> list[dict[str, Any]]:
    """The records of a file; none where there is no file."""
    return [orjson.loads(raw) for raw in path.read_bytes().splitlines()] if path.exists() else []


def audit(source: Path, out: Path, errors: Path) -> list[str]:
    """What is wrong with the records of a file, by what a user sees: nothing, when each line has exactly one."""
    wanted = [orjson.loads(raw) for raw in source.read_bytes().splitlines()]
    ids = [line.get("id", line.get("custom_id", f"line-{number}")) for number, line in enumerate(wanted, 1)]
    good, bad = records(out), records(errors)
    counts = Counter(record["index"] for record in good + bad)
    wrong = [f"line {index + 1} has {counts[index]} records" for index in range(len(ids)) if counts[index] != 1]
    wrong += [f"a record for no line: {index}" for index in counts if not 0 <= index < len(ids)]
    for record in good + bad:
        if record["id"] != ids[record["index"]]:
            wrong.append(f"line {record['index'] + 1} has id {record['id']!r}, not {ids[record['index']]!r}")
    wrong += [f"an error among the results: {record['id']}" for record in good if "error" in record]
    wrong += [f"a result among the errors: {record['id']}" for record in bad if "error" not in record]
    if [record["index"] for record in good] != sorted(record["index"] for record in good):
        wrong.append("the results are not in the order of the input")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=["make", "audit"])
    parser.add_argument("arguments", nargs=2)
    parser.add_argument("--shuffle", type=int)
    parser.add_argument("--seeded", action="store_true")
    parser.add_argument("--errors", type=Path)
    flags = parser.parse_args()
    if flags.action == "make":
        made = [orjson.dumps(line) for line in lines(int(flags.arguments[0]), seeded=flags.seeded)]
        if flags.shuffle is not None:
            random.Random(flags.shuffle).shuffle(made)
        Path(flags.arguments[1]).write_bytes(b"\n".join(made) + b"\n")
        return 0
    source, out = map(Path, flags.arguments)
    wrong = audit(source, out, flags.errors or out.with_suffix(f".errors{out.suffix}"))
    report = wrong[:20] or [f"{len(source.read_bytes().splitlines())} lines, one record each"]
    sys.stdout.write("\n".join(report) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
