"""Checks of constraints without a model, by the grammar library: what cannot be compiled or enforced is refused.

The library is imported when the first constraint is checked. Where it is missing nothing is checked, and the worker,
which has it, checks later.
"""

from __future__ import annotations

import importlib.util
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from jobs.errors import LineError
from jobs.guided.constraint import Constraint, Kind, json_constraint
from jobs.guided.keywords import Place, blamed, formats, keywords_in, reference_to, remedy_of, too_large, unenforced
from jobs.guided.places import alone, children, depth_of

if TYPE_CHECKING:
    from llguidance import LLParserLimits, LLTokenizer

LONGEST: Mapping[Kind, int] = {"json": 1 << 20, "regex": 1 << 16, "choice": 1 << 20, "grammar": 1 << 18}
"""The longest texts of constraints, in bytes."""
DEEPEST = 100
"""Levels of JSON of a schema. The library takes 128, of which an object in an object has two."""
KEPT_BYTES = 32 << 20
MOST_TRIES = 400
"""How many sub-schemas are tried to find the one at fault."""
MOST_WARNINGS = 20
LENIENT = '"lenient": true beside the schema makes a warning of it'

Outcome = tuple[str, ...] | LineError


def parser_limits() -> LLParserLimits:
    """What compiling and walking one grammar may take; the library's own numbers, where nothing else is measured."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=100_000, verbose_errors=False)


class Checker:
    """Checks constraints, each text once as long as it is remembered. Threads: one."""

    def __init__(self) -> None:
        self._outcomes: OrderedDict[Constraint, Outcome] = OrderedDict()
        self._kept = 0
        self._table: LLTokenizer | None = None
        self.available = importlib.util.find_spec("llguidance") is not None

    def check(self, constraint: Constraint) -> tuple[str, ...]:
        """The warnings about a constraint; none where the library is missing.

        Raises:
            LineError: ``invalid_schema`` or ``out_of_range``, with the place, the keyword and the remedy.
        """
        outcome = self._outcomes.get(constraint)
        if outcome is None:
            outcome = self._outcome(constraint)
            self._remember(constraint, outcome)
        if isinstance(outcome, LineError):
            raise LineError(outcome.code, constraint.field or None, outcome.message)
        return outcome

    def _remember(self, constraint: Constraint, outcome: Outcome) -> None:
        self._outcomes[constraint] = outcome
        self._kept += len(constraint.text)
        while self._kept > KEPT_BYTES or len(self._outcomes) > 10_000:
            oldest, _ = self._outcomes.popitem(last=False)
            self._kept -= len(oldest.text)

    def _outcome(self, constraint: Constraint) -> Outcome:
        size, most = len(constraint.text.encode()), LONGEST[constraint.kind]
        if size > most:
            return LineError("out_of_range", None, f"has {size} bytes; at most {most} are taken")
        if constraint.kind == "json":
            return self._schema(constraint)
        if not self.available:
            return ()
        message, _ = self._compiled(constraint.grammar())
        return () if message is None else LineError("invalid_schema", None, _said(constraint, message))

    def _schema(self, constraint: Constraint) -> Outcome:
        schema = orjson.loads(constraint.text)
        if (depth := depth_of(schema)) > DEEPEST:
            message = f"is nested {depth} levels deep; at most {DEEPEST} are taken: use '$defs' and '$ref'"
            return LineError("invalid_schema", None, message)
        if (place := too_large(schema)) is not None:
            return LineError("invalid_schema", None, str(place))
        if not self.available:
            return ()
        said, warnings = self._compiled(constraint.grammar())
        if said is not None:
            return LineError("invalid_schema", None, _with_lenient(self._place(schema, said), constraint))
        places = [str(place) for place in self._ignored(schema, warnings)]
        if places and not constraint.lenient:
            return LineError("invalid_schema", None, f"{places[0]}; or {LENIENT}")
        return tuple(places[:MOST_WARNINGS])

    def _compiled(self, grammar: str) -> tuple[str | None, Sequence[str]]:
        """What is wrong with a grammar, in the library's words, None where nothing is; and its warnings."""
        from llguidance import LLMatcher, LLTokenizer

        limits = parser_limits()
        failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, None, limits=limits)
        if failed:
            return messages[0], ()
        # What a lexer and a first mask need shows only where they are made; the tokens here are the bytes.
        self._table = self._table or LLTokenizer("byte")
        matcher = LLMatcher(self._table, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        return (matcher.get_error() if matcher.is_error() else None), messages

    def _ignored(self, root: Mapping[str, Any], messages: Sequence[str]) -> list[Place]:
        """The places of a schema that compiles which would not be enforced; ``messages`` are the library's warnings."""
        places = list(unenforced(root))
        for message in dict.fromkeys(messages):
            if message.startswith("Unknown format: "):
                places += formats(root, message.removeprefix("Unknown format: "))
            elif message.startswith("Unimplemented keys"):
                places += unenforced(root, keywords_in(message)) if not places else ()
            elif (strict := self._said_of(root)) is not None:
                places.append(self._place(root, strict))
        return list({place.where: place for place in places}.values())

    def _place(self, root: Mapping[str, Any], message: str) -> Place:
        """The keyword at fault: of the innermost schema that the library says the same of when it stands alone."""
        if message.startswith("Unimplemented keys"):
            named = keywords_in(message)
            found = next((place for place in unenforced(root, named) if place.keyword in named), None)
            return found or Place(f"/.../{named[0]}", named[0], "cannot be enforced", remedy_of(named[0]))
        if message.startswith("Resource") and (found := reference_to(root, message.split("'")[1])) is not None:
            return found
        where, schema, tries = "", root, 0
        while True:
            for below, one in children(schema, everywhere=True):
                tries += 1
                if tries > MOST_TRIES:
                    return blamed(_first_line(message), where, schema)
                if isinstance(one, dict) and self._said_of(alone(root, one)) == message:
                    where, schema = where + below, one
                    break
            else:
                return blamed(message, where, schema)

    def _said_of(self, schema: Mapping[str, Any]) -> str | None:
        """What the library says against a schema that is to be enforced as it stands."""
        from llguidance import LLMatcher

        grammar = json_constraint(schema).grammar()
        failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, None, limits=parser_limits())
        return messages[0] if failed else None


