"""Sequences that ended to what a user gets: the text as the model wrote it, thinking apart, and the tokens. No MLX."""

from __future__ import annotations

from typing import Any

from jobs.record import Choice
from worker.engine.sequence import Sequence
from worker.engine.text.detokenizer import Detokenizer
from worker.engine.text.markup import markup_of
from worker.engine.text.parts import segments_of, thoughts_of
from worker.engine.text.tool_calls import CallReader, ids_of

LEAST_LOGPROB = -9999.0
"""What stands for the log-probability of what cannot come, as in OpenAI's API: JSON has no infinity."""


class TextAssembler:
    """Sequences that ended to the choices of a record. Safe in any thread: each call has a text stream of its own."""

    def __init__(self, tokenizer: Any) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._markup = markup_of(tokenizer)
        self._calls = CallReader(tokenizer, self._markup)

    def assemble(self, seq: Sequence, *, token_ids: bool = False, prompt_ids: bool = False) -> Choice:
        """The choice of a sequence; one still growing gives its text so far. With ``token_ids`` it has all its tokens,
        and log-probabilities of all of them, with ``prompt_ids`` those of its prompt."""
        raw = seq.text if seq.text is not None else self._detokenizer.text(seq.output, seq.prompt)
        line = seq.line
        segments = segments_of(raw, self._markup, line.begins, calls=bool(line.tools))
        read = self._calls.read(
            raw,
            segments,
            line.tools,
            ids_of(seq.seed, seq.prompt),
            one=not line.parallel_tool_calls,
            continues=line.continues,
        )
        return Choice(
            index=seq.choice,
            # The space that tokenizers put before the first word of a text.
            text=read.text if line.continues or line.constrained else read.text.removeprefix(" "),
            reasoning=thoughts_of(raw, segments, continues=line.continues),
            stop_reason=seq.stop_reason or "cancelled",
            stop_string=seq.stop_string,
            logprobs=self._logprobs(seq, seq.tokens if token_ids else self._shown(seq, len(raw)))
            if seq.sampling.logprobs
            else None,
            token_ids=seq.tokens if token_ids else None,
            prompt_token_ids=seq.prompt if prompt_ids else None,
            valid=seq.valid,
            tool_calls=read.calls if line.tools else None,
            tool_call_error=read.error,
        )

    def _logprobs(self, seq: Sequence, tokens: list[int]) -> list[dict[str, Any]]:
        entries = []
        for position, token in enumerate(tokens):
            entry = self._entry(token, seq.token_logprobs[position])
            best = seq.top_logprobs[position] if seq.top_logprobs else []
            entry["top_logprobs"] = [self._entry(other, value) for other, value in best]
            entries.append(entry)
        return entries

    def _shown(self, seq: Sequence, text_length: int) -> list[int]:
        """The tokens of the text: those up to the stop string that ended it."""
        if seq.stop_reason != "stop_string":
            return seq.output
        stream = self._detokenizer.stream(seq.prompt)
        shown, length = 0, 0
        while length < text_length and shown < len(seq.output):
            length = len(stream.add(seq.output[shown]))
            shown += 1
        return seq.output[:shown]

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        data = self._detokenizer.bytes_of(token)
        # In this order a NaN is the least, too.
        return {"token": shown(data), "id": token, "logprob": max(LEAST_LOGPROB, logprob), "bytes": list(data)}


def shown(data: bytes) -> str:
    """A token's bytes as a string: its text, or ``bytes:`` and hexadecimal numbers where they are no whole characters,
    so that no two tokens of different bytes look alike."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
