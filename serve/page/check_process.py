"""`python -m serve.page.check_process`: checks a file for the page, in a process of its own, and renders some prompts.

On its standard input is what to check, a JSON object; on its standard output are JSON objects, a line each: how far it
is, then the result.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import orjson

from jobs.errors import ModelLoadError, PromptmillError
from jobs.lines.line import Defaults
from submit.input.preview import Preview, Previewed
from submit.input.reader import PromptFile
from submit.input.validate import Chunk, Findings, checked

MOST_PROBLEMS = 1000
COUNTED = 5000
"""So many prompts are rendered and counted, the first ones."""
SHOWN_PROMPT = 20_000
LONGEST_MESSAGE = 500
SAY_S = 0.3


@dataclass(frozen=True, slots=True)
class CheckOrder:
    """What to check: the file at ``path``, called ``name`` by who sent it; ``render`` is whether its prompts are to be
    rendered for the model of ``defaults``."""

    path: str
    name: str
    most_lines: int
    most_bytes: int
    defaults: Mapping[str, Any] = field(default_factory=dict)
    render: bool = False


def check_file(
    order: CheckOrder, say: Callable[[dict[str, Any]], object], *, clock: Callable[[], float] = time.monotonic
) -> dict[str, Any]:
    """Check all lines; ``say`` is told how far it is.

    Raises:
        PromptmillError: the file cannot be read, or has too many lines.
    """
    defaults, findings, said_at = Defaults(order.defaults), Findings(), clock()
    with PromptFile(order.path, most_bytes=order.most_bytes) as prompts, _Renderer(order, defaults) as renderer:
        prompts.name = order.name
        for chunk in checked(prompts, defaults):
            findings.add(chunk)
            if findings.total > order.most_lines:
                raise PromptmillError(f"the file has more than {order.most_lines:,} lines: split it")
            renderer.feed(chunk)
            if clock() - said_at >= SAY_S:
                said_at = clock()
                say({"lines": findings.total})
        return {**_shown(findings), **renderer.finish()}


def _shown(findings: Findings) -> dict[str, Any]:
    return {
        "lines": findings.total,
        "bad_lines": findings.rejected,
        "formats": dict(findings.formats),
        "models": dict(findings.by_model.most_common(100)),
        "own_models": dict(findings.own_models.most_common(100)),
        "problems": [
            {**problem.as_dict(), "message": problem.message[:LONGEST_MESSAGE]}
            for problem in findings.problems[:MOST_PROBLEMS]
        ],
    }


class _Renderer:
    """Renders the first prompts, where that was asked for and can be done on this machine."""

    def __init__(self, order: CheckOrder, defaults: Defaults) -> None:
        self._stack = contextlib.ExitStack()
        self._preview: Preview | None = None
        self._why: str | None = None
        self._fed = 0
        if order.render and defaults.model:
            try:
                self._preview = self._stack.enter_context(Preview(defaults.model, defaults))
            except PromptmillError:
                self._why = "the worker package is not installed where this server runs"

    def __enter__(self) -> _Renderer:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def feed(self, chunk: Chunk) -> None:
        for line in chunk.good if self._preview is not None else ():
            if self._preview is not None and self._fed < COUNTED and line.group.model == self._preview.model:
                self._preview.feed(line.place.line, line.place.raw)
                self._fed += 1

    def finish(self) -> dict[str, Any]:
        """What rendering found: prompts, token counts, and lines that do not fit the model."""
        if self._preview is None:
            return {"rendered": None, "why_not_rendered": self._why}
        try:
            previewed = self._preview.finish()
        except ModelLoadError:
            return {"rendered": None, "why_not_rendered": "the model's tokenizer is not at hand where this server runs"}
        except PromptmillError:
            return {"rendered": None, "why_not_rendered": "the preview failed where this server runs"}
        return {"rendered": _rendered(previewed), "why_not_rendered": None}


def _rendered(previewed: Previewed) -> dict[str, Any]:
    return {
        "lines": previewed.lines,
        "bad_lines": previewed.rejected,
        "problems": [
            {**problem.as_dict(), "message": problem.message[:LONGEST_MESSAGE]}
            for problem in previewed.problems[:MOST_PROBLEMS]
        ],
        "prompt_tokens": previewed.summary.get("prompt_tokens"),
        "longest": previewed.summary.get("longest"),
        "context_length": previewed.summary.get("context_length"),
        "prompts": [{"line": line, "text": text[:SHOWN_PROMPT]} for line, text in previewed.prompts.items()],
    }


def _say(said: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(said) + b"\n")
    sys.stdout.buffer.flush()


def main() -> int:
    """Check what standard input names."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=CheckOrder)
    try:
        _say({"result": check_file(order, _say)})
    except PromptmillError as error:
        _say({"refused": str(error)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
