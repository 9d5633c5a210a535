"""Whether a JSON Schema validator takes what a real model writes at temperature 1, each line by another schema.

Schemas are those of MaskBench that the check takes. What a text may have left open, cut by ``max_tokens``, is counted
apart.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from bench.guided.task import GuidedTask, rows_of
from bench.task import Measured
from bench.work import CONCURRENCY
from jobs.errors import LineError
from jobs.guided.check import Checker
from jobs.guided.constraint import json_constraint
from jobs.lines.line import Defaults, Job, check_line
from worker.engine.engine import Engine
from worker.engine.loading.mlx_models import load_model
from worker.engine.prompts.prepare import Preparer
from worker.engine.text.completion import TextAssembler

QUESTION = "Make up an example of this, as JSON: "
LONGEST_TITLE = 200


def side(task: GuidedTask) -> list[Measured]:
    """``extra`` counts texts: ``complete`` ones (``valid`` is true), of those the ``accepted``, those accepted with
    formats asserted too (``with_formats``), ``cut`` ones, and ``failed`` lines; ``wrong`` names what is not accepted.
    """
    model = load_model(task.folder)
    preparer, engine = Preparer(model), Engine(model, decode_concurrency=CONCURRENCY)
    assembler, found = TextAssembler(model.tokenizer), Verdicts()
    rows = [*islice(accepted(Path(task.schemas)), task.skip, task.skip + task.lines)]
    by_key: dict[Any, dict[str, Any]] = {}
    lines = []
    for number, row in enumerate(rows, task.skip):
        job = job_of(row, f"row-{number}", schema=row["schema"], seed=number, max_tokens=task.new_tokens)
        by_key[job.id] = row
        try:
            lines.append(preparer.prepare(job))
        except LineError as error:
            found.fail(row, str(error))
    began = time.perf_counter()
    for line in lines:
        engine.add(line)
    while engine.has_work:
        for finished in engine.step():
            row = by_key[finished.key]
            if finished.error is not None:
                found.fail(row, finished.error.message)
                continue
            sequence = finished.sequences[0]
            found.tokens += len(sequence.tokens)
            if sequence.valid:
                found.judge(row, assembler.assemble(sequence).text)
            else:
                found.counts["cut"] += 1
    seconds = time.perf_counter() - began
    counts = {name: found.counts[name] for name in ("complete", "accepted", "with_formats", "cut", "failed")}
    extra = {**counts, "wrong": found.wrong, "skip": task.skip}
    return [Measured("texts", found.tokens, seconds, len(rows), extra=extra)]


@dataclass(slots=True)
class Verdicts:
    """What became of the lines."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    tokens: int = 0

    def fail(self, row: dict[str, Any], reason: str) -> None:
        self.counts["failed"] += 1
        self.wrong.append(f"{row['name']}: {reason}")

    def judge(self, row: dict[str, Any], text: str) -> None:
        """Count a complete text."""
        from jsonschema import FormatChecker

        self.counts["complete"] += 1
        said = _said(row["schema"], text)
        if said is not None:
            self.wrong.append(f"{row['name']}: {said}")
            return
        self.counts["accepted"] += 1
        self.counts["with_formats"] += _said(row["schema"], text, FormatChecker()) is None


def accepted(path: Path) -> Iterator[dict[str, Any]]:
    """The rows whose schemas the check takes."""
    checker = Checker()
    for row in rows_of(path):
        try:
            checker.check(json_constraint(row["schema"]))
        except LineError:
            continue
        yield row


def job_of(row: dict[str, Any], name: str, *, schema: dict[str, Any] | None, **fields: Any) -> Job:
    """A line that asks for an example of a row's schema, with this one to follow (None: it is free)."""
    about = next((row["schema"][key] for key in ("title", "description") if row["schema"].get(key)), row["name"])
    line = {
        "id": name,
        "messages": [{"role": "user", "content": QUESTION + str(about)[:LONGEST_TITLE]}],
        "temperature": 1.0,
        **({} if schema is None else {"guided_json": schema}),
        **fields,
    }
    return check_line(orjson.dumps(line)).job(index=0, line=1, batch_id="", defaults=Defaults({"model": "model"}))


def _said(schema: dict[str, Any], text: str, formats: Any = None) -> str | None:
    """What the validator says against a text, None where it takes it."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for

    validator = validator_for(schema, default=Draft202012Validator)(schema, format_checker=formats)
    try:
        error = next(iter(validator.iter_errors(json.loads(text))), None)
    except (ValueError, re.error) as broken:  # no JSON, or a pattern that Python does not read
        return f"cannot be judged: {broken}"
    return None if error is None else str(error.message)[:200]
