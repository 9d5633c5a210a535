"""When a model that cannot be loaded is tried again, and when its lines fail."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import redis.exceptions

from jobs.errors import ModelLoadError
from jobs.shard import Group
from worker.models.load_failures import PAUSES_S, STREAK_S, LoadFailure, LoadFailures, failed_again, published_failures

MODEL = Group("org/pocket")
ERROR = ModelLoadError("the hub cannot be reached")


class Pool:
    """A worker whose model cannot be loaded, and what the other workers of its queue publish; ``now`` is its clock."""

    def __init__(self, patience_s: float = 120.0) -> None:
        self.now, self.patience_s, self.put_off_for = 1000.0, patience_s, list[float]()
        self.failure: LoadFailure | None = None
        self.others: dict[str, Any] = {}
        self.out = False
        self.verdicts = LoadFailures(
            self,  # type: ignore[arg-type]
            lambda group, seconds: self.put_off_for.append(seconds) is None,
            clock=lambda: self.now,
        )

    name = "mini.1"

    def served_by(self, queue: str) -> dict[str, str]:
        if self.out:
            raise redis.exceptions.ConnectionError("gone")
        return dict.fromkeys([self.name, *self.others], "")

    @property
    def connection(self) -> Any:
        return SimpleNamespace(pipeline=lambda transaction: self)

    def __enter__(self) -> Pool:
        self.asked: list[Any] = []
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def getrange(self, key: str, start: int, end: int) -> None:
        state = self.others[key.removeprefix("promptmill:worker:")]
        self.asked.append(state if isinstance(state, bytes) else orjson.dumps(state))

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        return self.asked

    def fail(self) -> None:
        """The model is tried once more, in vain."""
        self.failure = failed_again(self.failure, ERROR, self.now, self.patience_s)

    def verdict(self, batch: str = "b_1", **times: float) -> str | None:
        """What becomes of a shard whose load has just failed: the code of its lines' error records."""
        held: Any = SimpleNamespace(group=MODEL, queue="q", batch=SimpleNamespace(id=batch, times=times))
        found = self.verdicts.verdict(held, self.failure)
        return None if found is None else found.code

    def keep_failing(self) -> float:
        """Try as often as the worker would until lines fail; after how many seconds they do."""
        begun = self.now
        self.fail()
        while self.verdict() is None:
            self.now += self.put_off_for[-1]
            self.fail()
        return self.now - begun


def test_lines_fail_after_several_failures_over_minutes_and_not_before() -> None:
    """The model is put off for longer and longer, and its lines fail once it was tried for the patience."""
    pool = Pool()
    assert pool.keep_failing() == 170.0
    assert pool.put_off_for == [*PAUSES_S, PAUSES_S[-1]]
    assert pool.failure is not None
    assert pool.failure.tries == 6


@pytest.mark.parametrize(("patience_s", "after"), [(0.0, 0.0), (2.0, 170 / 60), (600.0, 650.0)])
def test_the_bound_is_the_users(patience_s: float, after: float) -> None:
    """A shorter one has shorter pauses; three tries are the least, a loss of the network at once is no reason."""
    pool = Pool(patience_s)
    assert pool.keep_failing() == pytest.approx(after)
    assert pool.failure is not None
    assert pool.failure.tries >= 3


def test_a_batch_that_is_retried_has_the_model_tried_first() -> None:
    """And so does one that comes: the last failure was before it."""
    pool = Pool()
    pool.keep_failing()
    pool.now += 10
    assert pool.verdict() == "model_load_failed"  # of shards that wait, at once
    assert pool.verdict(retried=5.0) is None
    assert pool.verdict("b_2") is None
    assert pool.put_off_for[-1] == 50.0
    pool.now += 50
    pool.fail()
    assert pool.verdict(retried=5.0) == pool.verdict("b_2") == "model_load_failed"


def test_a_failure_of_long_ago_says_nothing_about_now() -> None:
    """A model that nobody wanted for a while gets its whole time again."""
    pool = Pool()
    pool.keep_failing()
    pool.now += STREAK_S
    assert published_failures({MODEL: pool.failure}, pool.now)[0]["given_up"] is False  # type: ignore[dict-item]
    assert pool.verdict() is None
    pool.fail()
    assert pool.verdict() is None
    assert pool.failure is not None
    assert pool.failure.tries == 1


def test_lines_wait_while_another_worker_may_load_the_model() -> None:
    """Whatever it publishes, or where it publishes nothing yet; each must have given the model up itself."""
    pool = Pool()
    given_up = {"failing": [{"model": MODEL.key, "given_up": True}]}
    pool.others = {"a.1": given_up}
    pool.keep_failing()
    hopeful: list[Any] = [
        b"", b"[", b"[]", {}, {"failing": []}, {"failing": 5}, {"failing": [5]},
        {"failing": [{"model": "org/other", "given_up": True}]}, {"failing": [{"model": MODEL.key, "given_up": 1}]},
    ]  # fmt: skip
    for state in hopeful:
        pool.others = {"a.1": given_up, "b.2": state}
        assert pool.verdict() is None
    pool.others = {"a.1": given_up, "b.2": given_up}
    assert pool.verdict() == "model_load_failed"
    pool.out = True
    assert pool.verdict() is None


def test_what_is_published_tells_people_why_and_until_when() -> None:
    """The reason, and the seconds until the next try."""
    pool = Pool()
    pool.fail()
    assert pool.failure is not None
    [shown] = published_failures({MODEL: pool.failure}, pool.now + 2)
    assert shown == {"model": "org/pocket", "reason": str(ERROR), "retry_s": 3.0, "given_up": False}


def test_a_model_that_was_loaded_meanwhile_puts_nothing_off() -> None:
    """The shard goes back, and is taken again at once."""
    pool = Pool()
    assert pool.verdict() is None
    assert pool.put_off_for == []
