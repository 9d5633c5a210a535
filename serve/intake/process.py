"""`python -m serve.intake.process FOLDER`: makes batches of files, beside the server, which stays quick meanwhile.

It ends when its standard input does: so does the server that started it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path

import redis.exceptions

from jobs.app.logs import set_up_logging
from jobs.errors import BatchNotFoundError, InputError, PromptmillError, RedisError, RefusedError
from jobs.lines.line import Defaults
from jobs.redis.connect import connect_patiently
from jobs.store.cancel import cancel
from jobs.store.store import Store
from serve.access.access import Access
from serve.files.store import Files
from serve.intake.inspect import Inspector, TooManyLinesError, problems_of
from serve.intake.orders import HELD_S, IntakeOrder, Orders
from serve.pool.models import Models
from serve.settings import Limits
from submit.input.reader import PromptFile
from submit.upload.submitter import Order, new_batch, submit

log = logging.getLogger("promptmill.serve")

THREADS = 2
"""A short file need not wait for a long one."""
WAIT_S = 2
OUTAGE_S = 2.0


class CancelledError(Exception):
    """The batch was cancelled while its file was read."""


class Intake:
    """Works on orders, one after the other. Threads: one for each object."""

    def __init__(self, store: Store, files: Files, limits: Limits) -> None:
        self._store, self._files, self._limits = store, files, limits
        self._orders = Orders(store.connection)
        self._models = Models(store.connection)

    def work(self) -> bool:
        """Make a batch of the next order; False: there is none."""
        batch_id = self._orders.take()
        if batch_id is None:
            return False
        order = self._orders.find(batch_id)
        if order is not None:
            with _Held(self._orders, batch_id):
                self._make(order)
        self._orders.done(batch_id)
        return True

    def _make(self, order: IntakeOrder) -> None:
        if not self._unmade(order.batch_id):
            return
        new = new_batch("", self._order(order))
        try:
            self._submit(order)
        except CancelledError:
            self._store.refuse(new, 0, [], status="cancelled")
        except InputError as error:
            problems = problems_of(error.problems, plain=order.plain)
            if error.problems and error.problems[0].code == "empty_file":
                problems = [_problem("empty_file", "The file has no lines.")]
            self._store.refuse(new, 0, problems)
        except (RefusedError, TooManyLinesError) as error:
            param = "file_id" if isinstance(error, _NoFileError) else None
            self._store.refuse(new, 0, [_problem("invalid_request", str(error), param)])
        except (redis.exceptions.RedisError, RedisError):
            raise
        except Exception:
            log.exception("batch %s cannot be made", order.batch_id, extra={"action": "intake_failed"})
            self._store.refuse(
                new, 0, [_problem("internal_error", "The file cannot be read; the server's log says why.")]
            )
        if self._orders.cancelled(order.batch_id) and self._store.batch(order.batch_id).status == "in_progress":
            cancel(self._store, order.batch_id)

    def _unmade(self, batch_id: str) -> bool:
        """Whether the batch is still to be made. What a process left that died over it is removed."""
        try:
            batch = self._store.batch(batch_id)
        except BatchNotFoundError:
            return True
        if batch.status == "validating":
            self._store.discard(batch_id)
            return True
        return False

    def _submit(self, order: IntakeOrder) -> None:
        file = self._files.find(order.input_file_id, Access(order.owner, order.admin))
        if file is None:
            message = f"Cannot find file {order.input_file_id}, or this key does not have access to it."
            raise _NoFileError(message)
        if file.purpose != "batch":
            message = f"The file {file.id} was uploaded for '{file.purpose}': upload it with the purpose 'batch'."
            raise _NoFileError(message)
        self._models.look()

        def served(model: str, adapter_path: str | None) -> bool:
            return self._models.serves(model, adapter_path) and (not order.models or model in order.models)

        def see() -> None:
            if self._orders.cancelled(order.batch_id):
                raise CancelledError

        with PromptFile(self._files.path(file), most_bytes=self._limits.unpacked_bytes) as prompts:
            prompts.name = file.filename
            inspector = Inspector(None if order.plain else order.endpoint, self._limits.file_lines, served, see=see)
            submit(self._store, prompts, self._order(order), inspect=inspector)

    def _order(self, order: IntakeOrder) -> Order:
        return Order(
            defaults=Defaults(order.defaults),
            name=order.name,
            priority=order.priority,
            metadata=order.batch_metadata,
            batch_id=order.batch_id,
            expires_in=order.window_s,
            keep_s=order.keep_s,
            webhook=order.webhook,
            on_bad_line=order.on_bad_line,
        )


class _NoFileError(RefusedError):
    """An order names a file that is not there, or not one for batches."""


def _problem(code: str, message: str, param: str | None = None) -> dict[str, object]:
    return {"code": code, "line": None, "message": message, "param": param}


class _Held(threading.Thread):
    """Holds an order as long as the block runs."""

    def __init__(self, orders: Orders, batch_id: str) -> None:
        super().__init__(name="hold", daemon=True)
        self._orders, self._batch_id = orders, batch_id
        self._over = threading.Event()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def run(self) -> None:
        while not self._over.wait(HELD_S / 6):
            try:
                self._orders.hold(self._batch_id)
            except redis.exceptions.RedisError as error:
                log.debug("an order is not held: %s", error)


def serve_orders(store: Store, files: Files, limits: Limits, stopped: threading.Event) -> None:
    """Work on orders until told to stop. Redis may be out meanwhile."""
    intake, orders = Intake(store, files, limits), Orders(store.connection)
    while not stopped.is_set():
        try:
            if not intake.work():
                orders.wait(WAIT_S)
        except (redis.exceptions.RedisError, RedisError) as error:
            log.warning("no batches are made: %s", error, extra={"action": "redis_out"})
            stopped.wait(OUTAGE_S)
        except (PromptmillError, OSError) as error:
            # The order is held, and tried again when that has run out.
            log.error("a batch cannot be made: %s", error, extra={"action": "intake_failed"})


def main(folder: str) -> int:
    """Work until standard input ends."""
    set_up_logging(os.environ.get("PROMPTMILL_LOG_FORMAT", "text"))
    limits = Limits(
        file_lines=int(os.environ.get("PROMPTMILL_FILE_LINES", Limits().file_lines)),
    )
    connection = connect_patiently(os.environ["PROMPTMILL_REDIS_URL"], log.warning)
    files = Files(connection, Path(folder))
    stopped = threading.Event()
    threads = [
        threading.Thread(target=serve_orders, args=(Store(connection), files, limits, stopped), daemon=True)
        for _ in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    sys.stdin.buffer.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
