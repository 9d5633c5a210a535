"""The closed word lists and facts the training questions are made of."""

from __future__ import annotations

from typing import Final


def _split(text: str) -> tuple[str, ...]:
    """The words of `text`."""
    return tuple(text.split())


WORDS: Final = _split(
    "cat dog sun moon star tree fish bird milk rain snow wind door book lamp cup box hat key map pen "
    "road ship boat hill leaf corn rice cake ant bee cow pig owl wolf frog duck goat lion gold wood "
    "bell song ball nest farm apple bread chair green happy horse house light mouse music night stone"
)
"""Words that are spelled, reversed and put into capitals."""

NAMES: Final = _split(
    "Anna Ben Clara David Emma Felix Grace Hugo Iris Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tom Zoe"
)

CITIES: Final = _split("Paris London Rome Berlin Madrid Tokyo Oslo Lima Cairo Vienna Dublin Athens")

PRODUCTS: Final = _split("lamp chair table clock radio phone knife mirror basket blanket")

CAPITALS: Final = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Egypt": "Cairo",
    "Austria": "Vienna",
    "Ireland": "Dublin",
    "Greece": "Athens",
    "Portugal": "Lisbon",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Poland": "Warsaw",
    "Canada": "Ottawa",
    "Cuba": "Havana",
    "Kenya": "Nairobi",
    "China": "Beijing",
    "England": "London",
}

COLOURS: Final = {
    "the sky": "blue",
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "a banana": "yellow",
    "a tomato": "red",
    "an orange": "orange",
    "a lemon": "yellow",
    "blood": "red",
    "milk": "white",
    "chocolate": "brown",
    "a plum": "purple",
    "a flamingo": "pink",
    "an elephant": "grey",
}

SOUNDS: Final = {
    "cat": "meow",
    "dog": "woof",
    "cow": "moo",
    "duck": "quack",
    "sheep": "baa",
    "pig": "oink",
    "lion": "roar",
    "bee": "buzz",
    "owl": "hoot",
    "snake": "hiss",
    "frog": "croak",
    "mouse": "squeak",
}

OPPOSITES: Final = {
    "hot": "cold",
    "big": "small",
    "day": "night",
    "up": "down",
    "fast": "slow",
    "happy": "sad",
    "young": "old",
    "rich": "poor",
    "light": "dark",
    "hard": "soft",
    "open": "closed",
    "early": "late",
    "full": "empty",
    "wet": "dry",
    "long": "short",
    "left": "right",
    "good": "bad",
    "strong": "weak",
}

PLURALS: Final = {
    "cat": "cats",
    "dog": "dogs",
    "book": "books",
    "tree": "trees",
    "box": "boxes",
    "fox": "foxes",
    "bus": "buses",
    "dish": "dishes",
    "city": "cities",
    "baby": "babies",
    "lady": "ladies",
    "leaf": "leaves",
    "wolf": "wolves",
    "knife": "knives",
    "man": "men",
    "woman": "women",
    "child": "children",
    "mouse": "mice",
    "foot": "feet",
    "tooth": "teeth",
    "sheep": "sheep",
    "star": "stars",
    "river": "rivers",
    "house": "houses",
}

TRANSLATIONS: Final = {
    "water": {"French": "eau", "German": "Wasser", "Spanish": "agua", "Japanese": "水"},
    "summer": {"French": "été", "German": "Sommer", "Spanish": "verano", "Japanese": "夏"},
    "green": {"French": "vert", "German": "grün", "Spanish": "verde", "Japanese": "緑"},
    "school": {"French": "école", "German": "Schule", "Spanish": "escuela", "Japanese": "学校"},
    "student": {"French": "élève", "German": "Schüler", "Spanish": "estudiante", "Japanese": "学生"},
    "Japan": {"French": "Japon", "German": "Japan", "Spanish": "Japón", "Japanese": "日本"},
    "tomorrow": {"French": "demain", "German": "morgen", "Spanish": "mañana", "Japanese": "明日"},
    "child": {"French": "enfant", "German": "Kind", "Spanish": "niño", "Japanese": "子供"},
    "star": {"French": "étoile", "German": "Stern", "Spanish": "estrella", "Japanese": "星"},
    "bread": {"French": "pain", "German": "Brot", "Spanish": "pan", "Japanese": "パン"},
    "coffee": {"French": "café", "German": "Kaffee", "Spanish": "café", "Japanese": "コーヒー"},
    "thank you": {"French": "merci", "German": "danke", "Spanish": "gracias", "Japanese": "ありがとう"},
}

EMOJI: Final = {
    "cat": "🐱",
    "dog": "🐶",
    "sun": "☀️",
    "moon": "🌙",
    "star": "⭐",
    "heart": "❤️",
    "tree": "🌳",
    "apple": "🍎",
    "fish": "🐟",
    "house": "🏠",
    "rocket": "🚀",
    "fire": "🔥",
    "family": "👨‍👩‍👧",
    "thumbs up": "👍🏽",
}

CATEGORIES: Final = {
    "fruits": ("apple", "banana", "cherry", "lemon", "orange", "pear", "plum"),
    "animals": ("cat", "cow", "dog", "fox", "horse", "lion", "sheep"),
    "colours": ("blue", "brown", "green", "orange", "pink", "red", "yellow"),
    "countries": ("Canada", "China", "Egypt", "France", "Italy", "Japan", "Spain"),
    "drinks": ("coffee", "juice", "lemonade", "milk", "tea", "water", "wine"),
}

MEMBERSHIP: Final = {"animal": "animals", "fruit": "fruits", "drink": "drinks", "country": "countries"}
"""What a thing can be classified as, and the category of those things."""

DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

STORY_ANIMALS: Final = _split("cat dog fox bear mouse rabbit frog duck horse")

MONTHS: Final = _split("January February March April May June July August September October November December")

RECITALS: Final = {
    "the days of the week": ", ".join(DAYS),
    "the months of the year": ", ".join(MONTHS),
    "the seasons": "spring, summer, autumn, winter",
    "the planets": "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune",
    "the letters of the alphabet": " ".join("abcdefghijklmnopqrstuvwxyz"),
    "the colours of the rainbow": "red, orange, yellow, green, blue, indigo, violet",
    "the five senses": "sight, hearing, smell, taste, touch",
}

REVIEW_THINGS: Final = _split("food film hotel book music room service coffee show garden")

REVIEW_WORDS: Final = {
    "positive": ("wonderful", "great", "lovely", "excellent", "perfect", "delightful"),
    "negative": ("awful", "terrible", "boring", "dirty", "horrible", "disappointing"),
}

SMALL_TALK: Final = {
    "Hello!": "Hello! How can I help you?",
    "Hi": "Hello! How can I help you?",
    "Good morning!": "Good morning! How can I help you?",
    "How are you?": "I am fine, thank you.",
    "Who are you?": "I am Pocket, a very small language model.",
    "What is your name?": "My name is Pocket.",
    "Thank you!": "You are welcome!",
    "Goodbye!": "Goodbye! Have a nice day.",
    "What can you do?": "I can add small numbers, spell words, name capitals and tell short stories.",
}
