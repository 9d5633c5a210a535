"""How much a constraint may hold: each is checked in about a second, and within the stack of the grammar library."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from jobs.guided.constraint import Kind
from jobs.guided.places import Schema, depth_of, pointer

LONGEST: Mapping[Kind, int] = {"json": 1 << 18, "regex": 1 << 13, "choice": 1 << 17, "grammar": 1 << 16}
"""The longest texts of constraints, in bytes."""
DEEPEST = 100
"""Levels of JSON of a schema. The library takes 128, of which an object in an object has two."""
MOST_OF: Mapping[str, int] = {
    "properties": 1000,
    "patternProperties": 40,
    "enum": 20_000,
    "anyOf": 1000,
    "oneOf": 1000,
    "allOf": 1000,
    "prefixItems": 1000,
}
"""Entries of one keyword. The library's time grows with the square of their number."""
MOST_OBJECTS = 1000
"""Objects and arrays among the values of one ``enum``."""
MOST_PROPERTIES = 1500
"""Of all objects of a schema together."""
MOST_REFERENCES, MOST_LEVELS = 500, 1000
"""Different references of a schema, and the levels of all that they lead to: the library follows them one within the
other. What is too deep for its stack ends the process."""
MOST_RULES, MOST_WORDS = 1000, 4000
"""Rules and terminals of a grammar, and all names, texts and signs in it."""
MOST_IGNORING_CASE = 1 << 10
"""Bytes of regular expressions that ignore case: of some classes that takes long to work out."""

_IGNORES_CASE = re.compile(r"\(\?[a-zA-Z]*i")
_REGEX = re.compile(r"/((?:\\.|[^/\\\n])+)/(\w*)")
_RULE = re.compile(r"^[^\S\n]*[?!]?[A-Za-z_]\w*(?:\.-?\d+)?(?:\[[^\]\n]*\])?\s*:", re.MULTILINE)
_WORD = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|//[^\n]*|\w+|[^\s\w]')
_JSON = re.compile(r"%json\s*")


def schema_too_large(root: Schema) -> str | None:
    """What is too much in a schema, with its place and the remedy; None where nothing is."""
    if (depth := depth_of(root)) > DEEPEST:
        return f"is nested {depth} levels deep; at most {DEEPEST} are taken: use '$defs' and '$ref'"
    properties, references, patterns = 0, set(), list[str]()
    for where, value in _objects(root):
        for keyword, most in MOST_OF.items():
            entries = value.get(keyword)
            size = len(entries) if isinstance(entries, dict | list) else 0
            if size > most:
                wrong = f"'{keyword}' has {size} entries; at most {most} are taken"
                return f'at "{where}/{keyword}": {wrong}; split the object, or say less'
        named, enum = value.get("properties"), value.get("enum")
        properties += len(named) if isinstance(named, dict) else 0
        if isinstance(enum, list) and sum(isinstance(one, dict | list) for one in enum) > MOST_OBJECTS:
            return f"at \"{where}/enum\": 'enum' has more than {MOST_OBJECTS} objects and arrays; say less"
        patterns += [one for one in (value.get("pattern"),) if isinstance(one, str)]
        patterns += value["patternProperties"] if isinstance(value.get("patternProperties"), dict) else ()
        if isinstance(reference := value.get("$ref"), str):
            references.add(reference)
    if properties > MOST_PROPERTIES:
        return f"has {properties} properties in all; at most {MOST_PROPERTIES} are taken: say less"
    if (said := regex_too_large(*patterns)) is not None:
        return said
    if len(references) > MOST_REFERENCES:
        return f"has {len(references)} different references; at most {MOST_REFERENCES} are taken: say less"
    targets = {id(target): target for target in (_target(root, reference) for reference in references)}
    if (levels := sum(map(depth_of, targets.values()))) > MOST_LEVELS:
        return f"has {levels} levels in what its references lead to; at most {MOST_LEVELS} are taken: say less"
    return None


def regex_too_large(*texts: str) -> str | None:
    """The same of regular expressions."""
    size = sum(len(text.encode()) for text in texts if _IGNORES_CASE.search(text))
    if size > MOST_IGNORING_CASE:
        return f"has {size} bytes of patterns that ignore case; at most {MOST_IGNORING_CASE} are taken: write less"
    return None


def grammar_too_large(text: str) -> str | None:
    """The same of a Lark grammar, and of the schemas in it."""
    if (rules := len(_RULE.findall(text))) > MOST_RULES:
        return f"has {rules} rules and terminals; at most {MOST_RULES} are taken: write less"
    patterns = (f"(?i){found[1]}" if "i" in found[2] else found[1] for found in _REGEX.finditer(text))
    if (said := regex_too_large(*patterns)) is not None:
        return said
    start, words = 0, 0
    for found in _JSON.finditer(text):
        if found.start() < start:
            continue
        words += len(_WORD.findall(text, start, found.start()))
        try:
            schema, start = json.JSONDecoder().raw_decode(text, found.end())
        except (ValueError, RecursionError):
            start = found.end()  # the library says what is wrong with it
            continue
        if isinstance(schema, dict) and (said := schema_too_large(schema)) is not None:
            return f"a schema in %json {said}"
    words += len(_WORD.findall(text, start))
    if words > MOST_WORDS:
        return f"has {words} names, texts and signs; at most {MOST_WORDS} are taken: write less"
    return None


def _objects(root: Schema) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All objects in a JSON value, each with its pointer, whatever they are: a reference may lead to any."""
    waiting: list[tuple[str, Any]] = [("", root)]
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, dict):
            yield where, value
            waiting.extend((where + pointer(key), one) for key, one in value.items() if isinstance(one, dict | list))
        else:
            waiting.extend((f"{where}/{at}", one) for at, one in enumerate(value) if isinstance(one, dict | list))


def _target(root: Schema, reference: str) -> Any:
    """What a reference leads to: the whole schema where it is no pointer."""
    found: Any = root
    for step in reference.removeprefix("#").split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, dict) and key in found:
            found = found[key]
        else:
            return root
    return found
