"""A model measured on this machine, by a process of the worker package, which this side never imports."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, cast

import orjson

from jobs.errors import ModelLoadError, PromptmillError, RefusedError

# -P: a folder named worker in the current directory must not be taken for ours.
TUNE_COMMAND = (sys.executable, "-P", "-m", "worker.models.tune")
ERRORS = {kind.exit_status: kind for kind in (ModelLoadError, RefusedError)}


@dataclass(frozen=True, slots=True)
class Speed:
    """How many tokens a second so many rows give together, and the most that they could."""

    rows: int
    tokens_per_s: float
    limit: float

    @property
    def share(self) -> float:
        """The part of the limit that is reached."""
        return self.tokens_per_s / self.limit


@dataclass(frozen=True, slots=True)
class Measurement:
    """The speeds of a model and the ``choice`` among them. Sizes are bytes, the bandwidth bytes a second.

    ``remembered`` says that it was measured earlier. ``file`` is where it is kept, ``one_at_a_time`` why rows of the
    model must run so, None where they need not. ``raw`` is all of it, as it came.
    """

    model: str
    device: str | None
    choice: int
    remembered: bool
    measured_on: str
    prompt_tokens: int
    weights: int
    expert_weights: int
    experts: int | None
    experts_per_token: int | None
    row_bytes: int
    bandwidth: float
    prefill_tokens_per_s: float
    sizes: tuple[Speed, ...]
    file: str | None
    one_at_a_time: str | None
    raw: Mapping[str, Any]

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Measurement:
        """From what the worker package says."""
        named = {name: result[name] for name in cls.__slots__ if name not in ("sizes", "raw")}
        return cls(**named, sizes=tuple(Speed(**speed) for speed in result["sizes"]), raw=result)


def measure(
    request: Mapping[str, Any], say: Callable[[str], None], *, command: Sequence[str] = TUNE_COMMAND
) -> Measurement:
    """Have a model measured; ``say`` gets a line for each step.

    Raises:
        ModelLoadError: it cannot be loaded.
        PromptmillError: it cannot be measured.
    """
    # The terminal's Ctrl-C is for us: nothing is lost with the process.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            said = _listen(process, request, say)
        except BrokenPipeError:  # it ended before it had read the request
            said = {}
        except BaseException:
            process.kill()
            raise
    if "result" in said:
        return Measurement.of(said["result"])
    status = process.returncode
    raise ERRORS.get(status, PromptmillError)(said.get("error") or f"the measurement ended with status {status}")


def _listen(process: subprocess.Popen[bytes], request: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Hand over the request, and tell what is said until the last word."""
    feed, output = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
    feed.write(orjson.dumps(request))
    feed.close()
    last: dict[str, Any] = {}
    for line in output:
        last = orjson.loads(line)
        if "loaded" in last:
            say(f"loaded {last['loaded']}")
        elif "rows" in last:
            say(f"  {last['rows']:>3} rows: {last['tokens_per_s']:,.1f} tokens/s")
    return last
