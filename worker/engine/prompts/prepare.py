"""A job line to the tokens the model reads, checked against the model. Runs off the engine's thread; no MLX."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobs.errors import LineError
from jobs.guided.library import GrammarError
from worker.engine.guided.guide import GuidePlan, Phase
from worker.engine.guided.maker import BytelessTokenizerError, GuideMaker
from worker.engine.prompts.chat_template import SHOWN, ChatTemplate, source_of
from worker.engine.prompts.control_tokens import ControlTokens, Marked, mark_for
from worker.engine.prompts.scored import prompts_of, task_of
from worker.engine.sequence import PreparedLine
from worker.engine.text.markup import HARMONY_TURN, State, markup_of
from worker.engine.tools.forced_calls import FINAL_HEADER, check_readable, forced_calls, in_final_channel

if TYPE_CHECKING:
    from jobs.lines.line import Job
    from worker.engine.loading.model import LoadedModel


class Preparer:
    """Prepares lines for one loaded model. ``max_context`` overrides the context length of its config. With
    ``control_tokens``, those in messages are control tokens, which is for files that are trusted, and else text.

    May be used from several threads at once, but not from the one that computes: grammars take time.
    """

    def __init__(self, model: LoadedModel, *, max_context: int | None = None, control_tokens: bool = False) -> None:
        self._tokenizer: Any = model.tokenizer
        self._template = ChatTemplate(self._tokenizer)
        self._control = None if control_tokens else ControlTokens(self._tokenizer, source_of(self._tokenizer))
        self._markup = markup_of(self._tokenizer)
        self._guides = GuideMaker(self._tokenizer, model.vocab_size, source_of(self._tokenizer))
        thinking = self._markup.thinking
        # Harmony's are in messages of their own, and never in a content.
        self._thinking = () if thinking is None or self._markup.harmony else (thinking.start, thinking.end)
        self._vocab_size = model.vocab_size
        self._eos = model.eos | self._markup.ends
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
        fixed = {
            "key": job.id if key is None else key,
            "sampling": sampling,
            "rank": rank,
            "eos": eos,
            "xtc_exempt": tuple(dict.fromkeys([*self._newline, *sorted(eos)])),
            "continues": job.continues,
        }
        several = len(job.prompts) > 1
        first, *others = (
            self._prepared(one, ids, fixed, f"prompt[{place}]" if several else "prompt")
            for place, (one, ids) in enumerate(prompts_of(job))
        )
        return replace(first, others=tuple(others)) if others else first

    def _prepared(self, job: Job, ids: tuple[int, ...] | None, fixed: dict[str, Any], name: str) -> PreparedLine:
        """One prompt of a line: of its text or messages, or with these ``ids``; ``fixed`` is what all have alike.
        Errors call a text by ``name``."""
        rendered = self._rendered(job)
        prompt = self._encode(job, rendered) if ids is None else list(ids)
        border = None
        if job.continuation is not None:
            prompt, border = self._continued(job, prompt, job.continuation)
        field = name if job.messages is None else "messages"
        if not prompt:
            raise LineError("out_of_range", field, "gives no tokens at all")
        if max(prompt) >= self._vocab_size:
            message = f"holds token {max(prompt)}, and the model's vocabulary ends at {self._vocab_size}"
            raise LineError("unsupported", field, message)
        if self._context is not None and len(prompt) + job.generates > self._context:
            message = (
                f"the prompt has {len(prompt)} tokens and the context {self._context}: no room for one token; "
                "shorten it, or raise --max-context if the model can do more"
            )
            raise LineError("context_length_exceeded", field, message)
        begins = self._begins(job, rendered)
        tools, eos = offered(job), fixed["eos"]
        guide = self._guide(job, begins, self._phase(job, rendered, begins), eos) if job.generates else None
        return PreparedLine(
            prompt=tuple(prompt),
            begins=begins,
            guide=guide,
            tools=tools,
            parallel_tool_calls=job.parallel_tool_calls,
            scoring=task_of(job, border),
            echo=self._echo(job, ids),
            **fixed,
        )

    def _echo(self, job: Job, ids: tuple[int, ...] | None) -> str | None:
        """The text that is to come before that of the model."""
        if not job.echo:
            return None
        return job.prompt if ids is None else str(self._tokenizer.decode(list(ids)))

    def _continued(self, job: Job, context: list[int], continuation: str) -> tuple[list[int], int]:
        """The tokens of a text and its continuation, and where the latter begins: after as many as the text has alone,
        without blanks at its end (as in lm-evaluation-harness), which are mostly part of the next word's token."""
        if job.messages is not None:
            whole = self._encode(job, self._rendered(job, continuation))
        else:
            text = job.prompt or ""
            special = self._takes_special(text)
            whole = list(self._tokenizer.encode(text + continuation, add_special_tokens=special))
            if text != text.rstrip():
                context = list(self._tokenizer.encode(text.rstrip(), add_special_tokens=special))
        border = min(len(context), len(whole) - 1)  # where the text's last token swallows the continuation
        if border < 1:
            message = "has no token before the continuation, which must follow at least one"
            if context:
                message = (
                    "is a single token together with the continuation, which must follow at least one: lengthen it"
                )
            raise LineError("out_of_range", "prompt", message)
        return whole, border

    def _guide(self, job: Job, begins: State, phase: Phase, eos: frozenset[int]) -> GuidePlan | None:
        """What guides the line's texts, which begin in ``phase``; None where all tokens may come."""
        budget, constraint = job.thinking_budget, job.constraint
        if budget is not None and self._guides.thinking is None:
            message = "the model's tokenizer marks no thinking: leave it out, or limit all of a text with 'max_tokens'"
            raise LineError("unsupported", "thinking_budget", message)
        calls = forced_calls(job, self._markup, self._guides.spelling, source_of(self._tokenizer), begins)
        field = "thinking_budget" if budget is not None else None
        grammar, header = None, ""
        if constraint is not None:
            grammar, field = constraint.grammar(), constraint.field
        elif calls is not None:
            grammar, field = calls, "tools"
        if grammar is not None and begins == "header" and not self._markup.harmony:
            message = "cannot be enforced: the model's answers begin with headers of a kind that is not known here"
            raise LineError("unsupported", field, message)
        if constraint is not None and grammar is not None and self._markup.harmony and begins != "answer":
            grammar, header = in_final_channel(grammar, self._guides.spelling), FINAL_HEADER
        if grammar is None and budget is None:
            return None
        try:
            return self._guides.plan(grammar, phase, job.sampling, eos, budget=budget, field=field, header=header)
        except GrammarError as error:
            raise LineError("invalid_schema", field, str(error)[:SHOWN]) from error
        except BytelessTokenizerError as error:
            raise LineError("unsupported", field, f"cannot be enforced: {error}") from error

    def _phase(self, job: Job, rendered: Marked, begins: State) -> Phase:
        """Where in its text a line begins."""
        if begins == "reasoning":
            return Phase.THINKING
        begun = job.turn is not None and job.turn["content"].strip()
        thinking = self._markup.thinking
        closed = begins == "answer" and thinking is not None and rendered.text.rstrip().endswith(thinking.end)
        return Phase.ANSWER if begun or closed else Phase.OPENING

    def render(self, job: Job) -> str:
        """The text of the prompt, chat template applied, with its continuation; special tokens that encoding adds are
        not in it. Several prompts are on lines of their own.

        Raises:
            LineError: ``unsupported`` when the model has no chat template, its template refuses the messages, or it
                leaves one of them out.
        """
        texts = []
        for one, ids in prompts_of(job):
            text = self._rendered(one).text if ids is None else str(self._tokenizer.decode(list(ids)))
            texts.append(text + (job.continuation or ""))
        return "\n".join(texts)

    def _rendered(self, job: Job, tail: str = "") -> Marked:
        """The text of the prompt, and where contents could have written control tokens into it; ``tail`` is what
        follows a conversation."""
        if job.messages is None:
            return Marked((job.prompt or "",))
        template, kwargs = self._template, job.chat_template_kwargs
        messages = template.known([*job.history, job.turn] if job.turn is not None else [*job.history])
        tools = offered(job)
        text = template.render(messages, kwargs, continues=job.continues, tools=tools)
        swallowed = template.left_out(messages, kwargs, text, continues=job.continues, tools=tools)
        if swallowed is not None:
            raise _left_out(job, *swallowed, messages[swallowed[0]]["role"])
        if tools:
            check_readable(self._markup)
            template.check_tools(messages, kwargs, text, continues=job.continues, tools=tools)
        if self._control is None:
            return Marked((text + tail,))
        mark = mark_for(messages, kwargs, tools, tail)
        marked = [self._marked(message, mark) for message in messages]
        # Mostly names that the template compares with its own.
        marked_kwargs = {name: self._control.mark(value, mark, borders=False) for name, value in kwargs.items()}
        marked_tools = tuple(self._control.mark([*tools], mark, borders=False))
        marked_tail = self._control.mark(tail, mark, self._thinking)
        if marked == messages and marked_kwargs == kwargs and marked_tools == tools and marked_tail == tail:
            return Marked((text + tail,))
        rendered = template.render(marked, marked_kwargs, continues=job.continues, tools=marked_tools)
        return self._control.marked(rendered + marked_tail, mark, text + tail)

    def _marked(self, message: dict[str, Any], mark: str) -> dict[str, Any]:
        """A message with marks in what its author wrote. An assistant's answer may think: models write theirs so."""
        if self._control is None:
            return message
        own = self._thinking if message["role"] == "assistant" else ()
        calls = [self._marked_call(call, mark) for call in message.get("tool_calls", ())]
        own_fields = ("role", "content", "tool_calls")
        marked = {name: self._control.mark(text, mark) for name, text in message.items() if name not in own_fields}
        if calls:
            marked["tool_calls"] = calls
        return {"role": message["role"], **marked, "content": self._control.mark(message["content"], mark, own)}

    def _marked_call(self, call: dict[str, Any], mark: str) -> dict[str, Any]:
        """A call with marks in what its author wrote. Its type is a word that templates compare."""
        if self._control is None:
            return call
        # Ids are compared with those of answers, and names with those of tools: only what is in them counts.
        written = {name: self._control.mark(text, mark, borders=False) for name, text in call.items() if name == "id"}
        return {**call, **written, "function": self._control.mark(call["function"], mark)}

    def _encode(self, job: Job, rendered: Marked) -> list[int]:
        """The token ids of the prompt: ``mlx_lm.stream_generate``'s for a ``prompt``, the template's for messages."""
        text, special = rendered.text, False
        if job.messages is None:
            special = self._takes_special(text)
        elif self._control is not None:
            return self._control.encode(rendered)
        return list(self._tokenizer.encode(text, add_special_tokens=special))

    def _takes_special(self, text: str) -> bool:
        """Whether a plain prompt gets the special tokens of the encoding."""
        bos = self._tokenizer.bos_token
        return bos is None or not text.startswith(bos)

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

    def _begins(self, job: Job, rendered: Marked) -> State:
        """The part of an answer that the prompt ends in.

        Of messages only the assistant's turn counts, since users may write a marker into theirs: the template's own
        opening at the very end, or what the turn begins with.
        """
        thinking = self._markup.thinking
        if job.messages is None:
            begun = rendered.text
        elif job.turn is not None:
            begun = job.turn["content"]
        elif thinking is not None and rendered.segments[-1].rstrip().endswith(thinking.start):
            return "reasoning"
        else:
            return self._markup.begins
        if thinking is not None and begun.rfind(thinking.start) > begun.rfind(thinking.end):
            return "reasoning"
        ends_in_header = job.messages is None and begun.rstrip().endswith(HARMONY_TURN)
        return "header" if ends_in_header and self._markup.harmony else "answer"


def offered(job: Job) -> tuple[dict[str, Any], ...]:
    """The tools that a line lets its model call: with a ``tool_choice`` of ``none`` the model does not see any."""
    return () if job.tool_choice == "none" else job.tools


def _left_out(job: Job, index: int, call: int | None, role: str) -> LineError:
    """What to say of a message that the template swallows, by its place among those that were rendered, or of one of
    its calls."""
    before = 0 if job.system_prompt is None else 1
    field = "system_prompt" if index < before else f"messages[{index - before}]"
    if call is not None:
        remedy = "give each call a message of its own" if call else "leave its content empty"
        message = f"would be lost: the model's chat template leaves the call out; {remedy}"
        return LineError("unsupported", f"{field}.tool_calls[{call}]", message)
    remedy = "put it first, or into a 'user' message" if role == "system" else "put it into a 'user' message"
    message = f"would be lost: the model's chat template leaves a message of role '{role}' out there; {remedy}"
    return LineError("unsupported", field, message)
