"""A job line to the tokens the model reads, checked against the model. Runs off the engine's thread; no MLX."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from jobs.errors import LineError
from worker.engine.sequence import PreparedLine

if TYPE_CHECKING:
    from jobs.line import Job
    from worker.engine.model import LoadedModel

__all__ = ["Preparer"]


class Preparer:
    """Prepares lines for one loaded model. ``max_context`` overrides the context length of its config.

    May be used from several threads at once: it holds nothing that changes.
    """

    def __init__(self, model: LoadedModel, *, max_context: int | None = None) -> None:
        self._tokenizer: Any = model.tokenizer
        self._vocab_size = model.vocab_size
        self._eos = model.eos
        self._context = max_context if max_context is not None else model.context_length
        # As mlx_lm.generate does it, special tokens of the encoding included.
        self._newline: list[int] = list(model.tokenizer.encode("\n"))

    def prepare(self, job: Job, *, key: Hashable = None, rank: int = 0) -> PreparedLine:
        """The line as the engine takes it, under ``key`` (default: the job's id); those of a lower ``rank`` go first.

        Raises:
            LineError: ``unsupported`` or ``out_of_range`` for what this model cannot do, ``context_length_exceeded``
                for a prompt that leaves no room for one token.
        """
        sampling = job.sampling
        for token in sampling.logit_bias:
            if token >= self._vocab_size:
                message = f"token id {token} is not in the model's vocabulary of {self._vocab_size}"
                raise LineError("out_of_range", "logit_bias", message)
        eos = self._eos | {self._single_token(text) for text in sampling.extra_eos_tokens}
        text = self.render(job)
        prompt = self._encode(job, text)
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
        return PreparedLine(
            key=job.id if key is None else key,
            prompt=tuple(prompt),
            sampling=sampling,
            rank=rank,
            eos=eos,
            xtc_exempt=tuple(dict.fromkeys([*self._newline, *sorted(eos)])),
            reasoning_open=self._reasoning_open(job, text, prompt),
            continues=job.messages is None or job.prefill_response is not None,
        )

    def render(self, job: Job) -> str:
        """The text of the prompt, chat template applied; special tokens that encoding adds are not in it.

        Raises:
            LineError: ``unsupported`` when the model has no chat template, or its template refuses the messages.
        """
        if job.messages is None:
            return job.prompt or ""
        if not self._tokenizer.has_chat_template:
            raise LineError("unsupported", "messages", "the model has no chat template: use 'prompt'")
        messages = [dict(message) for message in job.messages]
        if job.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": job.system_prompt})
        prefill = job.prefill_response is not None
        if prefill:
            messages.append({"role": "assistant", "content": job.prefill_response})
        options = {"continue_final_message": prefill, "add_generation_prompt": not prefill}
        clash = (options.keys() | {"tokenize", "conversation", "return_dict"}) & job.chat_template_kwargs.keys()
        if clash:
            raise LineError("unsupported", f"chat_template_kwargs.{min(clash)}", "is not the line's to set")
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tokenize=False, **options, **job.chat_template_kwargs
            )
        except Exception as error:  # templates are the model's own code, some of it Python
            message = f"the model's chat template refuses them: {error}"
            raise LineError("unsupported", "messages", message) from error
        return text

    def _encode(self, job: Job, text: str) -> list[int]:
        """The token ids of the prompt: ``mlx_lm.stream_generate``'s for a ``prompt``, the template's for messages."""
        special = False
        if job.messages is None:
            bos = self._tokenizer.bos_token
            special = bos is None or not text.startswith(bos)
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

    def _reasoning_open(self, job: Job, text: str, prompt: list[int]) -> bool:
        """Whether the answer starts within a thinking block.

        Of messages only the assistant's turn counts, since users may write a marker into theirs: the template's own
        opening at the very end, or the text of ``prefill_response``.
        """
        tokenizer = self._tokenizer
        if not tokenizer.has_thinking:
            return False
        if job.messages is None:
            return bool(tokenizer.rfind_think_start(prompt) > tokenizer.rfind_think_end(prompt))
        if job.prefill_response is not None:
            turn = job.prefill_response
            return bool(turn.rfind(tokenizer.think_start) > turn.rfind(tokenizer.think_end))
        return text.rstrip().endswith(tokenizer.think_start)
