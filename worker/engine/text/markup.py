"""How a model marks up what it writes: which markers begin and end its thinking, its calls of tools and its answer.

mlx-lm says it of most tokenizers. Of harmony (gpt-oss) it says nothing: that is added here. No MLX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

State = Literal["answer", "reasoning", "call", "header"]
"""What a part of a text is. A header says what the part after it is, and is shown to nobody."""
Edges = Mapping[State, tuple[tuple[str, State], ...]]
"""The markers that end a part of some state, and what begins behind each."""

STATES: Mapping[str, State] = {"normal": "answer", "tool": "call", "reasoning": "reasoning", "header": "header"}
"""mlx-lm's names of states."""
HARMONY_TOKENS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")
HARMONY_ENDS = ("<|return|>", "<|call|>")
HARMONY_EDGES: Edges = {
    "header": (
        ("<|channel|>analysis<|message|>", "reasoning"),
        (" to=", "call"),
        ("<|message|>", "answer"),
    ),
    "reasoning": (("<|end|>", "header"), ("<|start|>assistant", "header")),
    "answer": (("<|end|>", "header"), ("<|start|>assistant", "header")),
    "call": (("<|end|>", "header"), ("<|call|>", "header"), ("<|start|>assistant", "header")),
}


@dataclass(frozen=True, slots=True)
class Thinking:
    """The markers around a model's thinking, as texts and as tokens, at least one each."""

    start: str
    end: str
    start_tokens: tuple[int, ...] = ()
    end_tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Markup:
    """What ends a part of an answer is in ``edges``, ``begins`` is what an answer begins with that nobody has begun.

    ``thinking`` is None of a model that does not think. ``calls`` is the name of the format that calls of tools are
    written in (those of mlx-lm's parsers, or ``harmony``), between ``call_start`` and ``call_end``; that is empty where
    the next call or the end of the text ends one; None: nobody knows one. ``ends`` are tokens that end a text besides
    those that the tokenizer names.
    """

    edges: Edges = field(default_factory=dict)
    begins: State = "answer"
    thinking: Thinking | None = None
    calls: str | None = None
    call_start: str = ""
    call_end: str = ""
    ends: frozenset[int] = frozenset()

    @property
    def plain(self) -> bool:
        """Whether all that it writes is its answer."""
        return not self.edges

    @property
    def harmony(self) -> bool:
        return self.edges is HARMONY_EDGES

    def leaving(self, state: State, *, calls: bool) -> tuple[tuple[str, State], ...]:
        """The markers that end a part of ``state``, and what begins behind each; without ``calls``, of a line that
        offers no tools, what looks like one is text."""
        return tuple((marker, then) for marker, then in self.edges.get(state, ()) if calls or then != "call")


def markup_of(tokenizer: Any) -> Markup:
    """How the models of a tokenizer, as mlx-lm wraps it, mark up what they write."""
    if all(_has(tokenizer, token) for token in HARMONY_TOKENS):
        return _harmony(tokenizer)
    thinking = None
    if tokenizer.has_thinking:
        start, end = (getattr(tokenizer, f"think_{side}_tokens", None) or () for side in ("start", "end"))
        thinking = Thinking(tokenizer.think_start, tokenizer.think_end, tuple(start), tuple(end))
    call_start = getattr(tokenizer, "tool_call_start", None) or ""
    call_end = getattr(tokenizer, "tool_call_end", None) or ""
    calls = tokenizer.tool_parser.__module__.rpartition(".")[2] if call_start else None
    transitions = getattr(tokenizer, "response_transitions", None) or {}
    edges: dict[State, list[tuple[str, State]]] = {}
    for source, targets in transitions.items():
        edges[STATES[source]] = [(marker, STATES[target]) for marker, target in targets]
    if thinking is not None:
        edges.setdefault("answer", []).append((thinking.start, "reasoning"))
        edges.setdefault("reasoning", []).append((thinking.end, "answer"))
    if calls is not None:
        if not any(then == "call" for targets in edges.values() for _, then in targets):
            edges.setdefault("answer", []).append((call_start, "call"))
        edges["call"] = [(call_end, "answer")] if call_end else [(call_start, "call")]
    for marker in getattr(tokenizer, "structural_markers", None) or ():
        edges.setdefault("answer", []).append((marker, "answer"))
    return Markup(
        edges={state: tuple(targets) for state, targets in edges.items()},
        begins=STATES[getattr(tokenizer, "response_initial_state", None) or "normal"],
        thinking=thinking,
        calls=calls,
        call_start=call_start,
        call_end=call_end,
    )


def _harmony(tokenizer: Any) -> Markup:
    start, end = "<|channel|>analysis<|message|>", "<|end|>"
    encoded = [tuple(tokenizer.encode(marker, add_special_tokens=False)) for marker in (start, end)]
    ends = [cast("int", tokenizer.convert_tokens_to_ids(name)) for name in HARMONY_ENDS if _has(tokenizer, name)]
    return Markup(
        edges=HARMONY_EDGES,
        begins="header",
        thinking=Thinking(start, end, *encoded),
        calls="harmony",
        ends=frozenset(ends),
    )


def _has(tokenizer: Any, name: str) -> bool:
    """Whether a tokenizer has a token of this name."""
    find = getattr(tokenizer, "convert_tokens_to_ids", None)
    try:
        token = None if find is None else find(name)
    except Exception:  # of code that came with a model
        return False
    return token is not None and token != getattr(tokenizer, "unk_token_id", None)
