"""A job line to the tokens the model reads, checked against the model. Runs off the engine's thread; no MLX."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from jobs.errors import LineError
from worker.engine.guided.guide import GuidePlan, Phase
from worker.engine.guided.maker import BytelessTokenizerError, GuideMaker
from worker.engine.guided.vocabulary import GrammarError
from worker.engine.prompts.chat_template import SHOWN, ChatTemplate, source_of
from worker.engine.prompts.control_tokens import ControlTokens, Marked, mark_for
from worker.engine.sequence import PreparedLine

if TYPE_CHECKING:
    from jobs.lines.line import Job
    from worker.engine.loading.model import LoadedModel


FIELDS = {
    "json": "response_format",
    "regex": "guided_regex",
    "choice": "guided_choice",
    "grammar": "guided_grammar",
}
"""The fields of a line that ask for a constraint, by its kind."""


class Preparer:
    """Prepares lines for one loaded model. ``max_context`` overrides the context length of its config. With
    ``control_tokens``, those in messages are control tokens, which is for files that are trusted, and else text.

    May be used from several threads at once, but not from the one that computes: grammars take time.
    """

    def __init__(self, model: LoadedModel, *, max_context: int | None = None, control_tokens: bool = False) -> None:
        self._tokenizer: Any = model.tokenizer
        self._template = ChatTemplate(self._tokenizer)
        self._control = None if control_tokens else ControlTokens(self._tokenizer, source_of(self._tokenizer))
        self._guides = GuideMaker(self._tokenizer, model.vocab_size, source_of(self._tokenizer))
        self._thinking = (self._tokenizer.think_start, self._tokenizer.think_end)
        self._vocab_size = model.vocab_size
        self._eos = model.eos
        self._context = max_context if max_context is not None else model.context_length
        # As mlx_lm.generate does it, special tokens of the encoding included.
        self._newline: list[int] = list(model.tokenizer.encode("\n"))

    def prepare(self, job: Job, *, key: Hashable = None, rank: int = 0) -> PreparedLine:
        """The line as the engine takes it, under ``key`` (default: the job's id); those of a lower ``rank`` go first.

        Raises:
            LineError: ``unsupported`` or ``out_of_range`` for what this model cannot do, ``context_length_exceeded``
                for a prompt that leaves no room for one token, ``invalid_schema`` for a grammar that cannot be
                compiled.
        """
        sampling = job.sampling
        for token in sampling.logit_bias:
            if token >= self._vocab_size:
                message = f"token id {token} is not in the model's vocabulary of {self._vocab_size}"
                raise LineError("out_of_range", "logit_bias", message)
        eos = self._eos | {self._single_token(text) for text in sampling.extra_eos_tokens}
        rendered = self._rendered(job)
        prompt = self._encode(job, rendered)
        field = "prompt" if job.messages is None else "messages"
        if not prompt:
            raise LineError("out_of_range", field, "gives no tokens at all")
        if max(prompt) >= self._vocab_size:
            message = f"holds token {max(prompt)}, and the model's vocabulary ends at {self._vocab_size}"
            raise LineError("unsupported", field, message)
        if self._context is not None and len(prompt) >= self._context:
            message = (
                f"the prompt has {len(prompt)} tokens and the context {self._context}: no room for one token; "
                "shorten it, or raise --max-context if the model can do more"
            )
            raise LineError("context_length_exceeded", field, message)
        reasoning_open = self._reasoning_open(job, rendered, prompt)
        return PreparedLine(
            key=job.id if key is None else key,
            prompt=tuple(prompt),
            sampling=sampling,
            rank=rank,
            eos=eos,
            xtc_exempt=tuple(dict.fromkeys([*self._newline, *sorted(eos)])),
            reasoning_open=reasoning_open,
            continues=job.continues,
            guide=self._guide(job, self._phase(job, rendered, reasoning_open=reasoning_open), eos),
        )

    def _guide(self, job: Job, phase: Phase, eos: frozenset[int]) -> GuidePlan | None:
        """What guides the line's texts, which begin in ``phase``; None where all tokens may come."""
        constraint, budget = job.constraint, job.thinking_budget
        if budget is not None and self._guides.thinking is None:
            message = "the model's tokenizer marks no thinking: leave it out, or limit all of a text with 'max_tokens'"
            raise LineError("unsupported", "thinking_budget", message)
        if constraint is None and budget is None:
            return None
        grammar = None if constraint is None else constraint.grammar()
        field = "thinking_budget" if constraint is None else FIELDS[constraint.kind]
        try:
            return self._guides.plan(grammar, phase, job.sampling, eos, budget=budget, field=field)
        except GrammarError as error:
            raise LineError("invalid_schema", field, str(error)[:SHOWN]) from error
        except BytelessTokenizerError as error:
            raise LineError("unsupported", field, f"cannot be enforced: {error}") from error

    def _phase(self, job: Job, rendered: Marked, *, reasoning_open: bool) -> Phase:
        """Where in its text a line begins."""
        if reasoning_open:
            return Phase.THINKING
        begun = job.turn is not None and job.turn["content"].strip()
        closed = self._tokenizer.has_thinking and rendered.text.rstrip().endswith(self._tokenizer.think_end)
        return Phase.ANSWER if begun or closed else Phase.OPENING

    def render(self, job: Job) -> str:
        """The text of the prompt, chat template applied; special tokens that encoding adds are not in it.

        Raises:
            LineError: ``unsupported`` when the model has no chat template, its template refuses the messages, or it
                leaves one of them out.
        """
        return self._rendered(job).text

    def _rendered(self, job: Job) -> Marked:
        """The text of the prompt, and where contents could have written control tokens into it."""
        if job.messages is None:
            return Marked((job.prompt or "",))
        template, kwargs = self._template, job.chat_template_kwargs
        messages = template.known([*job.history, job.turn] if job.turn is not None else [*job.history])
        text = template.render(messages, kwargs, continues=job.continues)
        swallowed = template.left_out(messages, kwargs, text, continues=job.continues)
        if swallowed is not None:
            raise _left_out(job, swallowed, messages[swallowed]["role"])
        if self._control is None:
            return Marked((text,))
        mark = mark_for(messages, kwargs)
        marked = [self._marked(message, mark) for message in messages]
        # Mostly names that the template compares with its own.
        marked_kwargs = {name: self._control.mark(value, mark, borders=False) for name, value in kwargs.items()}
        if marked == messages and marked_kwargs == kwargs:
            return Marked((text,))
        return self._control.marked(template.render(marked, marked_kwargs, continues=job.continues), mark, text)

    def _marked(self, message: dict[str, Any], mark: str) -> dict[str, Any]:
        """A message with marks in what its author wrote. An assistant's answer may think: models write theirs so."""
        if self._control is None:
            return message
        own = self._thinking if message["role"] == "assistant" else ()
        marked = {name: self._control.mark(text, mark) for name, text in message.items() if name != "role"}
        return {"role": message["role"], **marked, "content": self._control.mark(message["content"], mark, own)}

    def _encode(self, job: Job, rendered: Marked) -> list[int]:
        """The token ids of the prompt: ``mlx_lm.stream_generate``'s for a ``prompt``, the template's for messages."""
        text, special = rendered.text, False
        if job.messages is None:
            bos = self._tokenizer.bos_token
            special = bos is None or not text.startswith(bos)
        elif self._control is not None:
            return self._control.encode(rendered)
        return list(self._tokenizer.encode(text, add_special_tokens=special))

    def _single_token(self, text: str) -> int:
        tokenizer = self._tokenizer
        token = tokenizer.convert_tokens_to_ids(text)
        if token is None or tokenizer.convert_ids_to_tokens(token) != text:
            ids = tokenizer.encode(text, add_special_tokens=False)
            token = ids[0] if len(ids) == 1 and tokenizer.decode(ids) == text else None
        if token is None or token >= self._vocab_size:
            message = f"{text[:40]!r} is not a single token of the model; for text use 'stop'"
            raise LineError("unsupported", "extra_eos_tokens", message)
        return int(token)

    def _reasoning_open(self, job: Job, rendered: Marked, prompt: list[int]) -> bool:
        """Whether the answer starts within a thinking block.

        Of messages only the assistant's turn counts, since users may write a marker into theirs: the template's own
        opening at the very end, or what the turn begins with.
        """
        tokenizer = self._tokenizer
        if not tokenizer.has_thinking:
            return False
        if job.messages is None:
            return bool(tokenizer.rfind_think_start(prompt) > tokenizer.rfind_think_end(prompt))
        if job.turn is not None:
            begun = job.turn["content"]
            return bool(begun.rfind(tokenizer.think_start) > begun.rfind(tokenizer.think_end))
        return rendered.segments[-1].rstrip().endswith(tokenizer.think_start)


def _left_out(job: Job, index: int, role: str) -> LineError:
    """What to say of a message that the template swallows, by its place among those that were rendered."""
    before = 0 if job.system_prompt is None else 1
    field = "system_prompt" if index < before else f"messages[{index - before}]"
    remedy = "put it first, or into a 'user' message" if role == "system" else "put it into a 'user' message"
    message = f"would be lost: the model's chat template leaves a message of role '{role}' out there; {remedy}"
    return LineError("unsupported", field, message)
