"""Makes the guides of lines for one model: its vocabulary at the first of them, each grammar once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from worker.engine.guided.grammars import Grammars
from worker.engine.guided.guide import GuidePlan, Phase, ThinkingTokens
from worker.engine.guided.vocabulary import Vocabulary
from worker.engine.prompts.control_tokens import ControlTokens
from worker.engine.text.detokenizer import Detokenizer
from worker.engine.text.markup import markup_of
from worker.engine.tools.lark import Spelling

if TYPE_CHECKING:
    from jobs.params import Sampling


class BytelessTokenizerError(ValueError):
    """the model's tokenizer does not tell the bytes of its tokens"""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


class GuideMaker:
    """Plans of guides for lines of one model. ``width`` is that of its logits, ``template`` the source of its chat
    template. Any thread but the one that computes: tables and grammars take time."""

    def __init__(self, tokenizer: Any, width: int, template: str = "") -> None:
        self._tokenizer = tokenizer
        self._width = width
        self._template = template
        self._lock = threading.Lock()
        self._grammars: Grammars | None = None
        self._vocabulary: Vocabulary | None = None
        self.thinking = thinking_tokens(tokenizer)
        self.spelling = Spelling(tokenizer, special_ids(tokenizer, template))

    def plan(
        self,
        grammar: str | None,
        phase: Phase,
        sampling: Sampling,
        eos: frozenset[int],
        *,
        budget: int | None = None,
        field: str | None = None,
    ) -> GuidePlan:
        """The plan of a line whose answer ``grammar`` constrains (None: nothing does), and which may think ``budget``
        tokens (None: any number). Its text begins in ``phase``.

        Raises:
            GrammarError: the grammar cannot be compiled.
            BytelessTokenizerError: no grammar can be enforced with this model.
        """
        vocabulary, grammars = self._tables()
        if self.thinking is None:
            phase = Phase.ANSWER
        return GuidePlan(
            vocabulary=vocabulary,
            matcher=None if grammar is None else grammars.matcher(grammar),
            thinking=self.thinking,
            phase=phase,
            eos=eos,
            least=None if sampling.ignore_eos else sampling.min_tokens,
            budget=budget,
            field=field,
        )

    def _tables(self) -> tuple[Vocabulary, Grammars]:
        with self._lock:
            if self._vocabulary is None or self._grammars is None:
                self._vocabulary = vocabulary_of(self._tokenizer, self._width, self._template)
                self._grammars = Grammars(self._vocabulary)
            return self._vocabulary, self._grammars


def vocabulary_of(tokenizer: Any, width: int, template: str = "") -> Vocabulary:
    """The vocabulary of a tokenizer, for logits of this width.

    Raises:
        BytelessTokenizerError: its tokens have no bytes of their own.
    """
    detokenizer = Detokenizer(tokenizer)
    if not detokenizer.exact:
        raise BytelessTokenizerError
    special = special_ids(tokenizer, template)
    return Vocabulary(
        [detokenizer.bytes_of(token) for token in range(width)],
        [token for token in special if token < width],
        lambda text: list(tokenizer.encode(text, add_special_tokens=False)),
    )


def special_ids(tokenizer: Any, template: str = "") -> frozenset[int]:
    """The tokens that are no text: a grammar gets them only by name."""
    return ControlTokens(tokenizer, template).ids | frozenset(getattr(tokenizer, "all_special_ids", ()))


def thinking_tokens(tokenizer: Any) -> ThinkingTokens | None:
    """How the models of a tokenizer think; None where they do not, or nobody knows how."""
    thinking = markup_of(tokenizer).thinking
    if thinking is None:
        return None
    return ThinkingTokens(thinking.start_tokens, thinking.end_tokens, thinking.start, thinking.end)
