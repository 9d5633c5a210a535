"""A new batch on the page: what is said of it besides its lines, a check of these, and the order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import orjson

from jobs.app.units import parse_duration
from jobs.batch import PRIORITIES, new_batch_id
from jobs.errors import LineError, RefusedError
from jobs.lines.line import CHAT_URL, Defaults
from jobs.params import did_you_mean
from serve.access.access import Access
from serve.batches.creation import LONGEST_WINDOW_S, SHORTEST_WINDOW_S
from serve.errors import ApiError
from serve.files.store import Files, StoredFile
from serve.intake.orders import IntakeOrder
from serve.page.check_process import CheckOrder
from serve.pool.models import Models
from serve.settings import Limits
from submit.upload.submitter import MAX_NAME_LENGTH, ON_BAD_LINE

FIELDS = ("model", "override_model", "defaults", "name", "priority", "window", "on_bad_line")
DEFAULT_WINDOW = "7d"
CHECKS = 2
"""So many files are checked at once."""
LINE_BYTES = 16 << 20
CHECK_S = 900.0


@dataclass(frozen=True, slots=True)
class Draft:
    """What is said of a new batch besides its lines, checked."""

    defaults: dict[str, Any]
    name: str | None
    priority: str
    window: str
    window_s: float
    on_bad_line: str

    def order(self, file_id: str, access: Access, now: float) -> IntakeOrder:
        """The order of a batch of this file."""
        return IntakeOrder(
            batch_id=new_batch_id(),
            input_file_id=file_id,
            endpoint=CHAT_URL,
            completion_window=self.window,
            window_s=self.window_s,
            created_at=now,
            owner=access.owner,
            admin=access.admin,
            models=access.models,
            name=self.name,
            priority=self.priority,
            defaults=self.defaults,
            on_bad_line=self.on_bad_line,
            plain=True,
        )


def draft_of(body: dict[str, Any], access: Access) -> Draft:
    """What a request says of a new batch.

    Raises:
        ApiError: a field is no good.
    """
    for given in body:
        if given not in FIELDS:
            message = f"Unknown parameter: '{given[:80]}'{did_you_mean(given, FIELDS)}."
            raise ApiError(400, message, code="unknown_parameter", param=given[:80])
    name, window = body.get("name") or None, body.get("window") or DEFAULT_WINDOW
    if name is not None and not (isinstance(name, str) and len(name) <= MAX_NAME_LENGTH):
        raise _invalid("name", f"a string of at most {MAX_NAME_LENGTH} characters")
    try:
        window_s = parse_duration(window) if isinstance(window, str) else 0.0
    except ValueError:
        window_s = 0.0
    if not SHORTEST_WINDOW_S <= window_s <= LONGEST_WINDOW_S:
        raise _invalid("window", "a time from 1m to 31d, such as 24h")
    return Draft(
        defaults=_defaults(body, access),
        name=name,
        priority=_one_of(body, "priority", PRIORITIES, "normal"),
        window=window,
        window_s=window_s,
        on_bad_line=_one_of(body, "on_bad_line", ON_BAD_LINE, "reject"),
    )


def _defaults(body: dict[str, Any], access: Access) -> dict[str, Any]:
    """The values of lines that do not say them, with the model."""
    given = {} if body.get("defaults") is None else body["defaults"]
    if not isinstance(given, dict):
        raise _invalid("defaults", "an object")
    model, override = body.get("model") or None, body.get("override_model") or False
    if model is not None and not (isinstance(model, str) and access.may_use(model)):
        raise ApiError(404, f"The model '{str(model)[:200]}' may not be used.", code="model_not_found", param="model")
    made = {**given, "model": model, "override_model": override}
    made = {name: value for name, value in made.items() if value not in (None, False)}
    try:
        Defaults(made)
    except (LineError, RefusedError) as error:
        param = error.field if isinstance(error, LineError) else None
        text = str(error) if param is None else f"'{param}' {error}"
        raise ApiError(400, f"{text[:1].upper()}{text[1:]}.", code="invalid_value", param=param) from None
    return made


def _one_of(body: dict[str, Any], name: str, known: tuple[str, ...], usual: str) -> str:
    value = body.get(name) or usual
    if value not in known:
        raise _invalid(name, f"one of {', '.join(known)}")
    return str(value)


def _invalid(name: str, wanted: str) -> ApiError:
    return ApiError(400, f"Invalid '{name}': expected {wanted}.", code="invalid_value", param=name)


class Checks:
    """Checks files in processes of their own. Thread: the event loop's."""

    def __init__(self, files: Files, models: Models, limits: Limits) -> None:
        self._files, self._models, self._limits = files, models, limits
        self._running = 0

    def begin(self, file: StoredFile, draft: Draft) -> AsyncIterator[bytes]:
        """What the check of a file says, a JSON object a line: how far it is, then its result.

        Raises:
            ApiError: too many run already.
        """
        if self._running >= CHECKS:
            message = "Other files are being checked; try again in a moment."
            raise ApiError(429, message, code="too_many_checks", headers={"Retry-After": "2"})
        model = draft.defaults.get("model")
        order = CheckOrder(
            path=str(self._files.path(file).absolute()),
            name=file.filename,
            most_lines=self._limits.file_lines,
            most_bytes=self._limits.unpacked_bytes,
            defaults=draft.defaults,
            render=model in self._models.live,
        )
        return self._check(order)

    async def _check(self, order: CheckOrder) -> AsyncIterator[bytes]:
        self._running += 1
        process = None
        try:
            process = await _started()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(msgspec.json.encode(order))
            process.stdin.write_eof()
            async with asyncio.timeout(CHECK_S):
                async for said in process.stdout:
                    yield said
            if await process.wait():
                yield _refused("The check ended before it was done; the server's log says why.")
        except TimeoutError:
            yield _refused("The check took too long: the file can be submitted, and is checked then.")
        finally:
            self._running -= 1
            if process is not None and process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await asyncio.shield(process.wait())


async def _started() -> asyncio.subprocess.Process:
    folders = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}
    pipe = asyncio.subprocess.PIPE
    # -P: a folder named serve in the current directory must not be taken for ours.
    command = [sys.executable, "-P", "-m", "serve.page.check_process"]
    return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=environ, limit=LINE_BYTES)


def _refused(why: str) -> bytes:
    return orjson.dumps({"refused": why}) + b"\n"
