"""The questions: those of a file, or some of our own, short ones and long ones, told in plain English."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

Messages = list[dict[str, str]]
"""A chat, as job lines have it."""

OWN = 400
"""How many questions there are of our own."""
MOST_EVENTS = 8
GREETING = "Answer briefly, and explain how you got there."

PEOPLE = ("Ada", "Bruno", "Chen", "Dalia", "Emil", "Farah", "Goran", "Hana", "Ines", "Jonas", "Keiko", "Lars")
PLACES = ("a bakery", "a library", "a small farm", "a bicycle shop", "a school kitchen", "a harbour", "a post office")
THINGS = ("apples", "books", "boxes of nails", "bottles of milk", "parcels", "loaves of bread", "postcards", "lamps")
EVENTS = (
    "On {day} {more} more {things} arrive.",
    "On {day} a customer takes {some} of the {things} and pays {price} dollars for each.",
    "{other}, who helps out on {day}, finds that {some} of the {things} are damaged and throws them away.",
    "On {day} it rains the whole time, so nobody comes, and {name} uses the hours to count everything twice.",
    "{other} borrows {some} {things} on {day} and promises to bring back twice as many the week after.",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
ENDS = (
    "How many {things} does {name} have at the end?",
    "How many {things} are left, and how much money did {name} take in?",
    "Is that more or less than at the beginning, and by how much?",
    "Write a short letter in which {name} tells a friend about that week.",
)


def questions_of(path: Path | None, lines: int, skip: int = 0) -> list[Messages]:
    """``lines`` chats from the ``skip``-th on, over and over where there are fewer: those of a file of JSON lines, each
    with ``question``, ``prompt`` or ``messages``, or of our own.

    Raises:
        ValueError: a row of the file has none of the three, or there is no row.
    """
    chats = [_own(number) for number in range(OWN)] if path is None else _read(path)
    if not chats:
        raise ValueError(f"{path} is empty")
    return list(islice(cycle(chats), skip % len(chats), skip % len(chats) + lines))


def _read(path: Path) -> list[Messages]:
    rows = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    return [_chat(json.loads(row), f"{path}:{number}") for number, row in rows if row.strip()]


def _chat(row: Mapping[str, Any], place: str) -> Messages:
    messages: Sequence[Mapping[str, Any]] | None = row.get("messages")
    if messages is not None:
        return [{"role": str(message["role"]), "content": str(message["content"])} for message in messages]
    text = row.get("question", row.get("prompt"))
    if text is None:
        raise ValueError(f"{place} has none of 'question', 'prompt' and 'messages'")
    return [{"role": "user", "content": str(text)}]


def _own(number: int) -> Messages:
    """A story of a week with up to :data:`MOST_EVENTS` events, mostly few; the same for the same number."""
    draw = random.Random(f"question/{number}")
    name, other = draw.sample(PEOPLE, 2)
    things = draw.choice(THINGS)
    names = {"name": name, "other": other, "things": things}
    sentences = [f"{name} works at {draw.choice(PLACES)} and has {draw.randint(20, 400)} {things} to look after."]
    for _ in range(min(draw.randint(0, MOST_EVENTS), draw.randint(0, MOST_EVENTS))):
        sizes = {"more": draw.randint(2, 90), "some": draw.randint(2, 19), "price": draw.randint(2, 9)}
        sentences.append(draw.choice(EVENTS).format(**names, **sizes, day=draw.choice(DAYS)))
    sentences.append(draw.choice(ENDS).format(**names))
    asked = {"role": "user", "content": " ".join(sentences)}
    return [{"role": "system", "content": GREETING}, asked] if number % 4 == 0 else [asked]
