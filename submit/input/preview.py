"""Previews of prompts as a model will see them, by a process of the worker package.

Tokenizers come with the worker package, which this side never imports.
"""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any, cast

import orjson

from jobs.errors import ModelLoadError, ProblemLine, PromptmillError, RefusedError
from jobs.lines.line import Defaults
from submit.input.validate import KEPT_PROBLEMS

# -P: a folder named worker in the current directory must not be taken for ours.
PREVIEW_COMMAND = (sys.executable, "-P", "-m", "worker.models.preview")


@dataclass(slots=True)
class Previewed:
    """What the preview said: prompts as text by line number, how many lines were rejected and the first of their
    problems, token counts."""

    prompts: dict[int, str] = field(default_factory=dict)
    rejected: int = 0
    problems: list[ProblemLine] = field(default_factory=list)
    lines: int = 0
    summary: dict[str, Any] = field(default_factory=dict)
    lengths: Counter[int] = field(default_factory=Counter)
    """How many prompts have so many tokens."""

    def quantiles(self) -> dict[str, int]:
        """Of the prompts' lengths in tokens, by name: so many prompts in a hundred are no longer."""
        shares = {"1%": 0.01, "10%": 0.1, "median": 0.5, "90%": 0.9, "99%": 0.99}
        found: dict[str, int] = {}
        seen = 0
        for length, count in sorted(self.lengths.items()):
            seen += count
            found |= {
                name: length for name, share in shares.items() if name not in found and seen >= share * self.lines
            }
        return {name: found[name] for name in shares if name in found}

    def take(self, said: dict[str, Any]) -> None:
        if "preview" in said:
            self.prompts[said["line"]] = said["preview"]
        elif "problem" in said:
            problem = said["problem"]
            self.rejected += 1
            if self.rejected <= KEPT_PROBLEMS:
                found = ProblemLine(said["line"], problem["code"], problem.get("field"), problem["message"])
                self.problems.append(found)
        elif "tokens" in said:
            self.lines += 1
            self.lengths[said["tokens"]] += 1
        elif "summary" in said:
            self.summary = said["summary"]


class Preview:
    """Renders and counts lines for ``model``, with ``control_tokens`` as a worker with ``--control-tokens`` does. A
    context manager; :meth:`feed` lines, then :meth:`finish`.

    Raises:
        RefusedError: the worker package's dependencies are not installed.
    """

    def __init__(
        self, model: str, defaults: Defaults, *, control_tokens: bool = False, command: Sequence[str] = PREVIEW_COMMAND
    ) -> None:
        if command is PREVIEW_COMMAND and importlib.util.find_spec("mlx_lm") is None:
            raise RefusedError(
                "prompts are rendered and counted with the model's tokenizer: pip install 'promptmill[worker]', "
                "or check without --model"
            )
        self.model = model
        self._said = Previewed()
        self._failure: Exception | None = None
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 (it is closed with the preview)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints
        )
        self._input = cast("IO[bytes]", self._process.stdin)
        self._output = cast("IO[bytes]", self._process.stdout)
        # What it says is read while it is fed: neither side ever waits for the other's full pipe.
        self._listener = threading.Thread(target=self._listen, name="preview", daemon=True)
        self._listener.start()
        fields = {**defaults.fields, "model": model}
        self._send({"model": model, "defaults": fields, "control_tokens": control_tokens})

    def __enter__(self) -> Preview:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._hang_up()
        self._process.wait()
        self._listener.join()
        self._output.close()
        self._complaints.close()

    def feed(self, line: int, raw: bytes) -> None:
        """One more checked line; ``line`` is its number."""
        self._send({"line": line, "raw": raw.decode()})

    def finish(self) -> Previewed:
        """Wait for the answers to all lines.

        Raises:
            ModelLoadError: the tokenizer cannot be loaded.
            PromptmillError: the preview failed otherwise.
        """
        self._hang_up()
        self._listener.join()
        status = self._process.wait()
        if status or self._failure is not None:
            self._complaints.seek(0)
            words = self._complaints.read().decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
            message = words[-1].removeprefix("promptmill: ")
            if status == ModelLoadError.exit_status:
                raise ModelLoadError(message)
            raise PromptmillError(
                f"the preview of {self.model} failed ({self._failure or f'exit {status}'}): {message}"
            )
        return self._said

    def _send(self, item: dict[str, Any]) -> None:
        # A process that is gone is noticed by finish(), which knows why.
        with contextlib.suppress(BrokenPipeError):
            self._input.write(orjson.dumps(item, option=orjson.OPT_NON_STR_KEYS) + b"\n")

    def _hang_up(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._input.close()

    def _listen(self) -> None:
        try:
            for said in self._output:
                self._said.take(orjson.loads(said))
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            self._failure = error
            self._process.kill()
