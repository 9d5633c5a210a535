"""Lines whose texts are not as expected: asked again with another seed, and kept as they are in the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from jobs.record import Choice
from jobs.store.store import Store
from submit.results.destination import Destination
from submit.results.follow import write_results
from submit.results.read import ordered_records
from submit.results.summary import summary
from tests.pool import make_batch
from worker.models.engine_factory import ServedModel
from worker.service import Service
from worker.shards.claimed import HeldShard
from worker.shards.records import EndedLine
from worker.shards.writer import Writer

SEQUENCE = SimpleNamespace(
    limit=9, finished_at=1.0, prefill_started=0.5, submitted_at=0.0, waited_s=0.0, prompt_tokens=3,
    completion_tokens=2, cached_tokens=0, scored_tokens=0, prefill_s=0.1, decode_s=0.1, accepted_draft_tokens=None,
    line=None,
)  # fmt: skip


class Asked:
    """A writer on a held shard, and what the model says of its one line in each try; the seeds it was asked with."""

    def __init__(self, service: Service, texts: Iterator[str]) -> None:
        assert service._take_one()
        [self.held] = service.held
        self.seeds: list[int | None] = []
        self._texts = texts
        self.writer = Writer(service.store, "mini", service._shard_ended, on_again=self.ask)

    def ask(self, held: HeldShard, index: int) -> None:
        """The line's text in this try."""
        job = held.job(held.lines[index])
        self.seeds.append(job.sampling.seed)
        text = next(self._texts)
        assembler = SimpleNamespace(assemble=lambda _sequence, **_ids: Choice(0, text, "eos"))
        served = cast("ServedModel", SimpleNamespace(assembler=assembler, revision=None))
        sequences: Any = [SEQUENCE]
        self.writer.put(EndedLine(held, index, 1.0, None, sequences, served))

    def records(self, batch_id: str) -> list[dict[str, Any]]:
        self.ask(self.held, 0)
        # The scribe asks again while the writer waits: the end comes once there is a record.
        self.writer.start()
        while self.writer.left:
            self.writer.join(0.01)
        assert self.writer.end()
        return [orjson.loads(record.raw) for record in ordered_records(self.writer._store.connection, batch_id)]


def line(**fields: Any) -> dict[str, Any]:
    return {"prompt": "x", "expect": "regex:good", "re_ask": 3, "temperature": 1.0, **fields}


def test_a_line_is_asked_until_its_text_is_as_expected(store: Store, service: Service) -> None:
    """With a new seed each time, the same ones whenever it comes to that; the record says in how many tries."""
    batch = make_batch(store, [line(seed=5)])
    asked = Asked(service, iter(["bad", "bad", "good"]))
    [record] = asked.records(batch)
    assert (record["text"], record["judged"]) == ("good", {"passed": True, "tries": 3})
    assert len(set(asked.seeds)) == 3
    assert (asked.seeds[0], record["sampling"]["seed"]) == (5, asked.seeds[2])
    other = make_batch(store, [line(seed=5)])
    again = Asked(service, iter(["bad", "bad", "good"]))
    again.records(other)
    assert again.seeds == asked.seeds


@pytest.mark.parametrize(("fields", "tries"), [({}, 4), ({"re_ask": 0}, 1), ({"temperature": 0}, 1)])
def test_a_line_that_never_passes_is_kept(
    fields: dict[str, Any], tries: int, store: Store, service: Service, tmp_path: Path
) -> None:
    """After the tries it has, and after one where another seed changes nothing; training data leave it out, and the
    summary counts it."""
    batch = make_batch(store, [line(**fields)])
    [record] = Asked(service, iter(["bad"] * 9)).records(batch)
    assert (record["text"], record["judged"]) == ("bad", {"passed": False, "tries": tries})
    done, tally = write_results(store, batch, Destination(tmp_path / "out", fmt="completions"))
    assert (tmp_path / "out").read_bytes() == b""
    said = "\n".join(summary(done, tally, seconds=1.0, now=store.now()))
    assert "expected: 0 of 1 line passed" in said
    assert '1 did not, and have "passed": false' in said
    assert "left out of the training data: 1 not as expected" in said
