"""Rows of data sets and envelopes of other APIs, which are no lines as a whole: what makes lines of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jobs.lines.foreign_names import is_foreign
from jobs.lines.values import are_rows
from jobs.params import did_you_mean

ROWS = (
    (
        "instruction instances",
        "a self-instruct row",
        "--id-column id --user '{{ instruction }} {{ instances[0].input }}'",
    ),
    ("instruction input output", "an Alpaca row", "--user '{{ instruction }} {{ input }}'"),
    ("instruction output", "an Alpaca row", "--user '{{ instruction }}'"),
    ("instruction response", "an instruction row", "--user '{{ instruction }}'"),
    ("conversations", "a ShareGPT row", '--template FILE.toml with messages = "{{ conversations }}"'),
    ("question answer", "a row of questions and answers", "--user '{{ question }}'"),
    ("recordId modelInput", "Bedrock's envelope", "jq -c '{custom_id: .recordId, body: .modelInput}'"),
    ("request key", "Gemini's envelope", "jq -c '{custom_id: .key, body: .request}'"),
    ("custom_id params", "Anthropic's envelope", "jq -c '{custom_id, body: .params}'"),
    ("custom_id response", "a result of OpenAI's batches, not a line", ""),
    ("text", "a row of texts", "--prompt '{{ text }}'"),
    ("question", "a row of questions", "--user '{{ question }}'"),
    ("instruction", "a row of instructions", "--user '{{ instruction }}'"),
)
"""Lines that are somebody else's as a whole: the fields they have, what they are, and what makes lines of them: flags
of a table, or a command of jq."""


SHOWN_ROWS = 40
"""Of the name under which an object holds rows, so many characters are shown."""


def cure_of_row(fields: Mapping[str, Any]) -> tuple[str, str] | None:
    """Of a line without a prompt the field that gives away whose it is, and what to do."""
    for names, what, cure in ROWS:
        own = set(names.split())
        if own <= fields.keys():
            field = next(name for name in fields if name in own)
            rewrite = f"; make lines of the file: {cure} FILE > lines.jsonl" if cure else ""
            if cure.startswith("--"):
                rewrite = f"; of a table, say what to ask of each row: {cure}"
            return field, f"the line is {what}: a line has 'prompt' or 'messages'{rewrite}"
    if len(fields) == 1:
        name, value = next(iter(fields.items()))
        if are_rows(value) and not is_foreign(name) and not did_you_mean(name, ("messages",)):
            shown = name[:SHOWN_ROWS]
            each = f"jq -c '.[{json.dumps(shown)}][]' FILE > lines.jsonl"
            return shown, f"the line is an object around rows, not one of them; make lines of the file: {each}"
    return None