def _first_line(message: str) -> str:
    return message.split("\n", 1)[0]


def _with_lenient(place: Place, constraint: Constraint) -> str:
    return f"{place}; or {LENIENT}" if place.lenient and not constraint.lenient else str(place)


_GBNF = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)
_AT = re.compile(r"^(?:at )?(\d+)\((\d+)\): ")
_OF_TEXTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), said)
    for pattern, said in (
        (r"error: look-around", "look-around ((?=, (?!, (?<=, (?<!) is not supported; write out what is allowed"),
        (r"error: backreferences|\\k<", "back-references are not supported; write out what is allowed"),
        (r"lookarounds not supported.*Word", "\\b is not supported; the whole text is matched: write its ends out"),
        (r"lookarounds not supported", "^ and $ stand at the ends alone: the whole text is matched; remove them"),
        (r"regex parse error:.*error: ([^\n]*)", "is no regular expression: {0}"),
        (r'unknown name: "([^"]*)"', "'{0}' is not defined; add a rule or a terminal of this name"),
        (r"no start rule found", "there is no rule 'start'; it is where a text begins"),
        (r'duplicate rule: "([^"]*)"', "'{0}' is defined twice; keep one"),
        (
            r'circular reference in token "([^"]*)"',
            "terminal '{0}' leads back to itself; make it a rule, in small letters",
        ),
        (r"failed to compile JSON schema: ([^\n]*)", "a schema in %json cannot be compiled: {0}"),
        (r"too deeply nested|nest limit", "is nested too deeply; write rules of their own"),
        (r"too big|fuel exhausted|too large|limit", "is too complex; write less"),
        (r"NoExtension", "no text is right by it; let some text end"),
    )
)
"""What the library says of a regular expression or a grammar, and what is said of it here."""


def _said(constraint: Constraint, message: str) -> str:
    """What is wrong with a regular expression, choices or a grammar."""
    if constraint.kind == "grammar" and _GBNF.search(constraint.text):
        return 'is GBNF; write Lark, as in start: "yes" | "no"'
    found = _AT.match(message) if constraint.kind == "grammar" else None
    place = f"line {found[1]}, column {found[2]}: " if found else ""
    for pattern, said in _OF_TEXTS:
        if (match := pattern.search(message)) is not None:
            return place + said.format(*match.groups())
    return f"{place}cannot be compiled: {_AT.sub('', _first_line(message))[:200]}"
