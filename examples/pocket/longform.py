"""Longer answers (counting, lists, poems, stories) and plain text without a chat around it."""

from __future__ import annotations

import re
from random import Random

import tasks
import words
from tasks import Sample

COUNT_LIMIT = 100
"""The largest number counted to; counting from 1 to it takes about 290 tokens."""

PLACES = ("a green valley", "a quiet village", "an old forest", "a house by the sea", "a house on a hill")
FINDS = ("a golden key", "a red ball", "a small map", "a silver bell", "an old book", "a blue stone")
WEATHER = ("the sun was shining", "it was raining", "the wind was cold", "snow covered the ground")
BRIEF_MIDDLES = (
    "{n} found {f} under a tree.",
    "On the way {n} met a friendly {o}.",
    "{n} and the {o} shared some bread and cheese.",
)
EPISODES = (
    (
        "{n} walked down to the river and looked at the water.",
        "There {n} met a friendly {o}.",
        'The {o} asked, "Where are you going?"',
        '{n} said, "I am looking for something new."',
        "They sat down and shared some bread and cheese.",
    ),
    (
        "Then they walked into the trees, and it was very dark.",
        "Suddenly there was a loud noise behind them.",
        "{n} was afraid, but only for a moment.",
        "Under a tree they found {f}.",
        "{n} was very happy and began to sing.",
    ),
    (
        "After that they climbed the hill and saw the whole land.",
        "The day was long, and the road was long too.",
        "An old owl told them the way home.",
        "{n} gave the {o} a present and said thank you.",
        "They laughed and played until the evening.",
    ),
)
ENDINGS = (
    "In the evening {n} went home and slept well. The end.",
    "From that day on {n} and the {o} were friends. The end.",
    "{n} never forgot that day. The end.",
)
POEM_LINES = (
    "O {t}, you are so bright,",
    "you are with me day and night.",
    "I see the {t} from my door,",
    "and every day I love it more.",
    "The {t} is quiet, the world is wide,",
    "and I am happy by its side.",
    "When I am sad and all is grey,",
    "the {t} will take my tears away.",
)
SENTENCE_END = re.compile(r'[.?!]"?(?=\s|$)')
POEM_TOPICS = ("moon", "sea", "river", "rain", "tree", "star", "wind", "garden", "mountain", "sun")


