"""What a side gets: the questions to answer, and what our side needed for them."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.realtext.questions import Messages, questions_of
from bench.work import Row, row_of

Lengths = tuple[tuple[int, int], ...]
"""Prompt and output tokens of lines."""

TEMPERATURES = (0.3, 1.2)
WARM_LINES, WARM_TOKENS = 8, 4
"""What our sides answer before they are measured."""


@dataclass(frozen=True, slots=True)
class TextTask:
    """Questions for a model in a ``folder``: ``lines`` of those in ``prompts`` (empty: our own), from the ``skip``-th
    on, with answers of at most ``new_tokens``. ``seed`` is that of the lines' parameters, ``lengths`` are those that
    the engine came to in this round (empty: it has not run)."""

    folder: str
    prompts: str
    lines: int
    skip: int
    new_tokens: int
    seed: int
    lengths: Lengths = ()

    @classmethod
    def from_json(cls, text: str) -> TextTask:
        fields = json.loads(text)
        return cls(**{**fields, "lengths": tuple((prompt, output) for prompt, output in fields["lengths"])})

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @property
    def chats(self) -> list[Messages]:
        return questions_of(Path(self.prompts) if self.prompts else None, self.lines, self.skip)

    def rows(self, prompts: Sequence[Sequence[int]] | None = None) -> list[Row]:
        """Rows with parameters of their own, which do not depend on the ``prompts``; without those, to take the
        parameters of. Half of them have no top_k, half no min_p: there the candidates can be many."""
        draw = random.Random(f"text/{self.seed}")
        rows = []
        for number in range(self.lines):
            row = row_of(tuple(prompts[number]) if prompts else (), draw)
            top_k, min_p = row.top_k * draw.randrange(2), row.min_p * draw.randrange(2)
            rows.append(dataclasses.replace(row, temperature=draw.uniform(*TEMPERATURES), top_k=top_k, min_p=min_p))
        return rows

    def job_lines(self) -> list[dict[str, Any]]:
        """The work as lines of a prompt file."""
        return [
            {
                "id": f"row-{number}",
                "messages": chat,
                "max_tokens": self.new_tokens,
                "seed": row.seed,
                **row.fields,
            }
            for number, (chat, row) in enumerate(zip(self.chats, self.rows(), strict=True))
        ]

    def warm_up(self, lines: int, new_tokens: int) -> TextTask:
        """Other work, which shares no values with this one."""
        return dataclasses.replace(
            self, lines=lines, skip=self.skip + self.lines, new_tokens=new_tokens, seed=-1 - self.seed, lengths=()
        )
