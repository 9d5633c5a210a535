"""The spool: what this worker finished, on its own disk before it goes to Redis. The files are those of jobs.spool."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path

import orjson
import redis.exceptions

from jobs.app.worker_options import SPOOL_KEEP_S
from jobs.attempt import Attempt
from jobs.batch import Batch
from jobs.errors import BatchNotFoundError, RefusedError, StaleAttemptError
from jobs.spool import OFFERED, SUFFIX, SpoolEntry, encode_entry, encode_header, read_entries, read_header
from jobs.store.shard_records import portions
from jobs.store.store import Store

log = logging.getLogger("promptmill.worker")

SWEEP_S = 3600.0
RETRY_S = 30.0
"""How long a disk that refused a record is left alone."""
LOCK = ".lock"
BATCH_FOLDER = re.compile(r"b_[0-9A-Z]{26}")
"""Only folders with names that batches have are ever removed, wherever ``--spool`` points."""


class Spool:
    """One worker instance's part of a spool folder. :meth:`append` never raises: without a disk the worker goes on.

    ``clock`` gives seconds, ``now`` seconds since the epoch.
    """

    def __init__(
        self,
        folder: Path,
        worker: str,
        keep_s: float = SPOOL_KEEP_S,
        *,
        instance: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        # A process id comes again, an instance does not.
        self._stem = f"{_safe(worker)}.{instance or uuid.uuid4().hex[:12]}"
        self._keep_s = keep_s
        self._clock, self._now = clock, now
        self._lock: int | None = None
        self._failed_at: float | None = None
        self._swept_at: float | None = None
        self._looked_at: set[Path] = set()
        self._offer_put_off = False

    @property
    def usable(self) -> bool:
        """Whether the last record went into it."""
        return self._failed_at is None

    # --- what this instance finishes ---

    def append(self, batch: Batch, entries: Sequence[SpoolEntry]) -> bool:
        """Write records down; False where the disk does not take them, which is logged once."""
        if self._failed_at is not None and self._clock() - self._failed_at < RETRY_S:
            return False
        try:
            self._begin()
            self._append(batch, b"".join(map(encode_entry, entries)))
        except OSError as error:
            self._note_failure(error)
            return False
        if self._failed_at is not None:
            self._failed_at = None
            log.warning("records are kept in %s again", self.folder, extra={"action": "spool_back"})
        return True

    def open(self) -> None:
        """Find out, before there is anything to keep, whether it can be."""
        try:
            self._begin()
        except OSError as error:
            self._note_failure(error)

    def _note_failure(self, error: OSError) -> None:
        if self._failed_at is None:
            message = "records cannot be kept in %s: %s; the worker goes on without, and tries again"
            log.warning(message, self.folder, error, extra={"action": "spool_failed"})
        self._failed_at = self._clock()

    def _begin(self) -> None:
        if self._lock is None:
            _make_folder(self.folder)
            self._lock = _take(self._lock_path(self._stem))

    def close(self, *, delivered: bool) -> None:
        """End this instance: others may offer what it left, unless all of it was delivered."""
        if self._lock is None:
            return
        if delivered:
            with suppress(OSError):
                for path in self.folder.glob(f"*/{self._stem}{SUFFIX}"):
                    _mark_offered(path)
                self._lock_path(self._stem).unlink()
        os.close(self._lock)
        self._lock = None

    def leave(self, attempts: Iterable[Attempt]) -> None:
        """Note shards that could not be handed back at a clean end: whoever offers this instance's records does it."""
        rows = [[attempt.batch_id, attempt.number, attempt.fence] for attempt in attempts]
        if not rows:
            return
        try:
            _make_folder(self.folder)
            lock = _take(self._lock_path(self._stem))
            try:
                _write(lock, orjson.dumps(rows))
            finally:
                os.close(lock)
        except OSError as error:
            log.warning("shards that cannot be handed back cannot be noted in %s: %s", self.folder, error)

    def _append(self, batch: Batch, lines: bytes) -> None:
        """Write to this instance's file of the batch, which somebody may have removed since the last record."""
        folder = self.folder / _safe(batch.id)
        _make_folder(folder)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        descriptor = os.open(folder / f"{self._stem}{SUFFIX}", flags, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            size = os.fstat(descriptor).st_size
            if size == 0:
                lines = encode_header(batch) + lines
            elif os.pread(descriptor, 1, size - 1) != b"\n":
                lines = b"\n" + lines  # a line was cut off when the disk was full: it must not spoil the next
            _write(descriptor, lines)
        finally:
            os.close(descriptor)

    # --- what earlier instances left ---

    def offer(self, store: Store, stop: Callable[[], bool] = lambda: False) -> int:
        """Store what dead workers finished and could not deliver, as far as it is still wanted; how many records
        were offered. Redis takes each at most once, and none of an attempt that another has followed.

        To be called again and again, before lost shards are taken back: workers die at any time.
        """
        offered = 0
        try:
            for stem, paths in self._left().items():
                with self._dead(stem) as dead:
                    for path in paths if dead else ():
                        if not stop():
                            offered += self._offer_file(store, path, stop)
                            self._looked_at.add(path)
                    if dead and not stop():
                        self._hand_back(store, stem)
            self._offer_put_off = False
        except redis.exceptions.RedisError as error:
            if not self._offer_put_off:
                self._offer_put_off = True
                message = "what an earlier worker left in %s waits until Redis takes it: %s"
                log.warning(message, self.folder, error, extra={"action": "redis_out"})
        if offered:
            message = "offered Redis %d records that an earlier worker left in %s"
            log.info(message, offered, self.folder, extra={"action": "spool_offered"})
        return offered

    def _left(self) -> dict[str, list[Path]]:
        """Files that were not offered yet, by the instance that wrote them."""
        left: dict[str, list[Path]] = defaultdict(list)
        for path in sorted(self.folder.glob(f"b_*/*{SUFFIX}")):
            stem = path.name.removesuffix(SUFFIX)
            if stem == self._stem or path.name.endswith(OFFERED) or path in self._looked_at or not path.is_file():
                continue
            left[stem].append(path)
        for path in self.folder.glob("*.lock"):
            with suppress(OSError):
                if path.stat().st_size and path != self._lock_path(self._stem):
                    left[path.name.removesuffix(".lock")].extend(())
        return left

    def _hand_back(self, store: Store, stem: str) -> None:
        """Hand back what a dead instance could not: its lines do not count as tried. Its jobs come by recovery."""
        path = self._lock_path(stem)
        try:
            rows = orjson.loads(path.read_bytes() or b"[]")
            attempts = [Attempt(str(batch_id), int(number), int(fence)) for batch_id, number, fence in rows]
            os.truncate(path, 0)
        except (OSError, ValueError, TypeError) as error:
            log.debug("%s cannot be read: %s", path, error)
            return
        for attempt in attempts:
            store.release(attempt)

    @contextmanager
    def _dead(self, stem: str) -> Iterator[bool]:
        """Whether an instance has ended; while the block runs nobody else offers its files."""
        try:
            lock = _take(self._lock_path(stem))
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            if not any(self.folder.glob(f"b_*/{stem}{SUFFIX}")):
                self._lock_path(stem).unlink(missing_ok=True)
            os.close(lock)

    def _offer_file(self, store: Store, path: Path, stop: Callable[[], bool]) -> int:
        try:
            batch = store.batch(read_header(path).batch_id)
            offered = _offer_records(store, path, batch.id, stop) if batch.status == "in_progress" else 0
            if not stop():
                _mark_offered(path)
        except BatchNotFoundError:
            return 0  # it may be another Redis's: then that one's next worker offers it
        except (RefusedError, OSError, ValueError, KeyError, TypeError) as error:  # the disk, or what Redis keeps of it
            log.warning("%s cannot be offered: %s", path, error, extra={"action": "spool_unreadable"})
            return 0
        return offered

    # --- what nobody needs any more ---

    def sweep(self) -> None:
        """Remove what was not written to for as long as it is kept; looks once an hour."""
        if self._swept_at is not None and self._clock() - self._swept_at < SWEEP_S:
            return
        self._swept_at = self._clock()
        before = self._now() - self._keep_s
        with suppress(OSError):
            for path in self.folder.iterdir():
                with suppress(OSError):  # what cannot be removed now is looked at again
                    self._sweep(path, before)

    def _sweep(self, path: Path, before: float) -> None:
        if path.name.endswith(LOCK):
            if path.stat().st_mtime < before:
                with self._dead(path.name.removesuffix(LOCK)):
                    pass
        elif BATCH_FOLDER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            _remove_old(path, before)

    def _lock_path(self, stem: str) -> Path:
        return self.folder / f"{stem}{LOCK}"


def _offer_records(store: Store, path: Path, batch_id: str, stop: Callable[[], bool]) -> int:
    """Offer a file's records, neighbours of one attempt together; how many were."""
    offered, damaged = 0, 0
    wanted: dict[tuple[int, int], bool] = {}

    def count() -> None:
        nonlocal damaged
        damaged += 1

    with path.open("rb") as file:
        entries = (entry for _, entry in read_entries(file, batch_id, count))
        for (shard, fence), neighbours in groupby(entries, key=lambda entry: (entry.shard, entry.fence)):
            attempt = Attempt(batch_id, shard, fence)
            if (shard, fence) not in wanted:
                wanted[shard, fence] = store.unfinished(attempt)
            for portion in portions((entry.line, entry.line.record) for entry in neighbours):
                if wanted[shard, fence] and not stop():
                    with suppress(StaleAttemptError):
                        store.write(attempt, [line for line, _ in portion])
                        offered += len(portion)
            if stop():
                break
    if damaged:
        log.warning("%s: %d damaged lines are passed over", path, damaged, extra={"action": "spool_damaged"})
    return offered


def _remove_old(folder: Path, before: float) -> None:
    files = [path for path in folder.iterdir() if path.name.endswith(SUFFIX)]
    if max(path.lstat().st_mtime for path in (folder, *files)) < before:
        for path in files:
            path.unlink(missing_ok=True)
        folder.rmdir()


def _mark_offered(path: Path) -> None:
    path.rename(path.with_name(path.name.removesuffix(SUFFIX) + OFFERED))


def _make_folder(folder: Path) -> None:
    """A folder for this user alone, whatever the umask; one that is there stays as it is."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)


def _take(path: Path) -> int:
    """The lock file's descriptor, locked.

    Raises:
        OSError: somebody else holds it, or it cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _safe(name: str) -> str:
    """A name as part of a path: nothing in it leads out of the folder."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".")[:128] or "_"