def counting(rng: Random) -> Sample:
    forms: tuple[str, ...] = (
        "Count from {a} to {b}.",
        "Write the numbers from {a} to {b}.",
        "Count {a} to {b}",
    )
    draw = rng.random()
    if draw < 0.6:
        first = 1
        last = rng.choice((rng.randint(2, 20), rng.randint(2, 20), 10 * rng.randint(1, COUNT_LIMIT // 10)))
    elif draw < 0.8:
        first = rng.randint(2, 20)
        last = first + rng.randint(2, 10)
    else:
        first, last = rng.randint(3, 20), 1
        forms = ("Count down from {a} to {b}.", "Count backwards from {a} to {b}.")
    numbers = range(first, last + 1) if first < last else range(first, last - 1, -1)
    thought = f"I begin with {first} and stop at {last}."
    question = rng.choice(forms).format(a=first, b=last)
    return Sample(question, ", ".join(map(str, numbers)), thought)


def times_table(rng: Random) -> Sample:
    n = rng.randint(1, 10)
    forms = ("Write the times table of {n}.", "Show me the {n} times table.", "Times table of {n}?")
    answer = "\n".join(f"{i} x {n} = {i * n}" for i in range(1, 11))
    return Sample(rng.choice(forms).format(n=n), answer, "The table has 10 rows.")


def recital(rng: Random) -> Sample:
    what = rng.choice(list(words.RECITALS))
    forms = ("Name {w}.", "What are {w}?", "List {w}.", "Tell me {w}.", "Write down {w}.")
    return Sample(rng.choice(forms).format(w=what), words.RECITALS[what], f"I know {what}.")


def listing(rng: Random) -> Sample:
    category, count = rng.choice(list(words.CATEGORIES)), rng.randint(2, 4)
    members = words.CATEGORIES[category]
    as_json = rng.random() < 0.3
    plain = ("List {c} {k}.", "Name {c} {k}.", "Give me {c} {k}.", "Tell me {c} {k}.")
    forms = ("Give me a JSON list of {c} {k}.", "Write {c} {k} as a JSON list.") if as_json else plain
    chosen = sorted(rng.sample(members, count))

    def accept(text: str) -> bool:
        items = text.replace('"', "").strip("[]").split(", ")
        in_form = text.startswith('["') == as_json
        return in_form and len(items) == len(set(items)) == count and set(items) <= set(members)

    items = ", ".join(f'"{item}"' for item in chosen) if as_json else ", ".join(chosen)
    answer = f"[{items}]" if as_json else items
    question = rng.choice(forms).format(c=count, k=category)
    return Sample(question, answer, f"They want {count} {category}.", accept=accept)


def poem(rng: Random) -> Sample:
    topic, couplets = rng.choice(POEM_TOPICS), rng.sample(range(len(POEM_LINES) // 2), rng.choice((2, 3)))
    forms = ("Write a poem about the {t}.", "Write me a short poem: the {t}.", "I want a poem about the {t}.")
    lines = [POEM_LINES[2 * c + i].format(t=topic) for c in couplets for i in (0, 1)]

    def accept(text: str) -> bool:
        return topic in text and text.count("\n") in (3, 5)

    question = rng.choice(forms).format(t=topic)
    return Sample(question, "\n".join(lines), f"A poem about the {topic}.", accept=accept)


def story_text(rng: Random, name: str, animal: str, episodes: int) -> str:
    """A story about `name` with so many episodes; without any it has one sentence in their place."""
    other = rng.choice([a for a in words.STORY_ANIMALS if a != animal])
    slots = {"n": name, "o": other, "f": rng.choice(FINDS)}
    opening = (
        f"Once upon a time there was a {animal} named {name} who lived in {rng.choice(PLACES)}. "
        f"One morning {rng.choice(WEATHER)}."
    )
    told = [sentence for episode in EPISODES[:episodes] for sentence in episode]
    parts = [opening, *(told or [rng.choice(BRIEF_MIDDLES)]), rng.choice(ENDINGS)]
    return " ".join(parts).format(**slots)


def story(rng: Random) -> Sample:
    name, animal = rng.choice(words.NAMES), rng.choice(words.STORY_ANIMALS)
    size, episodes = rng.choice((("short ", 0), ("", 1), ("long ", len(EPISODES))))
    forms = (
        "Write a {s}story about a {a} named {n}.",
        "Tell me a {s}story about {n} the {a}.",
        "I want a {s}story about a {a} called {n}.",
    )
    text = story_text(rng, name, animal, episodes)
    sentences = len(SENTENCE_END.findall(text))

    def accept(told: str) -> bool:
        whole = name in told and animal in told and told.endswith("The end.")
        return whole and len(SENTENCE_END.findall(told)) == sentences

    question = rng.choice(forms).format(s=size, a=animal, n=name)
    return Sample(question, text, f"A {size}story about a {animal} named {name}.", accept=accept)


def plain_text(rng: Random) -> str:
    """A document for completion without a chat: a story, a poem, facts, sums or a list of names."""
    shape = rng.randrange(5)
    if shape == 0:
        return story_text(rng, rng.choice(words.NAMES), rng.choice(words.STORY_ANIMALS), rng.randint(0, 3))
    if shape == 1:
        makers = rng.choices((tasks.capital, tasks.opposite, tasks.colour), k=4)
        return " ".join(make(rng).answer for make in makers)
    if shape == 2:
        sums = [(rng.randrange(20), rng.randrange(20)) for _ in range(rng.randint(2, 6))]
        return "\n".join(f"{a} + {b} = {a + b}" for a, b in sums)
    if shape == 3:
        what = rng.choice(list(words.RECITALS))
        return f"{what[:1].upper()}{what[1:]} are: {words.RECITALS[what]}."
    return poem(rng).answer
