"""Whether a line's calls can be read and enforced with a model, and the grammar of those that it must make. No MLX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from jobs.errors import LineError
from worker.engine.text.markup import Markup, State
from worker.engine.tools.formats import FORMATS, tools_of
from worker.engine.tools.lark import Rules, Spelling

if TYPE_CHECKING:
    from jobs.lines.line import Job

HARMONY_TURN = "<|start|>assistant"


def check_calls(markup: Markup) -> None:
    """See that calls of a model can be read.

    Raises:
        LineError: ``unsupported`` where nobody knows how it writes them.
    """
    if markup.calls is None:
        message = "mlx-lm knows no format that the model writes calls in, so they could not be read: leave 'tools' out"
        raise LineError("unsupported", "tools", message)


def forced_calls(job: Job, markup: Markup, spelling: Spelling, template: str, begins: State) -> str | None:
    """The grammar of the calls that a line's ``tool_choice`` demands, behind the thinking; None where it demands none.

    Raises:
        LineError: ``unsupported`` where they cannot be enforced with this model.
    """
    choice = job.tool_choice
    if not job.tools or choice in ("none", "auto"):
        return None
    check_calls(markup)
    found = FORMATS.get(markup.calls or "")
    if found is None:
        message = f"calls cannot be enforced in the model's format of calls ({markup.calls}); write 'auto'"
        raise LineError("unsupported", "tool_choice", message)
    rules = Rules(spelling)
    call = found.call(rules, tools_of(job.tools, _named(choice)), template)
    head = ""
    if markup.harmony:
        turn = spelling.of(HARMONY_TURN)
        head = f"({turn})? " if begins != "answer" else spelling.of("<|end|>") + f" {turn} "
    one = found.single or not job.parallel_tool_calls or _named(choice) is not None
    return rules.text(f"{head}{call}" if one else f"{head}{call} ({found.between} {call})*")


def in_final_channel(grammar: str, spelling: Spelling) -> str:
    """A constraint's grammar, behind the header of harmony's final channel."""
    (value,) = orjson.loads(grammar)["grammars"]
    lark = f"start: ({spelling.of(HARMONY_TURN)})? {spelling.of('<|channel|>final<|message|>')} @value\n"
    return orjson.dumps({"grammars": [{"lark_grammar": lark}, {"name": "value", **value}]}).decode()


def _named(choice: str | dict[str, Any]) -> str | None:
    return None if isinstance(choice, str) else str(choice["function"]["name"])
