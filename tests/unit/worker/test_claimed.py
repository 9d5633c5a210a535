"""The state of a held shard: one end, whatever thread comes to it, and none while it is being taken up again."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest

from jobs.attempt import Attempt
from jobs.lines.line import Defaults
from jobs.shard import Group, ShardLine
from jobs.store.store import FinishedLine
from tests.waiting import until
from worker.shards.claimed import HeldShard, HeldShards, State

LINES = [ShardLine(0, 1, b"{}"), ShardLine(1, 2, b"{}")]
OLD: Any = SimpleNamespace(job_id="b-0")
NEW: Any = SimpleNamespace(job_id="b-0")


def attempt(fence: int) -> Attempt:
    return Attempt("b", 0, fence)


@pytest.fixture
def held() -> HeldShard:
    """A shard of two lines, held under fence 1."""
    some = cast("Any", None)
    return HeldShard(OLD, attempt(1), some, Group("m"), "q", Defaults({}), 0.0, LINES, 0.0)


def test_one_thread_ends_a_shard(held: HeldShard) -> None:
    """Of many that come to its end at once, and of those that come later."""
    together = threading.Barrier(8)

    def end(_: int) -> bool:
        together.wait(60)
        return held.end()

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(end, range(8))) == [False] * 7 + [True]
    assert (held.end(), held.ended) == (False, True)


def test_states_follow_one_another(held: HeldShard) -> None:
    """Only a running shard is withdrawn, only a withdrawn one settles, and one that has ended does neither."""
    assert not held.settle()
    assert (held.withdraw(), held.withdraw(), held.running) == (True, False, False)
    assert (held.settle(), held.state) == (True, State.IDLE)
    assert held.end()
    assert (held.withdraw(), held.settle(), held.state) == (False, False, State.ENDED)


def test_an_attempt_that_was_followed_by_another_ends_nothing(held: HeldShard) -> None:
    """Whoever found it stale goes on under the new one, and what is under way keeps its key."""
    stale, new, key = held.attempt, attempt(2), held.key(0)
    assert held.renew(NEW, lambda: new)
    assert not held.end(under=stale)
    assert (held.ended, held.attempt, held.lease, held.key(0)[1]) == (False, new, NEW, key[1])
    assert held.end(under=new)


def test_while_a_shard_is_taken_up_again_its_end_waits(held: HeldShard) -> None:
    """Who may not wait has ended nothing; who waits learns how it came out."""
    stale, found = held.attempt, []
    waiting = threading.Thread(target=lambda: found.append(held.end(under=stale)))

    def claim() -> Attempt:
        waiting.start()
        assert not held.end(under=stale, wait_s=0.0)
        until(lambda: held._changed._waiters, "it waits")  # type: ignore[attr-defined]
        return attempt(2)

    assert held.renew(NEW, claim)
    waiting.join(60)
    assert (found, held.ended) == ([False], False)


@pytest.mark.parametrize("fails", [True, False])
def test_a_claim_that_comes_to_nothing_leaves_the_shard_as_it_was(held: HeldShard, fails: bool) -> None:
    """Its attempt may end then."""
    before = held.attempt

    def claim() -> None:
        if fails:
            raise OSError("gone")

    if fails:
        with pytest.raises(OSError, match="gone"):
            held.renew(NEW, claim)
    else:
        assert not held.renew(NEW, claim)
    assert held.attempt is before
    assert held.end(under=before)
    assert not held.renew(NEW, lambda: attempt(3))


def test_a_line_belongs_to_the_shard_that_it_was_taken_with(held: HeldShard) -> None:
    """Neither to one that has ended, nor to the same shard taken anew; which the end of the first does not remove."""
    shards, key = HeldShards(), held.key(0)
    shards.add(held)
    assert shards.of_line(key) is held
    assert shards.of_line(("other-0", 1, 0)) is None
    held.end()
    assert shards.of_line(key) is None
    again = HeldShard(NEW, attempt(2), cast("Any", None), Group("m"), "q", Defaults({}), 0.0, LINES, 0.0)
    shards.add(again)
    assert (shards.of_line(key), shards.of_line(again.key(0))) == (None, again)
    shards.remove(held)
    assert list(shards) == [again]
    shards.claiming = OLD
    assert shards.leases() == [NEW, OLD]


def test_records_are_kept_until_they_are_too_many(held: HeldShard, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none of them counts once the shard was taken up again: another worker may have stored others meanwhile."""
    monkeypatch.setattr("worker.shards.claimed.KEPT_BYTES", 8)
    held.keep([FinishedLine(0, True, 0, 0, 0, b"12345678")])
    held.keep([FinishedLine(1, True, 0, 0, 0, b"9")])
    assert (held.own_records, held.remaining) == ({0: b"12345678"}, set())
    assert held.renew(NEW, lambda: attempt(2))
    assert held.own_records == {}
