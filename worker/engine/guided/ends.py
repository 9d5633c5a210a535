"""How the texts of guided rows end, and whether they are complete then."""

from __future__ import annotations

from worker.engine.sequence import Sequence
from worker.engine.text.detokenizer import Detokenizer
from worker.engine.text.markup import Markup
from worker.engine.text.parts import split_thinking


def ends_text(row: Sequence, token: int) -> bool:
    """Whether ``token``, the row's last, ends its text.

    A constrained row ends at an EOS even if it ignores EOS: it is drawn then only where nothing else may come. One that
    has no EOS ends where its value can only end.
    """
    if not row.line.constrained:
        return token in row.line.eos and not row.sampling.ignore_eos
    if token in row.line.eos:
        return True
    guide = None if row.line.eos else row.guided()
    return guide is not None and guide.exhausted


def value_start(row: Sequence, markup: Markup, detokenizer: Detokenizer) -> int | None:
    """Where in its text the value of a guided row begins, in characters. From there on no marker means anything. None
    where markers say what is what: without a constraint, of calls and channels, and where no value has begun."""
    line, guide = row.line, row.guide
    if guide is None or guide.value_at is None or not line.constrained or line.tools or markup.harmony:
        return None
    return len(detokenizer.text(row.tokens[: guide.value_at], row.prompt))


def is_valid(row: Sequence, markup: Markup, detokenizer: Detokenizer) -> bool | None:
    """Whether the text of a row that ended is what its constraint asks for; None without one."""
    guide = row.guided() if row.line.constrained else None
    if guide is None:
        return None
    if row.stop_reason != "stop_string":
        return guide.complete
    text = row.text or ""
    if (start := value_start(row, markup, detokenizer)) is not None:
        return guide.plan.matches(text[start:])
    text, _ = split_thinking(text, markup, row.line.begins, continues=row.line.continues)
    return guide.plan.matches(text)
