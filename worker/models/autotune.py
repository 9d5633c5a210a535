"""``--autotune``: how many rows of a model to decode together, measured once per model and host and remembered.

The file is a list of ``{"key", "rates", "reach", "measured_on"}``; what another version or hand wrote is passed over.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from jobs.embedded.server import private_folder
from worker.engine.tuning.policy import Curve

if TYPE_CHECKING:
    from jobs.app.worker_options import EngineSettings
    from worker.engine.loading.model import LoadedModel

log = logging.getLogger("promptmill.worker")

FILE = "tuned.json"
MOST_REMEMBERED = 200


@dataclass(frozen=True, slots=True)
class Tuned:
    """A measurement and its day."""

    curve: Curve
    measured_on: str


class TunedFile:
    """Thread: compute. Measurements by what they depend on, see :func:`worker.engine.tuning.measure.fingerprint`."""

    def __init__(self, path: Path, *, today: Callable[[], str] = lambda: time.strftime("%Y-%m-%d")) -> None:
        self.path = path
        self._today = today

    def find(self, key: Mapping[str, Any]) -> Tuned | None:
        """What was measured under these circumstances, the latest if several were."""
        found = [entry for entry in self._entries() if entry["key"] == key]
        if not found:
            return None
        rates = {int(rows): float(rate) for rows, rate in found[-1]["rates"].items()}
        return Tuned(Curve(rates, found[-1]["reach"]), str(found[-1]["measured_on"]))

    def remember(self, key: Mapping[str, Any], curve: Curve) -> bool:
        """Write a measurement down; False, with a warning, where that cannot be done.

        Of two workers that write at the same moment one may win: the other measures again at its next start.
        """
        entries = [entry for entry in self._entries() if entry["key"] != key][-MOST_REMEMBERED + 1 :]
        rates = {str(rows): round(rate, 2) for rows, rate in curve.rates.items()}
        entries.append({"key": dict(key), "rates": rates, "reach": curve.reach, "measured_on": self._today()})
        draft = self.path.with_suffix(f".{os.getpid()}")
        try:
            private_folder(self.path.parent)
            draft.write_bytes(orjson.dumps(entries, option=orjson.OPT_INDENT_2))
            draft.replace(self.path)
        except OSError as error:
            log.warning("cannot remember what --autotune measured: %s", error, extra={"action": "tuned_unwritten"})
            return False
        return True

    def _entries(self) -> list[dict[str, Any]]:
        try:
            entries = orjson.loads(self.path.read_bytes())
            if not isinstance(entries, list):
                raise ValueError("it is not a list")
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            log.warning("%s is passed over: %s", self.path, error, extra={"action": "tuned_unreadable"})
            return []
        return [entry for entry in entries if _sound(entry)]


def _sound(entry: Any) -> bool:
    """Whether this is an entry of ours."""
    try:
        numbers = all(int(rows) > 0 and rate > 0 for rows, rate in entry["rates"].items())
        reach = entry["reach"] is None or isinstance(entry["reach"], int)
        return numbers and reach and isinstance(entry["key"], dict) and isinstance(entry["measured_on"], str)
    except (AttributeError, KeyError, TypeError, ValueError):
        return False


def tuned_rows(model: LoadedModel, settings: EngineSettings, memory: int | None, file: TunedFile) -> int:
    """How many rows of a loaded model to decode together, at most ``settings.decode_concurrency``: what is remembered,
    else measured now. ``memory`` are the bytes for caches. Models that cannot be batched are not measured."""
    if not model.batchable:
        return 1
    from worker.engine.caches.prefix_cache import prefix_budget
    from worker.engine.tuning.measure import fingerprint, most_rows, tune

    kept = prefix_budget(settings.prefix_memory, memory) if model.prefixes else 0
    most = most_rows(model, settings.decode_concurrency, None if memory is None else memory - kept)
    key = fingerprint(model, settings.wired_limit)
    tuned = file.find(key)
    if tuned is not None and tuned.curve.covers(most):
        curve = tuned.curve
        source = f"measured on {tuned.measured_on}; --autotune with {file.path} removed measures again"
    else:
        curve = tune(model, most, context=settings.max_context or model.context_length)
        source = f"measured: {curve} tokens/s"
        if file.remember(key, curve):
            source += f"; remembered in {file.path}"
    rows = curve.choose(most)
    log.info("%s: %d rows together (%s)", model.name, rows, source, extra={"action": "tuned"})
    return rows
