"""The page of guided lines: what they let through, what they cost, and the goals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from bench.record import Measurement, Run
from bench.report.table import goal, table

FILE = "guided.md"
TEXTS_GOAL = 1.0
RATE_GOALS = {"small": 0.90, "wide": 0.85}
FREE_GOAL = 0.95
WAIT_GOAL_MS = 50.0
STALL_GOAL = 1.2
"""How much longer the longest step may be while a new schema is prepared than while a line without one is."""
PARAMS = {"greedy": "greedy", "own": "rows' own filters and penalties"}
MOST_WRONG = 10

SCHEMAS_NOTE = """\
Instances of the file's schemas, valid and invalid ones, walked token by token through the grammar of their schema.
Those of a refused schema count as not accepted. "Bare" is the grammar library with its own defaults and tokenizer."""
SPEED_NOTE = """\
Steps of 32 rows in turns of 8 in one process, no end of text, another schema for each row: arrays of records with
strings, numbers, enums, formats, patterns and nested records. Shares are medians over {turns} turns, with the
quartiles. "Masks" is what the host needs for 32 masks, while the device runs the forward; "applying" what the device
needs to get and apply them. On a CPU both take from the same cores."""
WAITS_NOTE = """\
{pairs} lines with a schema never seen and as many without, in turns, beside {rows} rows that decode: checked and
prepared on a thread of their own, as a worker does it. {refused} schemas that the check refuses were passed over.
Preparation is all that a schema adds before its line is the engine's; the first token's wait has a step or two in
it."""


def render_guided(run: Run) -> str | None:
    """The whole page; None where nothing of it was measured."""
    items = [item for item in run.measurements if item.bench == "guided"]
    if not items:
        return None
    schemas = [item for item in items if item.side in ("ours", "bare")]
    texts = [item for item in items if item.side == "texts"]
    speed = [item for item in items if item.side in PARAMS]
    waits = [item for item in items if item.side == "waits"]
    parts = ["# Guided lines"]
    goals = [*_schema_goals(schemas), *_text_goals(texts), *_speed_goals(speed), *_wait_goals(waits)]
    parts += ["## Goals", table(["what", "goal", "measured", ""], goals)]
    if schemas:
        parts += ["## Schemas of MaskBench", _schemas(schemas), SCHEMAS_NOTE, _refused(schemas)]
    if texts:
        parts += ["## Texts of a real model", _texts(texts)]
    if speed:
        parts += [
            "## Steps with and without constraints, ms",
            _speed(speed),
            SPEED_NOTE.format(turns=speed[0].extra["turns"]),
        ]
    if waits:
        parts += ["## The first token of a new schema, ms", _waits(waits)]
    return "\n\n".join(parts) + "\n"


def _share(found: dict[str, Any]) -> float:
    return float(found["valid_accepted"] / found["valid"])


def _pairs(items: Sequence[Measurement]) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    found = {(item.model, item.side): dict(item.extra) for item in items}
    return [(model, ours, found[model, "bare"]) for (model, side), ours in found.items() if side == "ours"]


def _schema_goals(items: Sequence[Measurement]) -> list[list[str]]:
    rows = []
    for model, ours, bare in _pairs(items):
        rows.append(goal(f"{model}: valid instances accepted, of the bare library's", 1.0, _share(ours) / _share(bare)))
        rows.append(goal(f"{model}: invalid instances accepted", 0, ours["invalid_accepted"], at_most=True))
    return rows


def _schemas(items: Sequence[Measurement]) -> str:
    rows = []
    for item in items:
        found = item.extra
        valid = f"{found['valid_accepted']} of {found['valid']} ({100 * _share(dict(found)):.1f} %)"
        invalid = f"{found['invalid_accepted']} of {found['invalid']}"
        checks = f"{found['check_ms_median']:g}, at most {found['check_ms_most']:g}"
        rows.append([item.model, item.side, f"{found['refused']} of {found['schemas']}", valid, invalid, checks])
    return table(["tokenizer", "side", "schemas refused", "valid accepted", "invalid accepted", "check, ms"], rows)


def _refused(items: Sequence[Measurement]) -> str:
    """Why schemas were refused; it is the same for all tokenizers but for what only a vocabulary shows."""
    lines = []
    for side in ("ours", "bare"):
        found = next((item.extra for item in items if item.side == side), None)
        if found is None:
            continue
        reasons = "\n".join(f"- {count}: {reason}" for reason, count in found["reasons"].items())
        lines.append(f"Refused, {side}:\n\n{reasons}" if reasons else f"Refused, {side}: none.")
        if found["wrong"] and side == "ours":
            shown = ", ".join(found["wrong"][:MOST_WRONG])
            lines.append(f"Instances of schemas that were taken, judged otherwise than the file says: {shown}.")
    return "\n\n".join(lines)


def _text_counts(items: Sequence[Measurement]) -> Counter[str]:
    names = ("complete", "accepted", "with_formats", "cut", "failed")
    counts: Counter[str] = Counter()
    for item in items:
        counts.update({name: item.extra[name] for name in names} | {"lines": item.lines, "tokens": item.tokens})
    return counts


def _text_goals(items: Sequence[Measurement]) -> list[list[str]]:
    counts = _text_counts(items)
    if not counts["complete"]:
        return []
    return [goal("complete texts that a validator accepts", TEXTS_GOAL, counts["accepted"] / counts["complete"])]


def _texts(items: Sequence[Measurement]) -> str:
    counts = _text_counts(items)
    head = ["model", "lines", "complete", "accepted", "with formats asserted", "cut by max_tokens", "failed"]
    names = ("lines", "complete", "accepted", "with_formats", "cut", "failed")
    text = table(head, [[items[0].model, *(str(counts[name]) for name in names)]])
    wrong = [said for item in items for said in item.extra["wrong"]]
    note = f"At temperature 1, at most {items[0].new_tokens} tokens a text, each line with another schema."
    return f"{text}\n\n{note}" + "".join(f"\n- {said}" for said in wrong[:MOST_WRONG])


def _speed_goals(items: Sequence[Measurement]) -> list[list[str]]:
    rows = []
    for item in items:
        what, wanted = f"{item.model}, {item.side}", RATE_GOALS.get(item.model)
        if wanted is not None:
            rows.append(goal(f"{what}: rate of 32 guided rows, of free ones", wanted, item.extra["ratio_guided"]))
            rows.append(goal(f"{what}: rate of free rows among guided ones", FREE_GOAL, item.extra["ratio_mixed"]))
    return rows


def _speed(items: Sequence[Measurement]) -> str:
    rows = []
    for item in items:
        found = item.extra
        shares = [
            f"{found[f'ratio_{name}']:.3f} ({found[f'spread_{name}'][0]:.3f}-{found[f'spread_{name}'][1]:.3f})"
            for name in ("guided", "mixed")
        ]
        times = [f"{found[name]:.1f}" for name in ("free", "guided", "mixed")]
        parts = [f"{found[name]:.2f}" for name in ("masks_ms", "apply_ms")]
        rows.append([f"{item.model}, {PARAMS[item.side]}", *times, *shares, *parts])
    head = ["rows", "free", "guided", "16 + 16", "free/guided", "free/mixed", "masks", "applying"]
    return table(head, rows)


def _wait_goals(items: Sequence[Measurement]) -> list[list[str]]:
    rows = []
    for item in items:
        found = item.extra
        what = f"{item.model}: a new schema"
        rows.append(goal(f"{what}: added wait, ms, median", WAIT_GOAL_MS, found["added_prepare"], at_most=True))
        ratio = found["longest_guided"] / found["longest_free"]
        rows.append(goal(f"{what}: longest step meanwhile, of that without", STALL_GOAL, ratio, at_most=True))
    return rows


def _waits(items: Sequence[Measurement]) -> str:
    rows = []
    for item in items:
        for name, label in (("free", "without"), ("guided", "with a new schema")):
            found = item.extra
            values = [f"{found[f'{what}_{name}']:.1f}" for what in ("prepare", "first", "step", "longest")]
            rows.append([label, *values])
        rows.append(["added", f"{found['added_prepare']:.1f}", f"{found['added_first']:.1f}", "", ""])
    head = ["lines", "preparation", "until the first token", "a step meanwhile", "the longest"]
    found = items[-1].extra
    more = f" Added by a schema: 90 % below {found['added_p90']:.0f} ms, at most {found['added_most']:.0f} ms."
    return f"{table(head, rows)}\n\n{WAITS_NOTE.format(**found)}{more}"
