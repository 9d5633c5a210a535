"""Why a batch waits, by what its workers publish."""

from __future__ import annotations

from dataclasses import replace

import pytest

from submit.status.waiting import RUN_ENDED, BatchOutlook
from submit.status.worker_state import FailingModel, WorkerState
from tests.unit.submit.test_status import DECODING, OTHERS, QUEUES, RUNNING, worker


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([], "waiting: no worker serves org/pocket"),
        ([worker("idle", queues=("promptmill:normal:other",))], "waiting: no worker serves org/pocket"),
        ([worker("loading")], "loading org/pocket"),
        ([worker("draining")], "waiting: the worker at hand is stopping"),
        ([worker("starting")], "waiting: its worker is starting"),
        ([worker("busy", OTHERS)], "waiting: workers are busy with other batches"),
        ([worker("busy", OTHERS, queues=("promptmill:normal:other",))], "waiting: no worker serves org/pocket"),
        ([worker("busy", OTHERS, DECODING)], None),
        ([worker("idle")], None),
    ],
)
def test_why_a_batch_waits(states: list[WorkerState], expected: str | None) -> None:
    """No worker on its queues, a model that loads, a worker that stops, or other work first."""
    assert BatchOutlook(RUNNING, QUEUES, states).why_waiting == expected


def test_a_batch_waits_for_a_model_that_cannot_be_loaded() -> None:
    """The reason and when it is tried again; what a worker in order does for it is said first."""
    failing = replace(worker("idle"), failing=(FailingModel("org/pocket", "the hub cannot be reached", 40.0),))
    said = "waiting: mini.7 cannot load org/pocket: the hub cannot be reached; it is tried again"
    assert BatchOutlook(RUNNING, QUEUES, [failing]).why_waiting == said
    assert BatchOutlook(RUNNING, QUEUES, [failing, worker("idle")]).why_waiting == said
    assert (
        BatchOutlook(RUNNING, QUEUES, [failing, worker("busy", OTHERS)]).why_waiting
        == "waiting: workers are busy with other batches"
    )
    assert BatchOutlook(RUNNING, QUEUES, [replace(failing, in_flight=(OTHERS,))]).why_waiting == said
    assert BatchOutlook(RUNNING, QUEUES, [replace(failing, state="loading")]).why_waiting == "loading org/pocket"
    assert (
        BatchOutlook(RUNNING, QUEUES, [replace(failing, failing=(FailingModel("org/x", "no", 1.0),))]).why_waiting
        is None
    )


def test_a_batch_waits_where_workers_refuse_it() -> None:
    """The worker and its reason are named, unless others run it."""
    refusing = replace(worker("idle"), refused={RUNNING.id: "'min_p' is not a field of a line"})
    said = "waiting: mini.7 refuses it: 'min_p' is not a field of a line"
    assert BatchOutlook(RUNNING, QUEUES, [refusing]).why_waiting == said
    assert BatchOutlook(RUNNING, QUEUES, [refusing, worker("loading")]).why_waiting == "loading org/pocket"
    assert BatchOutlook(RUNNING, QUEUES, [refusing, worker("busy", DECODING)]).why_waiting is None
    assert BatchOutlook(RUNNING, QUEUES, [replace(refusing, refused={"b_other": "no"})]).why_waiting is None


def test_the_batch_of_a_run_that_ended_says_so() -> None:
    """Nobody else serves its queues; the same command goes on with it."""
    batch = replace(RUNNING, pool="b_1")
    assert (
        BatchOutlook(batch, frozenset({"promptmill:normal:b_1:org/pocket"}), [worker("idle")]).why_waiting == RUN_ENDED
    )


def test_a_done_batch_waits_for_nothing() -> None:
    """Without workers a finished batch is simply finished."""
    assert BatchOutlook(replace(RUNNING, status="completed"), QUEUES, []).why_waiting is None
