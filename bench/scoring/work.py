"""What is scored: questions with four choices behind the same examples, and texts of unlike lengths."""

from __future__ import annotations

import dataclasses
import json
import random
from dataclasses import dataclass

EXAMPLES = 5
CHOICES = 4
SHORTEST, LONGEST = 50, 900
"""Tokens of unlike texts."""
NAMES = ("Anna", "Tom", "Priya", "Chen", "Maria", "Omar", "Lena", "Jack")
THINGS = ("apples", "books", "stamps", "marbles", "tickets", "shells", "candles", "postcards")
PLACES = ("the market on the hill", "the old station", "her grandmother's garden", "the harbour", "a quiet village")


@dataclass(frozen=True, slots=True)
class ScoringWork:
    """``count`` questions or texts for the model in a ``folder``; those of another ``seed`` are others. ``length`` is
    the tokens of every text, 0 for unlike ones."""

    folder: str
    count: int
    seed: int = 0
    length: int = 0

    @classmethod
    def from_json(cls, text: str) -> ScoringWork:
        return cls(**json.loads(text))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    def questions(self) -> list[tuple[str, list[str]]]:
        """Contexts, each with its choices; all contexts begin with the same examples."""
        draw = random.Random(f"examples/{self.seed}")
        shots = [_question(draw) for _ in range(EXAMPLES)]
        begun = "".join(f"{asked}{choices[0]}\n\n" for asked, choices in shots)
        draw = random.Random(f"questions/{self.seed}")
        asked = [_question(draw) for _ in range(self.count)]
        return [(begun + context, choices) for context, choices in asked]

    def texts(self, vocab: int) -> list[list[int]]:
        """Texts of random tokens, their lengths spread evenly and mixed."""
        draw = random.Random(f"texts/{self.seed}")
        steps = max(1, self.count - 1)
        lengths = [self.length or SHORTEST + (LONGEST - SHORTEST) * number // steps for number in range(self.count)]
        draw.shuffle(lengths)
        return [[draw.randrange(1, vocab) for _ in range(length)] for length in lengths]


def _question(draw: random.Random) -> tuple[str, list[str]]:
    """A question and its four choices, the right one first."""
    name, other = draw.sample(NAMES, 2)
    thing, place = draw.choice(THINGS), draw.choice(PLACES)
    had, found, gave = draw.randrange(20, 90), draw.randrange(5, 40), draw.randrange(2, 19)
    asked = (
        f"Question: On a rainy morning {name} walks to {place} with {had} {thing} in a bag. On the way {name} finds "
        f"{found} more and gives {gave} of them to {other}, who had been waiting there since early in the day. "
        f"How many {thing} does {name} carry home?\nAnswer:"
    )
    right = had + found - gave
    numbers = dict.fromkeys([right, right + gave, right - found, had + gave, right + 10, right - 1])
    return asked, [f" {name} carries {number} {thing} home." for number in list(numbers)[:CHOICES]]
