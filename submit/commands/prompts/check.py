"""``promptmill check``: validates a file of prompts, without Redis."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
import orjson

from jobs.errors import InputError, ProblemLine
from submit.commands.options import defaults_from, json_option, parameter_options
from submit.input.feedback import json_errors, read_display
from submit.status.text import plural

if TYPE_CHECKING:
    from jobs.lines.line import Defaults
    from submit.input.preview import Previewed
    from submit.input.reader import PromptFile
    from submit.input.validate import Findings


CHECK_HERE = "to have them checked here, install promptmill[guided]"


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

    with json_errors(as_json) as output:
        defaults = defaults_from(flags)
        with PromptFile(file) as prompts:
            found = _check(prompts, defaults, control_tokens)
        if found.findings.total == 0:
            empty = ProblemLine(1, "empty_file", None, "there are no prompts in it")
            raise InputError(prompts.name, [empty], what=empty.message, checked_only=True)
        for note in notes(found.findings.own_models, found.findings.after_answer, defaults):
            click.echo(note, err=True)
        if unchecked := found.findings.unchecked:
            click.echo(f"{plural(unchecked, 'constraint')} left to the worker's check: {CHECK_HERE}", err=True)
        if as_json:
            click.echo(orjson.dumps(found.as_dict(prompts.name)).decode())
        else:
            found.show(prompts.name)
        output.printed = True
        if found.bad_lines:
            raise InputError(prompts.name, found.problems, found.bad_lines, checked_only=True)
    return 0


@dataclass(slots=True)
class _Checked:
    """What is in a file: what checking found, and where it was rendered, what that found too."""

    findings: Findings
    previewed: Previewed | None = None

    @property
    def bad_lines(self) -> int:
        return self.findings.rejected + (self.previewed.rejected if self.previewed else 0)

    @property
    def problems(self) -> list[ProblemLine]:
        found = [*self.findings.problems, *(self.previewed.problems if self.previewed else ())]
        return sorted(found, key=lambda problem: problem.line)

    def as_dict(self, source: str) -> dict[str, Any]:
        findings = self.findings
        shown: dict[str, Any] = {
            "source": source,
            "lines": findings.total,
            "bad_lines": self.bad_lines,
            "formats": dict(findings.formats),
            "models": {model: count for model, count in findings.by_model.items() if model},
            "without_model": findings.by_model[""],
            "own_models": dict(findings.own_models),
            "after_answer": findings.after_answer,
            "unchecked_constraints": findings.unchecked,
            "problems": [problem.as_dict() for problem in self.problems],
        }
        if self.previewed is not None:
            shown["tokens"] = {"lines": self.previewed.lines, **self.previewed.summary}
            shown["previews"] = [{"line": line, "prompt": text} for line, text in self.previewed.prompts.items()]
        return shown

    def show(self, source: str) -> None:
        """For a person, on stdout."""
        findings = self.findings
        verdict = f"{self.bad_lines:,} bad" if self.bad_lines else "all good"
        click.echo(f"{source}: {plural(findings.total, 'line')}, {verdict}")
        if findings.formats:
            click.echo("  formats  " + ", ".join(f"{name} {count:,}" for name, count in findings.formats.most_common()))
        for model, count in findings.by_model.most_common():
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


def _check(prompts: PromptFile, defaults: Defaults, control_tokens: bool) -> _Checked:
    from submit.input.preview import Preview
    from submit.input.validate import Findings, checked

    findings, preview = Findings(), None
    with contextlib.ExitStack() as stack:
        if defaults.model:
            preview = stack.enter_context(Preview(defaults.model, defaults, control_tokens=control_tokens))
        progress = stack.enter_context(read_display(prompts.size))
        for chunk in checked(prompts, defaults, need_model=False):
            findings.add(chunk)
            progress(findings.total, prompts.bytes_read)
            for line in chunk.good:
                if preview is not None and line.group.model == preview.model:
                    preview.feed(line.place.line, line.place.raw)
        return _Checked(findings, None if preview is None else preview.finish())
