"""Removing batches: by hand, and by themselves when they were kept for as long as they should be."""

from __future__ import annotations

import time

import pytest

from jobs.errors import BatchNotFoundError, RefusedError
from jobs.store.cancel import cancel
from jobs.store.keys import KEEPING, BatchKeys
from jobs.store.maintenance import upkeep
from jobs.store.retention import KEEP_S, memory, purge, purge_due
from jobs.store.retry import retry
from jobs.store.store import NewBatch, Store
from tests.pool import make_batch, prompts, work


def left_of(store: Store, batch_id: str) -> list[bytes]:
    """Every key, and every entry of a list of ours, that still names a batch."""
    named = [key for key in store.connection.scan_iter() if batch_id.encode() in key]
    for key in store.connection.scan_iter("promptmill:*"):
        if store.connection.type(key) == b"zset" and store.connection.zscore(key, batch_id) is not None:
            named.append(key)
    return named


def test_purge_leaves_nothing(store: Store) -> None:
    """Of a batch with finished, failed and refused lines; others stay."""
    batch_id, other = (
        make_batch(store, [*prompts(60), {"prompt": 5}], on_bad_line="skip"),
        make_batch(store, prompts(1)),
    )
    work(store, batch_id)
    store.connection.delete("rq:queue:promptmill:normal:pocket")
    purge(store, batch_id)
    assert left_of(store, batch_id) == []
    assert [batch.id for batch in store.batches()] == [other]
    with pytest.raises(BatchNotFoundError):
        purge(store, batch_id)


def test_what_is_not_done_is_not_purged(store: Store) -> None:
    """Running and paused batches are refused with the remedy, uploads too."""
    batch_id = make_batch(store, prompts(1))
    with pytest.raises(RefusedError, match=f"`promptmill cancel {batch_id}`"):
        purge(store, batch_id)
    store.create(NewBatch("b_new", None, "a", "normal", {}, {}))
    with pytest.raises(RefusedError):
        purge(store, "b_new")
    assert store.batch("b_new").status == "validating"
    cancel(store, batch_id)
    purge(store, batch_id)
    assert left_of(store, batch_id) == []


@pytest.mark.parametrize("end", ["completed", "cancelled", "refused"])
def test_batches_are_kept_for_their_time(store: Store, end: str) -> None:
    """From their end on, however they ended, by the server's clock; then they go by themselves."""
    lines = [{"prompt": 5}] if end == "refused" else prompts(2)
    batch_id = make_batch(store, lines, on_bad_line="skip", keep_s=100.0)
    if end == "completed":
        work(store, batch_id)
    elif end == "cancelled":
        cancel(store, batch_id)
    assert store.connection.zscore(KEEPING, batch_id) == pytest.approx(time.time() + 100, abs=5)
    upkeep(store)
    assert store.batch(batch_id).done
    ahead = Store(store.connection, server_time=lambda: time.time() + 200)
    assert purge_due(ahead) == []  # this machine's clock does not count
    store.connection.zadd(KEEPING, {batch_id: 1})
    assert purge_due(store) == [batch_id]
    assert left_of(store, batch_id) == []


def test_kept_for_a_fortnight_or_for_ever(store: Store) -> None:
    """The default is two weeks; None is for ever."""
    usual, forever = make_batch(store, prompts(1)), make_batch(store, prompts(1), keep_s=None)
    work(store, usual)
    work(store, forever)
    assert store.connection.zscore(KEEPING, usual) == pytest.approx(time.time() + KEEP_S, abs=5)
    assert store.connection.zscore(KEEPING, forever) is None
    assert store.batch(forever).keep_s is None


def test_a_retried_batch_is_not_removed_while_it_runs(store: Store) -> None:
    """Its time begins again at its next end; an entry that was left over removes nothing."""
    batch_id = make_batch(store, prompts(1))
    cancel(store, batch_id)
    retry(store, batch_id)
    assert store.connection.zscore(KEEPING, batch_id) is None
    store.connection.zadd(KEEPING, {batch_id: 1})
    assert purge_due(store) == []
    assert store.batch(batch_id).status == "in_progress"
    assert store.connection.zscore(KEEPING, batch_id) is None
    work(store, batch_id)
    assert store.connection.zscore(KEEPING, batch_id) is not None


def test_a_removal_that_dies_in_between_is_ended_by_others(store: Store) -> None:
    """From its first step on the batch is in no list, and the next upkeep removes what is left."""

    class Dying(Store):
        def discard(self, batch_id: str, shards: int = 0) -> None:
            raise InterruptedError

    batch_id = make_batch(store, prompts(60))
    work(store, batch_id)
    with pytest.raises(InterruptedError):
        purge(Dying(store.connection), batch_id)
    assert store.batches() == []
    store.connection.delete("rq:queue:promptmill:normal:pocket")
    upkeep(store)
    assert left_of(store, batch_id) == []


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_removal_cut_between_its_commands_is_ended_by_others(store: Store, cut: int) -> None:
    """As when the client is killed while it sends them: what is left is listed still, and found."""
    batch_id = make_batch(store, prompts(50 * 200))
    cancel(store, batch_id)
    pipeline = store.connection.pipeline

    def cut_off(**options: object) -> object:
        made = pipeline(**options)
        execute = made.execute

        def some(*arguments: object, **given: object) -> object:
            if made.command_stack and made.command_stack[0][0][0] == "ZREM":
                del made.command_stack[cut + 5 :]
            return execute(*arguments, **given)

        made.execute = some
        return made

    store.connection.pipeline = cut_off  # type: ignore[assignment]
    purge(store, batch_id)
    store.connection.pipeline = pipeline  # type: ignore[method-assign]
    assert left_of(store, batch_id) != [] or cut == 5
    upkeep(store)
    assert left_of(store, batch_id) == []


def test_memory_is_what_redis_says_of_all_keys(store: Store) -> None:
    """It is more for more lines, and nothing for a batch that is gone."""
    small, large = make_batch(store, prompts(1)), make_batch(store, prompts(5000))
    keys = [key for key in store.connection.scan_iter() if large.encode() in key]
    exactly = sum(store.connection.memory_usage(key) or 0 for key in keys)
    assert memory(store.connection, large) == exactly
    huge = make_batch(store, prompts(50 * 450))
    keys = [key for key in store.connection.scan_iter() if huge.encode() in key]
    exactly = sum(store.connection.memory_usage(key) or 0 for key in keys)
    assert memory(store.connection, huge) == pytest.approx(exactly, rel=0.05)  # of so many shards some are measured
    assert memory(store.connection, large) > memory(store.connection, small) > 500
    store.connection.delete(BatchKeys(small).info)
    store.discard(small)
    assert memory(store.connection, small) == 0


@pytest.mark.parametrize("order", [{"keep_s": 0.0}, {"keep_s": -1.0}, {"start_in": 1e12}, {"start_in": float("nan")}])
def test_times_that_make_no_sense_are_refused(store: Store, order: dict[str, float]) -> None:
    """Before anything is uploaded."""
    with pytest.raises(RefusedError, match="a number of seconds above 0 and below ten years"):
        make_batch(store, prompts(1), **order)
    assert list(store.connection.scan_iter("promptmill:*")) == []
