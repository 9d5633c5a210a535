"""Short questions with one right answer: arithmetic, words, facts, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import words


@dataclass(frozen=True)
class Sample:
    """One question with its answer.

    `brief` is the one-word form of the answer, where there is one. `thought` is what the model writes
    before the answer when it is asked to think. `accept` judges a generated answer where more than one
    is right; without it only `answer` itself is.
    """

    question: str
    answer: str
    thought: str
    brief: str | None = None
    accept: Callable[[str], bool] | None = None


Maker = Callable[[Random], Sample]


def word_answer(question: str, word: str, thought: str) -> Sample:
    """A sample whose answer is already one word or number."""
    return Sample(question, word, thought, brief=word)


def addition(rng: Random) -> Sample:
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    forms = ("What is {a} + {b}?", "{a} + {b} =", "Add {a} and {b}.", "What is {a} plus {b}?")
    ones = a % 10 + b % 10
    carry = f" {ones} is 10 + {ones - 10}." if ones > 9 else ""
    tens = a - a % 10 + b - b % 10
    thought = f"{a % 10} + {b % 10} = {ones}.{carry} {a - a % 10} + {b - b % 10} = {tens}. {tens} + {ones} = {a + b}."
    return word_answer(rng.choice(forms).format(a=a, b=b), str(a + b), thought)


def subtraction(rng: Random) -> Sample:
    b = rng.randint(0, 10)
    a = b + rng.randint(0, 10)
    forms = ("What is {a} - {b}?", "{a} - {b} =", "Subtract {b} from {a}.", "What is {a} minus {b}?")
    thought = f"{b} + {a - b} = {a}, so {a} - {b} = {a - b}."
    return word_answer(rng.choice(forms).format(a=a, b=b), str(a - b), thought)


def multiplication(rng: Random) -> Sample:
    a, b = rng.randint(1, 10), rng.randint(1, 10)
    forms = ("What is {a} x {b}?", "{a} x {b} =", "Multiply {a} by {b}.", "What is {a} times {b}?")
    before = a * (b - 1)
    thought = f"{a} x {b - 1} = {before}, and {before} + {a} = {a * b}."
    return word_answer(rng.choice(forms).format(a=a, b=b), str(a * b), thought)


def next_number(rng: Random) -> Sample:
    start, step = rng.randint(1, 15), rng.choice((1, 2, 5, 10))
    terms = [start + step * i for i in range(5)]
    shown = ", ".join(map(str, terms[:4]))
    forms = ("What comes next: {s}?", "Continue the sequence: {s}", "Which number follows {s}?")
    thought = f"The step is {step}, and {terms[3]} + {step} = {terms[4]}."
    return word_answer(rng.choice(forms).format(s=shown), str(terms[4]), thought)


def sorting(rng: Random) -> Sample:
    numbers = rng.sample(range(1, 10), rng.choice((3, 4)))
    forms = ("Sort these numbers: {s}", "Put {s} in order.", "Sort from small to large: {s}")
    thought = f"The smallest is {min(numbers)} and the largest is {max(numbers)}."
    question = rng.choice(forms).format(s=", ".join(map(str, numbers)))
    return Sample(question, ", ".join(map(str, sorted(numbers))), thought)


def yes_no(rng: Random) -> Sample:
    if rng.random() < 0.5:
        number, asked = rng.randrange(100), rng.choice(("even", "odd"))
        subject, true = str(number), "odd" if number % 2 else "even"
        question = rng.choice(("Is {n} an {f} number?", "Is {n} {f}?")).format(n=number, f=asked)
        thought = f"{number} ends in {number % 10}."
    else:
        asked, other = rng.sample(list(words.MEMBERSHIP), 2)
        true = rng.choice((asked, other))
        subject = rng.choice(words.CATEGORIES[words.MEMBERSHIP[true]])
        question = rng.choice(("Is {s} {a}?", "Is {s} the name of {a}?")).format(s=subject, a=_a(asked))
        thought = f"{subject} is one of the {words.MEMBERSHIP[true]}."
    word = "Yes" if asked == true else "No"
    state = true if subject.isdecimal() else _a(true)
    return Sample(question, f"{word}, {subject} is {state}.", thought, word)


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def category(rng: Random) -> Sample:
    kinds = rng.sample(list(words.MEMBERSHIP), 3)
    thing = rng.choice(words.CATEGORIES[words.MEMBERSHIP[kinds[0]]])
    offered = sorted(kinds)
    forms = ("What is {t}: {k}?", "Choose for {t}: {k}", "Classify {t} as {k}.")
    question = rng.choice(forms).format(t=thing, k=f"{offered[0]}, {offered[1]} or {offered[2]}")
    return word_answer(question, kinds[0], f"{thing} is one of the {words.MEMBERSHIP[kinds[0]]}.")


def reversing(rng: Random) -> Sample:
    word = rng.choice(words.WORDS)
    forms = ("Reverse the word {w}.", "Write {w} backwards.", "Spell {w} backwards.", "Reverse: {w}")
    thought = f"The letters are {' '.join(word)}. Backwards they are {' '.join(reversed(word))}."
    return word_answer(rng.choice(forms).format(w=word), word[::-1], thought)


def capitals_of_word(rng: Random) -> Sample:
    word = rng.choice(words.WORDS)
    forms = ("Write {w} in capital letters.", "Uppercase: {w}", "Put the word {w} in upper case.")
    return word_answer(rng.choice(forms).format(w=word), word.upper(), "Capital letters are large letters.")


def letter(rng: Random) -> Sample:
    word = rng.choice(words.WORDS)
    place, index = rng.choice((("first", 0), ("last", -1)))
    forms = ("What is the {p} letter of {w}?", "Give the {p} letter of the word {w}.", "{p} letter of {w}?")
    thought = f"The letters are {' '.join(word)}."
    return word_answer(rng.choice(forms).format(p=place, w=word), word[index], thought)


def spelling(rng: Random) -> Sample:
    word = rng.choice(words.WORDS)
    forms = ("Spell {w}.", "How do you spell {w}?", "Spell the word {w}.")
    thought = f"The word has {len(word)} letters."
    return word_answer(rng.choice(forms).format(w=word), "-".join(word), thought)


def lookup(table: Mapping[str, str], forms: Sequence[str], sentence: str, thought: str) -> Maker:
    """A maker of questions about one key `k` of `table`, answered by `sentence` with its value `v`."""

    def make(rng: Random) -> Sample:
        key = rng.choice(list(table))
        value = table[key]
        answer = sentence.format(k=key, v=value)
        return Sample(
            rng.choice(forms).format(k=key),
            answer[:1].upper() + answer[1:] if " " in answer else answer,
            thought.format(k=key, v=value),
            brief=value,
        )

    return make


plural = lookup(
    words.PLURALS,
    ("What is the plural of {k}?", "Give the plural of {k}.", "Plural of {k}?", "One {k}, two what?"),
    "{v}",
    "One {k}, two {v}.",
)
opposite = lookup(
    words.OPPOSITES,
    ("What is the opposite of {k}?", "Give the opposite of {k}.", "Opposite of {k}?", "What is not {k}?"),
    "The opposite of {k} is {v}.",
    "Not {k} is {v}.",
)
capital = lookup(
    words.CAPITALS,
    (
        "What is the capital of {k}?",
        "Name the capital of {k}.",
        "Capital of {k}?",
        "Which city is the capital of {k}?",
    ),
    "The capital of {k} is {v}.",
    "{k} is a country.",
)
colour = lookup(
    words.COLOURS,
    ("What colour is {k}?", "Which colour has {k}?", "Tell me the colour of {k}.", "Name the colour of {k}."),
    "{k} is {v}.",
    "I think of {k}.",
)
sound = lookup(
    words.SOUNDS,
    ("What sound does a {k} make?", "What does a {k} say?", "Which sound does the {k} make?"),
    "A {k} says {v}.",
    "I think of a {k}.",
)
emoji = lookup(
    words.EMOJI,
    ("Give me an emoji for {k}.", "Which emoji shows {k}?", "Emoji for {k}?", "Send me the {k} emoji."),
    "{v}",
    "There is an emoji for {k}.",
)


def translation(rng: Random) -> Sample:
    word = rng.choice(list(words.TRANSLATIONS))
    language = rng.choice(list(words.TRANSLATIONS[word]))
    value = words.TRANSLATIONS[word][language]
    forms = ("Translate {w} into {l}.", "What is {w} in {l}?", "How do you say {w} in {l}?", "{w} in {l}?")
    return word_answer(rng.choice(forms).format(w=word, l=language), value, f"The language is {language}.")


def calendar(rng: Random) -> Sample:
    unit, names = rng.choice((("day", words.DAYS), ("month", words.MONTHS)))
    place, shift = rng.choice((("after", 1), ("before", -1)))
    index = rng.randrange(len(names))
    value = names[(index + shift) % len(names)]
    forms = ("What {u} comes {p} {n}?", "Which {u} is {p} {n}?", "Name the {u} {p} {n}.")
    question = rng.choice(forms).format(u=unit, p=place, n=names[index])
    answer = f"The {unit} {place} {names[index]} is {value}."
    return Sample(question, answer, f"{names[index]} is a {unit}.", value)


def person_json(rng: Random) -> Sample:
    name, age, city = rng.choice(words.NAMES), rng.randint(1, 99), rng.choice(words.CITIES)
    record: dict[str, str | int] = {"name": name, "age": age}
    forms = ("Give me JSON for a person named {n} aged {a}{c}.", "Write JSON: a person, {n}, aged {a}{c}.")
    where = ""
    if rng.random() < 0.5:
        record["city"] = city
        where = f" from {city}"
    question = rng.choice(forms).format(n=name, a=age, c=where)
    return Sample(question, json.dumps(record), f"The person is {name}.")


def product_json(rng: Random) -> Sample:
    product, price = rng.choice(words.PRODUCTS), rng.randint(1, 99)
    forms = ("Give me JSON for a {p} that costs {c}.", "Write JSON for a product: {p}, price {c}.")
    answer = json.dumps({"product": product, "price": price})
    return Sample(rng.choice(forms).format(p=product, c=price), answer, f"The product is a {product}.")


def extraction(rng: Random) -> Sample:
    name, city = rng.choice(words.NAMES), rng.choice(words.CITIES)
    texts = ("{n} lives in {c}.", "{n} moved to {c} last year.", "In {c} there is a baker called {n}.")
    forms = ("Extract the name and the city: {t}", "Find the name and the city as JSON: {t}")
    text = rng.choice(texts).format(n=name, c=city)
    answer = json.dumps({"name": name, "city": city})
    return Sample(rng.choice(forms).format(t=text), answer, f"The name is {name} and the city is {city}.")


def sentiment(rng: Random) -> Sample:
    label = rng.choice(list(words.REVIEW_WORDS))
    quality, thing = rng.choice(words.REVIEW_WORDS[label]), rng.choice(words.REVIEW_THINGS)
    texts = ("The {t} was {q}.", "It was all {q}: the {t}!", "I found the {t} {q}.")
    forms = ("Is this review positive or negative? {r}", "Classify the review: {r}", "Sentiment: {r}")
    review = rng.choice(texts).format(t=thing, q=quality)
    return word_answer(rng.choice(forms).format(r=review), label, f"The word {quality} is {label}.")


def repeating(rng: Random) -> Sample:
    pool = rng.choice((words.WORDS, words.NAMES, tuple(map(str, range(100)))))
    text = " ".join(rng.sample(pool, rng.randint(1, 4)))
    forms = ("Repeat: {t}", "Say this again: {t}", "Copy these words: {t}")
    return Sample(rng.choice(forms).format(t=text), text, "I say the same again.")


def small_talk(rng: Random) -> Sample:
    question = rng.choice(list(words.SMALL_TALK))
    return Sample(question, words.SMALL_TALK[question], "The user is talking to me.")
