"""``promptmill check``: validates a file of prompts, without Redis."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click
import orjson

from jobs.errors import InputError, ProblemLine
from submit.commands.options import defaults_from, json_option, parameter_options
from submit.input.feedback import json_errors, read_display
from submit.status.text import plural

if TYPE_CHECKING:
    from jobs.lines.line import Defaults
    from submit.input.preview import Preview, Previewed
    from submit.input.reader import PromptFile
    from submit.input.validate import Chunk, Problems


@click.command("check", short_help="Validate a file of prompts, without Redis.")
@click.argument("file")
@click.option(
    "--control-tokens", is_flag=True, help="With --model: render and count as a worker with --control-tokens does."
)
@parameter_options
@json_option
def command(file: str, as_json: bool, control_tokens: bool, **flags: Any) -> int:
    """Check every line of FILE as `submit` would, and say what is in it; nothing is enqueued.

    With --model its prompts are also rendered and counted with that model's tokenizer (this needs the worker
    package), and the first three are shown as the model will see them.

    Exit statuses: 0 every line is good, 2 some are not.
    """
    from submit.input.reader import PromptFile
    from submit.upload.submit_notes import notes

    with json_errors(as_json) as answer:
        defaults = defaults_from(flags)
        with PromptFile(file) as prompts:
            findings = _check(prompts, defaults, control_tokens)
        if findings.lines == 0:
            empty = ProblemLine(1, "empty_file", None, "there are no prompts in it")
            raise InputError(prompts.name, [empty], what=empty.message, checked_only=True)
        for note in notes(findings.own_models, findings.after_answer, defaults):
            click.echo(note, err=True)
        if as_json:
            click.echo(orjson.dumps(findings.as_dict(prompts.name)).decode())
        else:
            findings.show(prompts.name)
        answer.given = True
        if findings.bad_lines:
            raise InputError(prompts.name, findings.problems, findings.bad_lines, checked_only=True)
    return 0


@dataclass(slots=True)
class _Findings:
    """What is in a file."""

    lines: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    own_models: Counter[str] = field(default_factory=Counter)
    after_answer: int = 0
    problems: list[ProblemLine] = field(default_factory=list)
    bad_lines: int = 0
    previewed: Previewed | None = None

    def count(self, chunk: Chunk) -> None:
        self.lines += len(chunk.good) + len(chunk.bad)
        self.own_models.update(chunk.own_models)
        for line in chunk.good:
            self.formats["native" if line.endpoint is None else "openai"] += 1
            self.models[line.group.model] += 1
            self.after_answer += line.after_answer

    def add_problems(self, *sources: Problems) -> None:
        for source in sources:
            self.problems += source.kept
            self.bad_lines += source.count
        self.problems.sort(key=lambda problem: problem.line)

    def as_dict(self, source: str) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "source": source,
            "lines": self.lines,
            "bad_lines": self.bad_lines,
            "formats": dict(self.formats),
            "models": {model: count for model, count in self.models.items() if model},
            "without_model": self.models[""],
            "own_models": dict(self.own_models),
            "after_answer": self.after_answer,
            "problems": [problem.as_dict() for problem in self.problems],
        }
        if self.previewed is not None:
            shown["tokens"] = {"lines": self.previewed.lines, **self.previewed.summary}
            shown["previews"] = [{"line": line, "prompt": text} for line, text in self.previewed.prompts.items()]
        return shown

    def show(self, source: str) -> None:
        """For a person, on stdout."""
        verdict = f"{self.bad_lines:,} bad" if self.bad_lines else "all good"
        click.echo(f"{source}: {plural(self.lines, 'line')}, {verdict}")
        if self.formats:
            click.echo("  formats  " + ", ".join(f"{name} {count:,}" for name, count in self.formats.most_common()))
        for model, count in self.models.most_common():
            shown = model or "none named: `submit` will need --model"
            click.echo(f"  model    {shown} ({plural(count, 'line')})")
        if self.previewed is None:
            return
        summary = self.previewed.summary
        total, longest, limit = (_number(summary.get(name)) for name in ("prompt_tokens", "longest", "context_length"))
        prompts = plural(self.previewed.lines, "prompt")
        click.echo(f"  tokens   {total} in {prompts}, the longest {longest}; the model takes {limit}")
        for line, text in self.previewed.prompts.items():
            click.echo(f"\n--- line {line}, as the model sees it ---\n{text}")


def _number(value: int | None) -> str:
    return "an unknown number" if value is None else f"{value:,}"


def _check(prompts: PromptFile, defaults: Defaults, control_tokens: bool) -> _Findings:
    from submit.input.validate import Problems, checked

    findings, problems = _Findings(), Problems()
    with contextlib.ExitStack() as stack:
        preview = stack.enter_context(_preview(defaults.model, defaults, control_tokens)) if defaults.model else None
        progress = stack.enter_context(read_display(prompts.size))
        for chunk in checked(prompts, defaults, need_model=False):
            findings.count(chunk)
            problems.add(chunk.bad)
            progress(findings.lines, prompts.bytes_read)
            if preview is not None:
                _feed(preview, chunk)
        if preview is not None:
            findings.previewed = preview.finish()
            findings.add_problems(problems, findings.previewed.problems)
        else:
            findings.add_problems(problems)
    return findings


def _preview(model: str, defaults: Defaults, control_tokens: bool) -> Preview:
    from submit.input.preview import Preview

    return Preview(model, defaults, control_tokens=control_tokens)


def _feed(preview: Preview, chunk: Chunk) -> None:
    for line in chunk.good:
        if line.group.model == preview.model:
            preview.feed(line.place.line, line.place.raw)
