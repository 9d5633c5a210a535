"""The worker process of ``promptmill run``: started, started again when it dies, and stopped."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from jobs.batch import Batch
from jobs.errors import ModelLoadError, PromptmillError, RedisError, RefusedError

MOST_DEATHS = 5
"""Deaths in a row, with no line finished in between, after which the worker is not started again."""
FIRST_PAUSE_S = 0.5
STOP_S = 15.0
TAIL_LINES = 12
TAIL_BYTES = 8192

_ERROR_LINE = re.compile(r"^\S+ ERROR (.*)$", re.MULTILINE)
_READY_LINE = re.compile(rb"^\S+ INFO .* serves ", re.MULTILINE)
_LAST_WORDS = re.compile(r"^promptmill worker: (.*)$", re.MULTILINE)
_WARNING_LINE = re.compile(rb"^\S+ WARNING (.*)\n", re.MULTILINE)


@dataclass
class WorkerProcess:
    """Keeps one worker alive. It writes to ``log``; ``say`` gets messages for the user."""

    command: Sequence[str]
    log: Path
    environ: Mapping[str, str]
    say: Callable[[str], None]
    _: KW_ONLY
    clock: Callable[[], float] = time.monotonic
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _log_start: int = field(default=0, init=False)
    _read_to: int = field(default=0, init=False)
    _said: set[str] = field(default_factory=set, init=False)
    _ready: bool = field(default=False, init=False)
    _deaths: int = field(default=0, init=False)
    _finished_at_death: int = field(default=-1, init=False)
    _restart_at: float = field(default=0.0, init=False)

    def start(self) -> None:
        """Start the worker."""
        try:
            with self.log.open("ab") as output:
                self._log_start = self._read_to = output.tell()
                self._process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self.environ,
                    start_new_session=True,  # the terminal's Ctrl-C is for us: we ask the worker to stop
                )
        except OSError as error:
            raise PromptmillError(f"cannot start the worker: {error}") from None

    def check(self, batch: Batch) -> None:
        """Start the worker again if it died while lines are missing; called with each look at the batch.

        Raises:
            ModelLoadError: it says that no model can be loaded.
            RefusedError: it does not take its flags.
            RedisError: Redis refuses it, or is away, before it was ever ready.
            PromptmillError: it died again and again.
        """
        self._pass_on()
        if batch.done:
            return
        if self._process is None:
            if self.clock() >= self._restart_at:
                self.start()
            return
        status = self._process.poll()
        if status is None:
            return
        self._pass_on()  # what it said since
        self._process = None
        if status == ModelLoadError.exit_status:
            why = "; ".join(dict.fromkeys(_ERROR_LINE.findall(self._since_start())))
            raise ModelLoadError(why or "no model can be loaded")
        if status == RefusedError.exit_status:
            raise RefusedError(f"the worker did not start:\n{self.tail()}")
        if status == RedisError.exit_status and not self._ready:
            said = _LAST_WORDS.findall(self._since_start())
            why = f" {said[-1]}" if said else f"\n{self.tail()}"
            raise RedisError(f"the worker did not start:{why}")
        self._died(status, batch.finished)

    def _pass_on(self) -> None:
        """Show the worker's warnings, each once, because nobody reads its log; and see whether it became ready."""
        try:
            with self.log.open("rb") as file:
                file.seek(self._read_to)
                text = file.read()
        except OSError:
            return  # the log is looked at again when the worker dies, and then it is said that it cannot be read
        whole = text[: text.rfind(b"\n") + 1]
        self._read_to += len(whole)
        self._ready = self._ready or _READY_LINE.search(whole) is not None
        for found in _WARNING_LINE.findall(whole):
            warning = found.decode(errors="replace")
            if warning not in self._said:
                self._said.add(warning)
                self.say(warning)

    def _died(self, status: int, finished: int) -> None:
        self._deaths = 1 if finished > self._finished_at_death else self._deaths + 1
        self._finished_at_death = finished
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        if self._deaths >= MOST_DEATHS:
            raise PromptmillError(
                f"the worker died {MOST_DEATHS} times in a row; the last time it {how}. "
                f"Its log, {self.log}, ends with:\n{self.tail()}"
            )
        pause = FIRST_PAUSE_S * 2 ** (self._deaths - 1)
        self._restart_at = self.clock() + pause
        self.say(f"the worker {how}; starting it again in {pause:g} s (its log: {self.log})")

    def tail(self) -> str:
        """The last lines of the log since the worker was started."""
        lines = [line for line in self._since_start().splitlines() if line.strip()]
        return "\n".join(f"  {line}" for line in lines[-TAIL_LINES:]) or "  (nothing)"

    def _since_start(self) -> str:
        try:
            with self.log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_start, size - TAIL_BYTES))
                return file.read().decode(errors="replace")
        except OSError as error:
            return f"(the log cannot be read: {error.strerror})"

    def stop(self) -> None:
        """Ask the worker to hand back what it has and end; after 15 s, or on another Ctrl-C, make it end."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        try:
            process.terminate()
            process.wait(STOP_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
