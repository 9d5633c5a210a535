"""How the texts of guided rows end, and whether they are complete then."""

from __future__ import annotations

from worker.engine.sequence import Sequence
from worker.engine.text.markup import Markup
from worker.engine.text.parts import split_thinking


def ends_text(row: Sequence, token: int) -> bool:
    """Whether ``token``, the row's last, ends its text. Where a constraint leaves nothing else that also holds of a row
    that ignores EOS, or has none."""
    if not row.line.constrained:
        return token in row.line.eos and not row.sampling.ignore_eos
    if token in row.line.eos:
        return True
    guide = None if row.line.eos else row.guided()
    return guide is not None and guide.exhausted


def is_valid(row: Sequence, markup: Markup) -> bool | None:
    """Whether the text of a row that ended is what its constraint asks for; None without one."""
    guide = row.guided() if row.line.constrained else None
    if guide is None:
        return None
    if row.stop_reason != "stop_string":
        return guide.complete
    text, _ = split_thinking(row.text or "", markup, row.line.begins, continues=row.line.continues)
    return guide.plan.matches(text)
