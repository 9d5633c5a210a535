"""Keywords of JSON Schema that the grammar library does not enforce, or not always, and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.guided.places import Schema, schemas, shown_value

UNENFORCED: Mapping[str, str] = {
    "not": "say what is allowed instead",
    "if": "write each case into 'anyOf'",
    "then": "write each case into 'anyOf'",
    "else": "write each case into 'anyOf'",
    "uniqueItems": "remove it, and drop repeated items afterwards; or list the items in 'prefixItems'",
    "contains": "say in 'items' or 'prefixItems' what the items are",
    "minContains": "say in 'items' or 'prefixItems' what the items are",
    "maxContains": "say in 'items' or 'prefixItems' what the items are",
    "propertyNames": "write 'patternProperties' with \"additionalProperties\": false",
    "dependencies": "write each case into 'anyOf'",
    "dependentRequired": "write each case into 'anyOf'",
    "dependentSchemas": "write each case into 'anyOf'",
    "unevaluatedItems": "write 'items', or in older drafts 'additionalItems'",
    "unevaluatedProperties": "write 'additionalProperties'",
    "$dynamicRef": "write '$ref'",
    "$recursiveRef": "write '$ref'",
    "contentSchema": "remove it: what is in a string is not looked at",
    "divisibleBy": "write 'multipleOf'",
    "extends": "write 'allOf'",
    "disallow": "say in 'type' what is allowed",
}
"""Of each keyword what to do. They are looked for whatever draft the schema names: somebody meant them."""

FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})
FORMAT_REMEDY = f"write one of {', '.join(sorted(FORMATS))}, or a 'pattern'"
PROPERTIES_REMEDY = (
    "say in 'required' which there are: unlisted properties may come twice, and properties that may be missing are not "
    "counted"
)
ONE_OF_REMEDY = "write 'anyOf'; or give each case a required property whose 'const' no other case has"

MOST_PROPERTIES, MOST_PATTERNS = 2000, 40
"""Of one object. The library's time grows with the square of their number."""


@dataclass(frozen=True, slots=True)
class Place:
    """A keyword at its place in a schema: the JSON pointer, what is wrong with it, and the remedy. Where it is the
    schema there as a whole the keyword is empty."""

    where: str
    keyword: str
    wrong: str
    remedy: str
    lenient: bool = True
    """Whether the rest of the schema can be enforced without it."""

    def __str__(self) -> str:
        named = f"'{self.keyword}' " if self.keyword else ""
        return f'at "{self.where}": {named}{self.wrong}; {self.remedy}'


def unenforced(root: Schema, others: Container[str] = ()) -> Iterator[Place]:
    """Each keyword of a schema that would not be enforced, whether the library says so or not, and ``others``."""
    for where, schema in schemas(root, everywhere=bool(others)):
        for keyword in schema:
            if keyword in UNENFORCED or keyword in others:
                yield Place(f"{where}/{keyword}", keyword, "cannot be enforced", remedy_of(keyword))
        least = schema.get("minProperties", 0)
        if isinstance(least, int) and least > 1 and least > len(schema.get("required") or ()):
            yield Place(f"{where}/minProperties", "minProperties", "cannot be enforced", PROPERTIES_REMEDY)


def formats(root: Schema, form: str) -> Iterator[Place]:
    """Each place of a format that the library does not know."""
    for where, schema in schemas(root):
        if schema.get("format") == form:
            yield blamed(f"Unknown format: {form}", where, schema)


def reference_to(root: Schema, resource: str) -> Place | None:
    """The first '$ref' of a schema to a resource that is not in it."""
    for where, schema in schemas(root, everywhere=True):
        path = str(schema.get("$ref", "")).partition("#")[0].lstrip("./")
        if path and resource.endswith(path):
            return blamed(f"Resource '{resource}'", where, schema)
    return None


def remedy_of(keyword: str) -> str:
    return UNENFORCED.get(keyword, "remove it")


def keywords_in(message: str) -> list[str]:
    """The keywords that the library says are not implemented."""
    return re.findall(r'"([^"]*)"', message)


def too_large(root: Schema) -> Place | None:
    """The first object of a schema with more properties than are checked in bounded time."""
    for where, schema in schemas(root):
        for keyword, most in (("properties", MOST_PROPERTIES), ("patternProperties", MOST_PATTERNS)):
            names = schema.get(keyword)
            if isinstance(names, dict) and len(names) > most:
                wrong = f"has {len(names)} entries; at most {most} are taken"
                return Place(f"{where}/{keyword}", keyword, wrong, "split the object", lenient=False)
    return None


