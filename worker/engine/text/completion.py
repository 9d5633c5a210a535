"""Sequences that ended to what a user gets: the text as the model wrote it, thinking apart, and the tokens. No MLX."""

from __future__ import annotations

from typing import Any

from jobs.record import Choice
from worker.engine.guided.ends import value_start
from worker.engine.scoring.task import LEAST_LOGPROB
from worker.engine.sequence import Sequence
from worker.engine.text.detokenizer import Detokenizer
from worker.engine.text.markup import markup_of
from worker.engine.text.parts import Segment, segments_of, thoughts_of
from worker.engine.text.scores import echoed_entries, prompt_entries, score_of
from worker.engine.text.tool_calls import CallReader, call_ids


class TextAssembler:
    """Sequences that ended to the choices of a record. Safe in any thread: each call has a text stream of its own."""

    def __init__(self, tokenizer: Any) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._markup = markup_of(tokenizer)
        self._calls = CallReader(tokenizer, self._markup)

    def assemble(self, seq: Sequence, *, token_ids: bool = False, prompt_ids: bool = False) -> Choice:
        """The choice of a sequence; one still growing gives its text so far. With ``token_ids`` it has all its tokens,
        and log-probabilities of all of them, as an echo has; with ``prompt_ids`` those of its prompt."""
        raw = seq.text if seq.text is not None else self._detokenizer.text(seq.output, seq.prompt)
        line = seq.line
        segments = self._segments(seq, raw)
        read = self._calls.read(
            raw,
            segments,
            line.tools,
            call_ids(seq.seed, seq.prompt),
            one=not line.parallel_tool_calls,
            continues=line.continues,
        )
        prompt_logprobs, score, echoed = self._scores(seq)
        logprobs = None
        if seq.sampling.logprobs and line.generates:
            # Those who echo count from the prompt's tokens on: an EOS that they drop must not be missing.
            every = token_ids or echoed is not None
            logprobs = self._logprobs(seq, seq.tokens if every else self._shown(seq, len(raw)))
        text = read.text if line.continues or line.constrained else read.text.removeprefix(" ")
        return Choice(
            index=seq.choice,
            # The space that tokenizers put before the first word of a text.
            text=(line.echo or "") + text,
            reasoning=thoughts_of(raw, segments, continues=line.continues),
            stop_reason=seq.stop_reason or "cancelled",
            stop_string=seq.stop_string,
            logprobs=logprobs if echoed is None else [*echoed, *(logprobs or ())],
            token_ids=seq.tokens if token_ids else None,
            prompt_token_ids=seq.prompt if prompt_ids else None,
            # A call that holds its own end marker as text is of its grammar, and no parser can read it.
            valid=seq.valid and read.error is None,
            tool_calls=read.calls if line.tools else None,
            tool_call_error=read.error,
            prompt_logprobs=prompt_logprobs,
            score=score,
        )

    def _segments(self, seq: Sequence, raw: str) -> list[Segment]:
        """The parts of a text. A value that a constraint asked for is one part, whatever it holds."""
        start = value_start(seq, self._markup, self._detokenizer)
        if start is None:
            return segments_of(raw, self._markup, seq.line.begins, calls=bool(seq.line.tools))
        before = segments_of(raw[:start], self._markup, seq.line.begins)
        value = Segment("answer", start, start, len(raw), len(raw), closed=False, marked=False)
        return [*(one for one in before if one.state == "reasoning"), value]

    def _scores(self, seq: Sequence) -> tuple[list[Any] | None, dict[str, Any] | None, list[dict[str, Any]] | None]:
        """Of the prompt's scores ``prompt_logprobs``, ``score``, and what comes before the text's ``logprobs``; None
        for what is not wanted."""
        line, task, scores = seq.line, seq.line.scoring, seq.scores
        if task is None or scores is None:
            return None, None, None
        top = seq.sampling.top_logprobs if seq.sampling.logprobs else None
        args = (line.prompt, scores)
        listed = None if task.listed is None else prompt_entries(*args, task.listed, self._entry)
        echoed = None if line.echo is None or top is None else echoed_entries(*args, top, self._entry)
        return listed, score_of(*args, task, self._entry, top), echoed

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
