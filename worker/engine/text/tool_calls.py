"""Calls of tools in texts that ended, read by mlx-lm's parsers, or harmony's by ours. No MLX."""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Callable, Iterator, Sequence as Items
from dataclasses import dataclass
from typing import Any

from worker.engine.text.markup import Markup
from worker.engine.text.parts import Segment, joined

Call = dict[str, Any]
HARMONY_CALL = re.compile(r"functions\.([\w-]+)[^{]*?<\|message\|>(.*)", re.DOTALL)
SHOWN = 60
"""Characters shown of what a model wrote in place of a name."""


class CallError(ValueError):
    """A call that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class ReadCalls:
    """The answer without the calls in it, the calls, and why one was left in the text (None: none was)."""

    text: str
    calls: list[Call]
    error: str | None


class CallReader:
    """Reads calls as the models of one tokenizer write them. May be used from several threads at once."""

    def __init__(self, tokenizer: Any, markup: Markup) -> None:
        self._markup = markup
        self._parse: Any = parse_harmony if markup.harmony else getattr(tokenizer, "tool_parser", None)
        """``parse(text, tools)``: a call, or a list of calls."""

    def read(
        self,
        raw: str,
        segments: Items[Segment],
        tools: Items[Any],
        new_id: Callable[[int], str],
        *,
        one: bool = False,
        continues: bool = False,
    ) -> ReadCalls:
        """The calls of ``tools`` in the parts of a text; ``new_id`` gives the id of each by its place. With ``one`` the
        text is over at the end of the first. A call that cannot be parsed, or is of no tool, stays in the text."""
        parts: list[str] = []
        calls: list[Call] = []
        error = None
        for segment in segments:
            if segment.state == "answer":
                parts.append(segment.said(raw, continues=continues))
            elif segment.state == "call":
                try:
                    calls += self._calls(raw, segment, tools, new_id, len(calls))
                except CallError as wrong:
                    error = error or str(wrong)
                    parts.append(raw[segment.begin : segment.stop].strip())
            if one and calls:
                return ReadCalls(joined(parts), calls[:1], error)
        return ReadCalls(joined(parts), list(_distinct(calls, new_id)), error)

    def _calls(
        self, raw: str, segment: Segment, tools: Items[Any], new_id: Callable[[int], str], before: int
    ) -> list[Call]:
        if self._markup.call_end and not segment.closed:
            raise CallError("the text ended within a call")
        text = raw[segment.start : segment.end]
        try:
            parsed = self._parse(text, list(tools))
        except CallError:
            raise
        except Exception as error:  # parsers say nothing of what they may raise
            raise CallError(f"a call cannot be read as {self._markup.calls}: {type(error).__name__}") from error
        found = parsed if isinstance(parsed, list) else [parsed]
        if not found:
            raise CallError("there is no call between the markers of one")
        names = {tool["function"]["name"] for tool in tools}
        return [_checked(call, names, new_id(before + place)) for place, call in enumerate(found)]


def ids_of(seed: int, prompt: Items[int]) -> Callable[[int], str]:
    """Ids for the calls of a text by their place: the same whenever the line is run, others in each text."""
    start = hashlib.blake2b(seed.to_bytes(8, "little") + array("q", prompt).tobytes(), digest_size=16).digest()

    def new_id(place: int) -> str:
        return "call_" + hashlib.blake2b(start + place.to_bytes(4, "little"), digest_size=12).hexdigest()

    return new_id


def parse_harmony(text: str, tools: list[Any]) -> Call:
    """The call in a message of harmony's, from its recipient on.

    Raises:
        ValueError: it is to no function, or its arguments are not JSON.
    """
    found = HARMONY_CALL.match(text)
    if found is None:
        raise CallError(f"a message to {text[:SHOWN]!r} is no call of a function")
    return {"name": found[1], "arguments": json.loads(found[2])}


def _checked(call: Any, names: set[str], new_id: str) -> Call:
    """A call as OpenAI's API has it."""
    name = call.get("name") if isinstance(call, dict) else None
    if not isinstance(name, str):
        raise CallError("a call does not say what it calls")
    if name not in names:
        raise CallError(f"a call of {name[:SHOWN]!r}, which is none of the line's tools")
    arguments = call.get("arguments")
    try:
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        if not isinstance(arguments or {}, dict):
            raise CallError(f"the arguments of a call of {name!r} are no object")
        written = json.dumps(arguments or {}, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError) as error:
        if isinstance(error, CallError):
            raise
        raise CallError(f"the arguments of a call of {name!r} are not JSON") from error
    if not _writable(written):  # half a pair of surrogates, which JSON can escape and UTF-8 cannot hold
        written = json.dumps(arguments, allow_nan=False)
    known = call.get("id")
    kept = known if isinstance(known, str) and known and _writable(known) else new_id
    return {"id": kept, "type": "function", "function": {"name": name, "arguments": written}}


def _writable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _distinct(calls: Items[Call], new_id: Callable[[int], str]) -> Iterator[Call]:
    """Calls, with new ids where a model has used one twice."""
    seen: set[str] = set()
    for place, call in enumerate(calls):
        yield {**call, "id": new_id(place)} if call["id"] in seen else call
        seen.add(call["id"])
