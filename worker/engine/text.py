"""Tokens to text: the same text that ``mlx_lm.generate`` prints, cut at stop strings, thinking apart. No MLX.

:class:`StopMatcher` runs in the engine's thread, for rows with stop strings only. :class:`TextAssembler` runs wherever
records are written, for every row, when it has ended.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, Protocol

from jobs.record import finish_reason
from worker.engine.sequence import Sequence

__all__ = ["Completion", "Detokenizer", "StopMatcher", "TextAssembler", "TextStream", "split_thinking"]

REPLACEMENT = "\ufffd"


class Detokenizer(Protocol):
    """What mlx-lm's streaming detokenizers offer: tokens in, text out as far as it is certain."""

    @property
    def text(self) -> str: ...

    def add_token(self, token: int) -> None: ...

    def finalize(self) -> None: ...


class TokenizerInfo(Protocol):
    """What text assembly needs of mlx-lm's tokenizer wrapper; ``detokenizer`` is a fresh one at each access."""

    @property
    def detokenizer(self) -> Any: ...

    @property
    def has_thinking(self) -> bool: ...

    @property
    def think_start(self) -> str | None: ...

    @property
    def think_end(self) -> str | None: ...

    def decode(self, tokens: list[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class Completion:
    """What a user gets of one sequence.

    ``finish_reason`` is OpenAI's ``stop`` or ``length``, None for a text that was cancelled or expired.
    ``logprobs`` has an entry per token of the text (so none for EOS), in OpenAI's names, with the token's ``id``
    besides; ``bytes`` is None for a token that is part of a character.
    """

    text: str
    reasoning: str | None
    stop_reason: str
    stop_string: str | None
    finish_reason: str | None
    logprobs: list[dict[str, Any]] | None


class TextStream:
    """The text of a growing row of tokens, never with half a character in it."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer

    def add(self, token: int) -> str:
        """Take in one token; the text so far that no later token can change."""
        self._detokenizer.add_token(token)
        return self._detokenizer.text

    def close(self) -> str:
        """The whole text. The bytes of a character that was never completed are left out."""
        settled = self._detokenizer.text
        self._detokenizer.finalize()
        text = self._detokenizer.text
        tail = text[len(settled) :] if text.startswith(settled) else text
        return text[: len(text) - len(tail)] + tail.rstrip(REPLACEMENT)


class StopMatcher:
    """Finds the first stop string in the text of one row, however the text was tokenised.

    The match that is complete first wins, and of those complete at the same character the longest: that is what
    reading the text character by character gives, so it does not depend on where tokens begin. While fewer than
    ``min_tokens`` tokens are there nothing ends the text; a match must end in what came after them.
    """

    def __init__(self, stops: Items[str], stream: TextStream, min_tokens: int = 0) -> None:
        self._stops = tuple(stops)
        self._stream = stream
        self._min_tokens = min_tokens
        self._overlap = max(len(stop) for stop in self._stops) - 1
        self._count = 0
        self._searched = 0
        self.text = ""
        self.match: str | None = None

    def add(self, token: int) -> bool:
        """Take in one token; True when a stop string is complete. ``text`` is then what stands before it."""
        self._count += 1
        return self._search(self._stream.add(token))

    def close(self) -> bool:
        """End the row: what the detokenizer held back may still complete a stop string."""
        return self._search(self._stream.close())

    def _search(self, text: str) -> bool:
        self.text = text
        if self._count < self._min_tokens:
            self._searched = len(text)
            return False
        found = [self._find(stop, text) for stop in self._stops]
        ends = [(start + len(stop), start, stop) for start, stop in zip(found, self._stops, strict=True) if start >= 0]
        self._searched = len(text)
        if not ends:
            return False
        _, start, self.match = min(ends)
        self.text = text[:start]
        return True

    def _find(self, stop: str, text: str) -> int:
        """Where the first ``stop`` starts that ends in text not searched before, or -1."""
        return text.find(stop, max(0, self._searched - len(stop) + 1))


def split_thinking(raw: str, markers: tuple[str, str], *, inside: bool) -> tuple[str, str | None]:
    """The text outside and inside of the model's thinking, without the markers.

    ``inside`` says that ``raw`` begins within a thinking block, because the prompt opened it. White space next to a
    marker belongs to the marker. The second part is None where there is no thought.
    """
    outer: list[str] = []
    thoughts: list[str] = []
    rest, after_marker = raw, inside
    while True:
        part, marker, rest = rest.partition(markers[1] if inside else markers[0])
        if after_marker:
            part = part.lstrip()
        if marker:
            part = part.rstrip()
        (thoughts if inside else outer).append(part)
        if not marker:
            break
        inside, after_marker = not inside, True
    thought = "\n".join(part for part in thoughts if part)
    return "\n".join(part for part in outer if part) if len(outer) > 1 else "".join(outer), thought or None


class TextAssembler:
    """Turns sequences that ended into completions. Safe in any thread: each call has a detokenizer of its own."""

    def __init__(self, tokenizer: TokenizerInfo) -> None:
        self._tokenizer = tokenizer
        start, end = tokenizer.think_start, tokenizer.think_end
        self._markers = (start, end) if start is not None and end is not None else None

    def assemble(self, seq: Sequence) -> Completion:
        """The completion of a sequence; one still growing gives its text so far."""
        raw = seq.text if seq.text is not None else self.raw_text(seq)
        text, reasoning = raw, None
        if self._markers is not None:
            text, reasoning = split_thinking(raw, self._markers, inside=seq.reasoning_open)
        reason = seq.stop_reason or "cancelled"
        return Completion(
            text=text,
            reasoning=reasoning,
            stop_reason=reason,
            stop_string=seq.stop_string,
            finish_reason=finish_reason(reason),
            logprobs=self._logprobs(seq, len(raw)) if seq.sampling.logprobs else None,
        )

    def raw_text(self, seq: Sequence) -> str:
        """The text of all tokens but the ending EOS, markers of thinking included."""
        stream = TextStream(self._tokenizer.detokenizer)
        for token in seq.output:
            # Reading the text after each token matters: the naive detokenizer settles lines only when it is read.
            stream.add(token)
        return stream.close()

    def _logprobs(self, seq: Sequence, text_length: int) -> list[dict[str, Any]]:
        entries = []
        stream = TextStream(self._tokenizer.detokenizer)
        length = 0
        for position, token in enumerate(seq.output):
            if seq.stop_reason == "stop_string" and length >= text_length:
                break
            length = len(stream.add(token))
            entry = self._entry(token, seq.token_logprobs[position])
            best = seq.top_logprobs[position] if seq.top_logprobs else []
            entry["top_logprobs"] = [self._entry(other, value) for other, value in best]
            entries.append(entry)
        return entries

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._tokenizer.decode([token])
        data = None if REPLACEMENT in text else list(text.encode())
        return {"token": text, "id": token, "logprob": logprob, "bytes": data}
