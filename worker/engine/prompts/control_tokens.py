"""Control tokens in contents: text that users wrote, and not turns. No MLX.

A template writes ``<|im_end|>`` and means the token. A user who writes it means the text, or means to forge a turn. To
distinguish them once both are in one text, contents are rendered with a mark inside each control token that they hold,
a character that nothing else holds. The whole text is then encoded as ever, with a token in place of each mark that
was still within a control token, and that token is dropped again. So the tokenizer itself keeps all its rules (spaces
at the beginning, normalisation, tokens that strip), and a text without marks has the very tokens it has in mlx-lm.

The idea of marks is transformers' (``sanitize_control_tokens``). It is not used because it drops characters of users'
texts, encodes in pieces, and makes text of the thinking markers in an assistant's earlier answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence as Items
from dataclasses import dataclass
from typing import Any

from jobs.errors import LineError

BRACKETED = re.compile(r"<[|\uff5c].*>|<.*[|\uff5c]>", re.DOTALL)
"""How models write control tokens that no list calls special and that templates may put together from pieces."""
MARKS = tuple(map(chr, range(0xE000, 0xE040)))
"""Characters for private use: no template has them."""


@dataclass(frozen=True, slots=True)
class Marked:
    """A rendered text as far as contents could have written control tokens into it: between its segments, which joined
    are the text, stands the inside of one."""

    segments: tuple[str, ...]

    @property
    def text(self) -> str:
        return "".join(self.segments)


class ControlTokens:
    """The control tokens of one tokenizer. ``template`` is the source of its chat template, as far as it has one.

    Control tokens are the special ones, those that the template or mlx-lm know, and those that look it. What else was
    added to a vocabulary (HTML tags and runs of spaces, in Gemma's) is text like any other.
    """

    def __init__(self, tokenizer: Any, template: str = "") -> None:
        self._encode = tokenizer.encode
        known = f"{template}\0{tokenizer.think_start or ''}\0{tokenizer.think_end or ''}"
        try:
            added: Mapping[int, Any] = tokenizer.added_tokens_decoder
        except NotImplementedError:  # mistral-common's: text is never a control token there
            added = {}
        control = {number: token for number, token in added.items() if _is_control(token, known)}
        unknown = getattr(tokenizer, "unk_token_id", None)
        self._ids = frozenset(control) - {unknown}
        names = {str(token.content) for token in control.values()}
        self._tokens = re.compile(_one_of(names) if names else "(?!)")
        self._starts = re.compile(f"(?=({self._tokens.pattern}))")
        self._names = "\0".join(sorted(names))
        self._beginnings = frozenset(name[:size] for name in names for size in range(1, len(name)))
        self._ends = frozenset(name[size:] for name in names for size in range(1, len(name)))
        self._longest = max(map(len, names), default=0)
        alone = [number for number, token in control.items() if number in self._ids and _alone(token)]
        plainest = min(alone, key=lambda number: bool(control[number].normalized), default=None)
        self._break = None if plainest is None else (plainest, str(control[plainest].content))
        # Some tokenizers put one in front of everything.
        self._always = self._count(tokenizer.encode("a", add_special_tokens=False))

    @property
    def ids(self) -> frozenset[int]:
        """The ids of control tokens."""
        return self._ids

    def mark(self, value: Any, mark: str, allowed: Iterable[str | None] = (), *, borders: bool = True) -> Any:
        """``value``, a string or what holds strings, with ``mark`` in each control token. ``allowed`` texts are left as
        they are. With ``borders``, also where a string could be part of one together with what stands beside it."""
        if isinstance(value, str):
            places = self._within(value, [text for text in allowed if text])
            places |= self._at_borders(value) if borders else set()
            return mark.join(value[start:end] for start, end in _between(sorted(places), len(value)))
        if isinstance(value, dict):
            items = value.items()
            return {self.mark(key, mark, borders=False): self.mark(item, mark, borders=borders) for key, item in items}
        if isinstance(value, list):
            return [self.mark(item, mark, borders=borders) for item in value]
        return value

    def _within(self, text: str, allowed: list[str]) -> set[int]:
        """Behind the first character of each control token."""
        spans = [found.span() for wanted in allowed for found in re.finditer(re.escape(wanted), text)]
        ends = {place: end for start, end in spans for place in range(start, end)}
        found = self._starts.finditer(text)
        return {one.start() + 1 for one in found if one.end(1) > ends.get(one.start(), 0)}

    def _at_borders(self, text: str) -> set[int]:
        sizes = range(1, min(self._longest, len(text) + 1))
        places = {len(text) - size + 1 for size in sizes if text[len(text) - size :] in self._beginnings}
        if any(text[:size] in self._ends for size in sizes) or (0 < len(text) < self._longest and text in self._names):
            places.add(0)
        return places

    def marked(self, rendered: str, mark: str, text: str) -> Marked:
        """``text``, with the places within control tokens where its rendering from marked contents has a mark.

        Raises:
            LineError: ``unsupported`` when the template did something else for the marks: it may have written them in
                another way, or have read the contents.
        """
        pieces = rendered.split(mark)
        plain = "".join(pieces)
        inside = {place for found in self._starts.finditer(plain) for place in range(found.start() + 1, found.end(1))}
        places, at = [], 0
        for piece in pieces[:-1]:
            at += len(piece)
            if at in inside:
                places.append(at)
        alike = plain == text if places else self._written(plain) == self._written(text)
        if not alike:
            raise _unkept()
        return Marked(tuple(text[start:end] for start, end in _between(places, len(text))))

    def encode(self, marked: Marked) -> list[int]:
        """The tokens of the text, where those of contents are text.

        Raises:
            LineError: ``unsupported`` when the tokenizer makes a control token of a content all the same.
        """
        ids = list(self._encode(self._joined(marked.segments), add_special_tokens=False))
        if len(marked.segments) > 1:
            ids = self._without_breaks(ids, marked.segments)
        if self._count(ids) > sum(map(self._written, marked.segments)) + self._always:
            raise _unkept()
        return ids

    def _joined(self, segments: Items[str]) -> str:
        if len(segments) == 1:
            return segments[0]
        if self._break is None:
            raise _unkept()
        return self._break[1].join(segments)

    def _without_breaks(self, ids: list[int], segments: Items[str]) -> list[int]:
        """``ids`` less the tokens that stand between segments; the template may have written some of the same kind."""
        if self._break is None:
            raise _unkept()
        number, name = self._break
        kept, later = [], iter(segments)
        own = next(later).count(name)
        for token in ids:
            if token != number:
                kept.append(token)
            elif own:
                own -= 1
                kept.append(token)
            else:
                segment = next(later, None)
                if segment is None:
                    raise _unkept()
                own = segment.count(name)
        if own or next(later, None) is not None:
            raise _unkept()
        return kept

    def _written(self, text: str) -> int:
        return sum(1 for _ in self._tokens.finditer(text))

    def _count(self, ids: Iterable[int]) -> int:
        return sum(token in self._ids for token in ids)


def mark_for(*values: Any) -> str:
    """A character that is in none of ``values``.

    Raises:
        LineError: ``unsupported`` when they hold all that could be marks.
    """
    texts = [text for value in values for text in _strings(value)]
    mark = next((mark for mark in MARKS if not any(mark in text for text in texts)), None)
    if mark is None:
        raise _unkept()
    return mark


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _between(places: Items[int], end: int) -> Iterator[tuple[int, int]]:
    """The stretches that ``places`` divide 0..``end`` into."""
    return zip((0, *places), (*places, end), strict=True)


def _one_of(names: set[str]) -> str:
    """A pattern for the longest of some names, which reads no character twice: there may be a thousand of them, and a
    search holds up the whole process."""
    first, last = min(names), max(names)
    size = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    rests: dict[str, set[str]] = {}
    for rest in (name[size:] for name in names):
        rests.setdefault(rest[:1], set()).add(rest)
    optional = "?" if rests.pop("", None) else ""
    branches = "|".join(map(_one_of, rests.values()))
    return re.escape(first[:size]) + (f"(?:{branches}){optional}" if branches else "")


def _is_control(token: Any, known: str) -> bool:
    name: str = token.content
    if not name or name.isspace():
        return False
    return bool(token.special or BRACKETED.fullmatch(name) or (name in known and not name.isalnum()))


def _alone(token: Any) -> bool:
    """Whether a token is found wherever it stands, and takes nothing of what stands beside it."""
    return not (token.lstrip or token.rstrip or token.single_word)


def _unkept() -> LineError:
    return LineError(
        "unsupported",
        "messages",
        "hold a control token of the model that its template or tokenizer does not leave text; take it out, or for a "
        "file that you trust start the worker with --control-tokens",
    )
