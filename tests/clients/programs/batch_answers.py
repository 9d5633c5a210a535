"""What clients of the batch API say, beside what the server says of the same batches. For programs with the package
`openai` in their environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from checks import check
from openai import OpenAI
from openai.types import Batch

RIGHT = {f"What is {one} plus {other}?": str(one + other) for one in range(2, 12) for other in range(3, 7)}
"""Questions that the pocket model is good at, and their answers."""
QUESTIONS, COUNT = tuple(RIGHT), len(RIGHT)
TOO_LONG = "What is 5 plus 3?" + " and so on" * 2000
"""A prompt that does not fit into the pocket model's context: its line fails, and no other."""
MODEL = os.environ["MODEL"]


@dataclass(frozen=True, slots=True)
class Answered:
    """What the files of some batches say: answers by question, the batches, and the tokens that they counted."""

    texts: Mapping[str, str]
    batches: Sequence[Batch]
    input_tokens: int
    output_tokens: int


def answered() -> Answered:
    """All batches that the server knows, with the prompts of their input files and the texts of their output files."""
    texts: dict[str, str] = {}
    used = [0, 0]
    with OpenAI() as client:
        batches = list(client.batches.list(limit=100))
        for batch in batches:
            lines = _lines(client, batch.input_file_id)
            asked = {line["custom_id"]: line["body"]["messages"][-1]["content"] for line in lines}
            for line in _lines(client, batch.output_file_id):
                texts[asked[line["custom_id"]]] = line["response"]["body"]["choices"][0]["message"]["content"]
            if batch.usage is not None:
                used = [used[0] + batch.usage.input_tokens, used[1] + batch.usage.output_tokens]
    return Answered(texts, batches, *used)


def _lines(client: OpenAI, file_id: str | None) -> list[dict]:
    if file_id is None:
        return []
    return [json.loads(line) for line in client.files.content(file_id).content.splitlines()]


def check_answers(said: Mapping[str, str], input_tokens: int, output_tokens: int) -> None:
    """Check answers to QUESTIONS, by question: they were made in batches, and are those of the batches' files."""
    found = answered()
    ends = [(batch.endpoint, batch.status, batch.request_counts) for batch in found.batches]
    done = sum(counts.completed for *_, counts in ends if counts is not None)
    ended = all(end[:2] == ("/v1/chat/completions", "completed") for end in ends)
    check("all lines went through /v1/batches", ended and done == COUNT, ends)
    check("every question has an answer", set(said) == set(QUESTIONS) and all(said.values()), said)
    check("each answer is that of its own line", said == found.texts, (said, found.texts))
    right = sum(said.get(question) == answer for question, answer in RIGHT.items())
    check("nine of ten answers are right", right >= 0.9 * COUNT, right)
    theirs, ours = (input_tokens, output_tokens), (found.input_tokens, found.output_tokens)
    check("it counts the tokens that the batches count", theirs == ours and min(ours) > 0, (theirs, ours))