_REF = ("Resource '", "Pointer '", "Anchor '")


def blamed(message: str, where: str, schema: Any) -> Place:
    """The keyword that a message of the library is about, in the innermost schema that it is said of."""
    if message.startswith("Unknown format"):
        return Place(f"{where}/format", "format", f"{shown_value(message[16:])} cannot be enforced", FORMAT_REMEDY)
    if message.startswith("oneOf"):
        return Place(f"{where}/oneOf", "oneOf", "cannot be enforced where its cases overlap", ONE_OF_REMEDY)
    if message.startswith("min/maxProperties"):
        keyword = "minProperties" if isinstance(schema, dict) and "minProperties" in schema else "maxProperties"
        return Place(f"{where}/{keyword}", keyword, "cannot be enforced", PROPERTIES_REMEDY)
    if message.startswith(_REF):
        return _reference(message, where, schema)
    if message.startswith("circular references"):
        remedy = "remove the keywords beside '$ref'"
        return Place(f"{where}/$ref", "$ref", "leads back to itself, with other keywords beside it", remedy, False)
    for pattern, keyword, wrong, remedy in _MESSAGES:
        if (found := pattern.search(message)) is not None:
            name = keyword.format(*found.groups())
            place = f"{where}/{name}" if isinstance(schema, dict) and name in schema else where
            return Place(place, name, wrong.format(*found.groups()), remedy, lenient=False)
    wrong = f"cannot be compiled: {message.splitlines()[0][:200]}"
    return Place(where, "", wrong, "write it in another way", lenient=False)


def _reference(message: str, where: str, schema: Any) -> Place:
    named = message.split("'")[1].removeprefix("json-schema:///")
    if isinstance(schema, dict) and schema.get("$schema") == named:
        remedy = "remove it, or name a draft of json-schema.org"
        return Place(f"{where}/$schema", "$schema", "is not known, and nothing is fetched", remedy, lenient=False)
    given = schema.get("$ref", named) if isinstance(schema, dict) else named
    if message.startswith("Resource"):
        wrong, remedy = f"{shown_value(given)} is elsewhere, and nothing is fetched", "copy it into '$defs'"
    else:
        wrong, remedy = f"{shown_value(given)} leads nowhere", "write \"#/$defs/NAME\" of what is in '$defs'"
    return Place(f"{where}/$ref", "$ref", wrong, remedy, lenient=False)


_NO_REGEX = "write a regular expression without look-around and back-references"
_MESSAGES: tuple[tuple[re.Pattern[str], str, str, str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), keyword, wrong, remedy)
    for pattern, keyword, wrong, remedy in (
        (r"error: (look-around|backreferences)", "pattern", "has {0}, which is not supported", _NO_REGEX),
        (r"lookarounds not supported", "pattern", "has \\b, or ^ or $ inside, which are not supported", _NO_REGEX),
        (r"regex parse error:.*error: (.*)", "pattern", "is no regular expression: {0}", _NO_REGEX),
        (r"patternProperty regexes (.*) and (.*) are not disjoint", "patternProperties",
         "has {0} and {1}, which may match one name", "let one name match one pattern"),
        (r"can't determine if patternProperty", "patternProperties", "is too complex", "write simpler patterns"),
        (r"Unable to determine if regex is empty", "pattern", "is too complex beside the other keywords",
         "write a simpler pattern, and its length into the pattern"),
        (r"Invalid type: (.*)", "type", "{0} is no type",
         "write one of null, boolean, number, integer, string, array, object"),
        (r"Expected (.*) for '(.*)', got (.*)", "{1}", "must be a {0}, not {2}", "write it so"),
        (r"(\S+) must be (an? .*)", "{0}", "must be {1}", "write it so"),
        (r"Unsatisfiable schema: minimum", "minimum", "is above the maximum", "let it be below"),
        (r"Unsatisfiable schema: (.*)", "", "lets no value be right: {0}", "allow one"),
        (r"NoExtension", "$ref", "leads back to itself, and no value ends", "let a case end without it"),
        (r"Failed to generate regex for (.*) range", "minimum", "and 'maximum' are too extreme a {0} range",
         "write smaller numbers"),
        (r"invalid multiple of", "multipleOf", "must be above 0", "write a larger number"),
        (r"schema too large|stack level exceeded", "allOf", "and 'anyOf' multiply to too many cases",
         "write fewer cases"),
        (r"too big|fuel exhausted|too large|limit", "", "is too complex", "write a smaller schema"),
    )
)  # fmt: skip
"""What the library says, the keyword, what is wrong with it, and the remedy."""
