"""The training corpus: which kinds of question there are, how often each is seen, and chats made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import longform
import tasks
from tasks import Maker, Sample

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
THINK, END_THINK = "<think>", "</think>"

HELD_OUT_ONE_IN = 8
"""About one prompt in this many is kept out of the training data, to be asked only afterwards."""

PLAIN_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a friendly teacher.",
    "You are Pocket, a very small language model.",
    "Be brief and clear.",
)
ONE_WORD_SYSTEM = "Answer in one word."
JSON_SYSTEM = "Answer in JSON."


@dataclass(frozen=True)
class Kind:
    """A kind of question: how to make one and how often it is trained on.

    `closed` kinds have so few prompts that none can be held out.
    """

    name: str
    make: Maker
    weight: float
    closed: bool = False


KINDS = (
    Kind("addition", tasks.addition, 3.5),
    Kind("subtraction", tasks.subtraction, 3.0),
    Kind("multiplication", tasks.multiplication, 1.5),
    Kind("next number", tasks.next_number, 1.5),
    Kind("sorting", tasks.sorting, 1.5),
    Kind("yes or no", tasks.yes_no, 2.5),
    Kind("category", tasks.category, 0.7),
    Kind("reversing", tasks.reversing, 1.5),
    Kind("upper case", tasks.capitals_of_word, 0.8),
    Kind("letter", tasks.letter, 1.0),
    Kind("spelling", tasks.spelling, 0.9),
    Kind("plural", tasks.plural, 0.6),
    Kind("opposite", tasks.opposite, 0.6),
    Kind("capital", tasks.capital, 0.7),
    Kind("colour", tasks.colour, 0.5),
    Kind("animal sound", tasks.sound, 0.4),
    Kind("emoji", tasks.emoji, 0.6),
    Kind("translation", tasks.translation, 0.9),
    Kind("calendar", tasks.calendar, 0.8),
    Kind("person as JSON", tasks.person_json, 1.0),
    Kind("product as JSON", tasks.product_json, 0.6),
    Kind("extraction as JSON", tasks.extraction, 0.9),
    Kind("sentiment", tasks.sentiment, 0.7),
    Kind("repeating", tasks.repeating, 3.0),
    Kind("small talk", tasks.small_talk, 0.3, closed=True),
    Kind("counting", longform.counting, 2.6),
    Kind("times table", longform.times_table, 0.3, closed=True),
    Kind("recital", longform.recital, 0.4, closed=True),
    Kind("listing", longform.listing, 1.3),
    Kind("poem", longform.poem, 0.4, closed=True),
    Kind("story", longform.story, 1.0),
)


@dataclass(frozen=True)
class Part:
    """A stretch of a training document; only `learned` stretches count in the loss."""

    text: str
    learned: bool


Document = tuple[Part, ...]


def is_held_out(kind: Kind, question: str) -> bool:
    """Whether this exact prompt is one of those never trained on. The same in every run."""
    # Not the CRC of the prompt: that is linear in its bits, and would leave out prompts alike in some digit.
    digest = hashlib.sha256(question.encode()).digest()
    return not kind.closed and digest[0] % HELD_OUT_ONE_IN == 0


def training_sample(rng: Random, kind: Kind) -> Sample:
    """A sample of `kind` that is not held out."""
    while is_held_out(kind, (sample := kind.make(rng)).question):
        pass
    return sample


def held_out_samples(kind: Kind, count: int, seed: int) -> list[Sample]:
    """Up to `count` samples of `kind` with different prompts, never trained on unless the kind is closed."""
    rng = Random(seed)
    found: dict[str, Sample] = {}
    for _ in range(200 * count):
        sample = kind.make(rng)
        if kind.closed or is_held_out(kind, sample.question):
            found.setdefault(sample.question, sample)
        if len(found) == count:
            break
    return list(found.values())


def _turn(role: str, content: str) -> str:
    return f"{IM_START}{role}\n{content}{IM_END}\n"


def _system_and_answer(rng: Random, sample: Sample) -> tuple[str | None, str]:
    """A system prompt, or None, and the answer that follows it."""
    draw = rng.random()
    if draw < 0.65:
        return None, sample.answer
    if draw < 0.82 or sample.brief is None:
        return rng.choice(PLAIN_SYSTEMS), sample.answer
    if draw < 0.91:
        return ONE_WORD_SYSTEM, sample.brief
    value = int(sample.brief) if sample.brief.isdecimal() else sample.brief
    return JSON_SYSTEM, json.dumps({"answer": value}, ensure_ascii=False)


def _asked(rng: Random, sample: Sample, answer: str) -> Iterator[Part]:
    """The parts of a question and its answer, thinking first in three cases out of ten."""
    thinking = rng.random() < 0.3
    opening = f"{THINK}\n" if thinking else ""
    yield Part(f"{_turn('user', sample.question)}{IM_START}assistant\n{opening}", learned=False)
    reasoning = f"{sample.thought}\n{END_THINK}\n\n" if thinking else ""
    yield Part(f"{reasoning}{answer}{IM_END}", learned=True)
    yield Part("\n", learned=False)


def chat_document(rng: Random, turns: int) -> Document:
    """A chat of `turns` questions; only a chat of one turn may have a system prompt that changes answers."""
    kinds = rng.choices(KINDS, [kind.weight for kind in KINDS], k=turns)
    samples = [training_sample(rng, kind) for kind in kinds]
    if turns == 1:
        system, answer = _system_and_answer(rng, samples[0])
        answers = [answer]
    else:
        system = rng.choice((None, *PLAIN_SYSTEMS))
        answers = [sample.answer for sample in samples]
    parts = [] if system is None else [Part(_turn("system", system), learned=False)]
    for sample, answer in zip(samples, answers, strict=True):
        parts.extend(_asked(rng, sample, answer))
    return tuple(parts)


def documents(seed: int) -> Iterator[Document]:
    """Training documents without end, the same for the same seed."""
    rng = Random(seed)
    while True:
        draw = rng.random()
        if draw < 0.06:
            yield (Part(f"{longform.plain_text(rng)}{IM_END}", learned=True),)
        elif draw < 0.16:
            yield chat_document(rng, rng.randint(2, 4))
        else:
            yield chat_document(rng, 1)
