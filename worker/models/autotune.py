"""``--autotune`` and ``promptmill tune``: how many rows of a model to decode together, measured once per model and host
and remembered.

The file is a list of :class:`Tuned` with their keys; what another version or hand wrote is passed over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from jobs.embedded.server import private_folder
from worker.engine.loading.config import Experts
from worker.engine.tuning.limit import Limit
from worker.engine.tuning.policy import Curve

if TYPE_CHECKING:
    from jobs.app.worker_options import EngineSettings
    from worker.engine.loading.model import LoadedModel

log = logging.getLogger("promptmill.worker")

FILE = "tuned.json"
MOST_REMEMBERED = 200


@dataclass(frozen=True, slots=True)
class Tuned:
    """A measurement with rows of ``prompt_tokens`` tokens, and its day."""

    curve: Curve
    limit: Limit
    prompt_tokens: int
    measured_on: str

    def as_dict(self) -> dict[str, Any]:
        """As it stands in the file."""
        rates = {str(rows): round(rate, 2) for rows, rate in self.curve.rates.items()}
        return {
            "rates": rates,
            "reach": self.curve.reach,
            "limit": asdict(self.limit),
            "prompt_tokens": self.prompt_tokens,
            "measured_on": self.measured_on,
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Tuned:
        """What :meth:`as_dict` wrote.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: it is none of ours.
        """
        curve = Curve({int(rows): float(rate) for rows, rate in entry["rates"].items()}, entry["reach"])
        experts = entry["limit"]["experts"]
        limit = Limit(**{**entry["limit"], "experts": None if experts is None else Experts(**experts)})
        bounds = all(limit.at(rows) > 0 for rows in curve.rates)
        if not bounds or not all(rows > 0 and rate > 0 for rows, rate in curve.rates.items()):
            raise ValueError("no speeds")
        if not isinstance(curve.reach, int | None):
            raise TypeError("no number of rows")
        return cls(curve, limit, int(entry["prompt_tokens"]), str(entry["measured_on"]))


class TunedFile:
    """Thread: compute. Measurements by what they depend on, see :func:`worker.engine.tuning.measure.fingerprint`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self, key: Mapping[str, Any]) -> Tuned | None:
        """What was measured under these circumstances, the latest if several were."""
        return next((tuned for known, tuned in reversed(self._entries()) if known == key), None)

    def remember(self, key: Mapping[str, Any], tuned: Tuned) -> bool:
        """Write a measurement down; False, with a warning, where that cannot be done.

        Of two processes that write at the same moment one may win: the other measures again at its next start.
        """
        others = [(known, entry) for known, entry in self._entries() if known != key][-MOST_REMEMBERED + 1 :]
        entries = [{"key": dict(known), **entry.as_dict()} for known, entry in (*others, (key, tuned))]
        draft = self.path.with_suffix(f".{os.getpid()}")
        try:
            private_folder(self.path.parent)
            draft.write_bytes(orjson.dumps(entries, option=orjson.OPT_INDENT_2))
            draft.replace(self.path)
        except OSError as error:
            log.warning("cannot remember what was measured: %s", error, extra={"action": "tuned_unwritten"})
            return False
        return True

    def _entries(self) -> list[tuple[Mapping[str, Any], Tuned]]:
        try:
            entries = orjson.loads(self.path.read_bytes())
            if not isinstance(entries, list):
                raise ValueError("it is not a list")
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            log.warning("%s is passed over: %s", self.path, error, extra={"action": "tuned_unreadable"})
            return []
        sound = []
        for entry in entries:
            # What another version wrote is measured again.
            with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
                sound.append((entry["key"], Tuned.from_dict(entry)))
        return sound


@dataclass(frozen=True, slots=True)
class Tuning:
    """What is to be measured: at most ``most`` rows of ``prompt_tokens`` tokens (None: what is remembered, else the
    usual), for about ``within_s`` seconds, and ``again`` though it is remembered."""

    most: int
    prompt_tokens: int | None = None
    within_s: float | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """How many rows to decode together, at most ``most``; by which measurement, and whether it is an earlier one, and
    whether it was ``kept`` for later."""

    rows: int
    most: int
    tuned: Tuned
    remembered: bool
    kept: bool


def choose(
    model: LoadedModel,
    settings: EngineSettings,
    memory: int | None,
    file: TunedFile,
    tuning: Tuning,
    *,
    on_speed: Callable[[int, float], None] = lambda rows, rate: None,
    today: Callable[[], str] = lambda: time.strftime("%Y-%m-%d"),
) -> Choice:
    """How many rows of a loaded model to decode together: by what is remembered, else measured now. ``memory`` are the
    bytes for caches (None: no limit); ``on_speed`` gets each speed that is measured."""
    from worker.engine.caches.prefix_cache import prefix_budget
    from worker.engine.tuning.device import limit_of
    from worker.engine.tuning.measure import PROMPT_TOKENS, TUNE_S, fingerprint, most_rows, row_tokens, tune

    prefixes = prefix_budget(settings.prefix_memory, memory) if model.prefixes else 0
    caches = None if memory is None else memory - prefixes
    key = fingerprint(model, settings.wired_limit)
    tuned = None if tuning.again else file.find(key)
    prompt_tokens = tuning.prompt_tokens or (tuned.prompt_tokens if tuned is not None else PROMPT_TOKENS)
    most = most_rows(model, tuning.most, caches, prompt_tokens) if model.batchable else 1
    if tuned is not None and tuned.prompt_tokens == prompt_tokens and tuned.curve.covers(most):
        return Choice(tuned.curve.choose(most), most, tuned, remembered=True, kept=True)
    context = settings.max_context or model.context_length
    curve = tune(
        model,
        most,
        prompt_tokens=prompt_tokens,
        context=context,
        within_s=tuning.within_s or TUNE_S,
        on_speed=on_speed,
    )
    limit = limit_of(model, row_tokens(prompt_tokens, context), context)
    tuned = Tuned(curve, limit, prompt_tokens, today())
    return Choice(curve.choose(most), most, tuned, remembered=False, kept=file.remember(key, tuned))


def tuned_rows(model: LoadedModel, settings: EngineSettings, memory: int | None, file: TunedFile) -> int:
    """How many rows of a loaded model a worker decodes together with ``--autotune``, at most
    ``settings.decode_concurrency``. Models that cannot be batched are not measured."""
    if not model.batchable:
        return 1
    choice = choose(model, settings, memory, file, Tuning(settings.decode_concurrency))
    tuned, rows = choice.tuned, choice.rows
    if choice.remembered:
        source = f"measured on {tuned.measured_on}; `promptmill tune --again` measures again"
    else:
        source = f"measured: {tuned.curve} tokens/s" + (f"; remembered in {file.path}" if choice.kept else "")
    log.info("%s: %d rows together (%s)", model.name, rows, source, extra={"action": "tuned"})
    return rows
