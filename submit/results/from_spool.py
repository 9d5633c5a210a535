"""Results without Redis: a batch's records from the spools of its workers, one per line of the input."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jobs.errors import BatchNotFoundError, PromptmillError, RefusedError
from jobs.lines.line import CHAT_URL, COMPLETIONS_URL
from jobs.spool import SUFFIX, SpoolHeader, open_spool, read_entries, read_header
from submit.results.destination import Destination
from submit.results.formats import plain_renderer
from submit.results.output import Output
from submit.results.read import StoredRecord
from submit.results.summary import Tally
from submit.status.text import plural


@dataclass(frozen=True, slots=True)
class Found:
    """What the spools held of a batch, and what they did not. ``unread`` are files passed over, with the reason."""

    header: SpoolHeader
    tally: Tally
    damaged: int
    unread: tuple[str, ...]

    @property
    def missing(self) -> int:
        """Lines of the batch without a record in the spools."""
        return max(self.header.total - self.tally.lines, 0)

    @property
    def complete(self) -> bool:
        """Whether every line of the batch is known to be there."""
        return self.header.total > 0 and not self.missing

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        header = self.header
        about = {"id": header.batch_id, "name": header.name, "source": header.source, "total": header.total or None}
        about |= {"twins": header.twins} if header.twins else {}
        return {**about, "written": self.tally.lines, "missing": self.missing, "damaged": self.damaged}

    def notes(self) -> list[str]:
        """What a person should know of the spools, a line each."""
        batch, total = f"batch {self.header.batch_id}", self.header.total
        notes = list(self.unread)
        if self.damaged:
            notes.append(f"{plural(self.damaged, 'damaged line')} of the spools passed over")
        if not total:
            return [*notes, f"{batch}: found {plural(self.tally.lines, 'line')}; how many it has is not known"]
        text = f"{batch}: found {self.tally.lines:,} of {plural(total, 'line')}"
        if self.header.twins:
            notes.append(
                f"{plural(self.header.twins, 'line')} equal to others of the batch (--dedupe) "
                f"{'is' if self.header.twins == 1 else 'are'} not among them: spools do not know their ids"
            )
        if self.missing:
            text += f"; {self.missing:,} missing: not finished, refused at submission, or in another worker's spool"
        return [*notes, text]


class _Place(NamedTuple):
    """Where a line's best record lies. Places are compared by what makes one record better than another."""

    ok: bool
    fence: int
    chat: bool
    file: int
    offset: int


def write_spooled(name: str, folders: Iterable[Path], destination: Destination) -> Found:
    """Write the records of batch ``name`` (an id, else the newest of that name) that lie in ``folders``.

    Each of those is a spool folder, a batch's folder in one, or a file. In the order of the input, one record per
    line: a result before an error, then the latest attempt's. Memory grows with the number of lines, not their size.

    Raises:
        BatchNotFoundError: no record of the batch is there.
        RefusedError: a path is not there or cannot be written, or the format needs the prompts.
    """
    files, header = _files_of(name, folders)
    spools = _Spools(files, header.batch_id)
    render = plain_renderer(destination, spools.endpoint)
    spools.index()
    if not spools.places:
        raise BatchNotFoundError(f"no sound record of batch {header.batch_id} is in {', '.join(map(str, files))}")
    with Output(destination, render) as output:
        for record in spools.records():
            output.put(record)
    return Found(header, output.tally, spools.damaged, tuple(spools.unread))


def _files_of(name: str, folders: Iterable[Path]) -> tuple[list[Path], SpoolHeader]:
    """The files of a batch, and what they say of it."""
    folders = list(folders)
    paths = dict.fromkeys(path.resolve() for folder in folders for path in _paths(folder))
    headers: dict[Path, SpoolHeader] = {}
    for path in paths:
        try:
            headers[path] = read_header(path)
        except OSError:
            headers[path] = SpoolHeader(path.parent.name)  # index() says so, if it is of this batch
    known = {header.batch_id for header in headers.values()}
    named = {header.batch_id for header in headers.values() if header.name == name}
    if name not in known and not named:
        raise BatchNotFoundError(f"no record of a batch '{name}' is in {', '.join(map(str, folders))}")
    batch_id = name if name in known else max(named)  # ids sort by the time of submission
    found = {path: header for path, header in headers.items() if header.batch_id == batch_id}
    # The line about the batch may be damaged in some of them.
    return list(found), max(found.values(), key=lambda header: header.total)


def _paths(folder: Path) -> list[Path]:
    if folder.is_dir():
        _listable(folder)
        # Not is_file(): one that was renamed since is none under this name.
        return sorted(
            path for pattern in (f"*{SUFFIX}", f"*/*{SUFFIX}") for path in folder.glob(pattern) if not path.is_dir()
        )
    if folder.is_file():
        return [folder]
    raise RefusedError(f"{folder} does not exist; give a worker's spool folder, a batch's folder in it, or a file")


def _listable(folder: Path) -> None:
    """Refuse folders that cannot be listed: their records would be missed without a word."""
    inner = (path for path in folder.iterdir() if path.is_dir()) if os.access(folder, os.R_OK | os.X_OK) else ()
    for path in (folder, *inner):
        if not os.access(path, os.R_OK | os.X_OK):
            raise RefusedError(f"{path} cannot be read: you may not; give yourself the right, or run as its owner")


class _Spools:
    """The best record of each line in some files, by place: the records themselves stay on the disk."""

    def __init__(self, files: list[Path], batch_id: str) -> None:
        self.places: dict[int, _Place] = {}
        self.damaged = 0
        self.unread: list[str] = []
        self._files = files
        self._batch_id = batch_id

    def index(self) -> None:
        """Find the best record of each line."""
        for number, path in enumerate(self._files):
            try:
                with open_spool(path) as file:
                    for offset, entry in read_entries(file, self._batch_id, self._count_damaged):
                        place = _Place(entry.line.ok, entry.fence, entry.chat, number, offset)
                        best = self.places.setdefault(entry.line.index, place)
                        if (place.ok, place.fence) > (best.ok, best.fence):
                            self.places[entry.line.index] = place
            except OSError as error:
                self.unread.append(f"{path} cannot be read to its end: {error.strerror}")

    def records(self) -> Iterator[StoredRecord]:
        """A record per line, in the order of the input."""
        for index in sorted(self.places):
            place = self.places[index]
            try:
                with open_spool(self._files[place.file]) as file:
                    file.seek(place.offset)
                    _, entry = next(read_entries(file, self._batch_id), (0, None))
            except OSError:
                entry = None
            if entry is None:
                raise PromptmillError(
                    f"{self._files[place.file]} changed while it was read; run the same command again"
                )
            yield StoredRecord(index, entry.line.record, entry.shard)

    def endpoint(self, record: StoredRecord) -> str:
        """Where a native line would have gone."""
        return CHAT_URL if self.places[record.index].chat else COMPLETIONS_URL

    def _count_damaged(self) -> None:
        self.damaged += 1
