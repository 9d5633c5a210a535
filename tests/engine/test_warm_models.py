"""Several models on one worker: real weights, under a limit that does not hold them all."""

from __future__ import annotations

import gc
import itertools
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import orjson
import pytest

from jobs.app.worker_options import EngineSettings
from jobs.errors import ModelLoadError
from jobs.lines.line import Defaults, check_line
from jobs.redis.connect import connect
from jobs.shard import Group
from jobs.store.keys import worker_key
from jobs.store.store import Store
from submit.results.read import ordered_records
from submit.status.waiting import NO_WORKER, BatchOutlook
from submit.status.workers import Workers
from tests.engine.conftest import POCKET, NoLog
from tests.engine.test_adapters import save_adapter
from tests.pool import make_batch
from tests.waiting import until
from worker.engine.loading import mlx_models
from worker.engine.loading.mlx_models import active_memory, free_memory
from worker.models.compute import Compute
from worker.service import Service, ServiceSettings

WEIGHTS = (POCKET / "model.safetensors").stat().st_size
ONE = int(1.6 * WEIGHTS)
"""A limit that holds one model, and some caches."""


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    """Two models of the same weights."""
    return [str(shutil.copytree(POCKET, tmp_path / name)) for name in ("one", "two")]


class Bench:
    """A compute thread, and lines run through it by hand."""

    def __init__(self, **settings: Any) -> None:
        self.finished: list[Any] = []
        ended = self.finished.append
        self.compute = Compute(EngineSettings(**settings), lambda _, line: ended(line), lambda: None, NoLog())
        self.compute.start()
        self._keys = itertools.count()

    def run(self, group: Group, *prompts: str) -> list[list[int]]:
        """The tokens that a group's model generates after each prompt."""
        served = self.compute.load(group).result(60)
        keys = [("x-0", 0, next(self._keys)) for _ in prompts]
        for key, prompt in zip(keys, prompts, strict=True):
            raw = orjson.dumps({"prompt": prompt, "max_tokens": 20, "ignore_eos": True})
            job = check_line(raw).job(index=0, line=1, batch_id="b", defaults=Defaults({"model": group.model}))
            self.compute.add(group, served.preparer.prepare(job, key=key))
        until(lambda: len(self.finished) == len(prompts), "the lines are finished")
        done = {line.key: list(line.sequences[0].tokens) for line in self.finished}
        self.finished.clear()
        return [done[key] for key in keys]

    def memory(self, group: Group) -> int:
        """MLX's bytes in use, once all that was asked for is done."""
        self.compute.size(group).result(60)
        gc.collect()
        return int(mx.get_active_memory())


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    """``bench(**engine settings)``: a compute thread of one's own."""
    made: list[Bench] = []

    def make(**settings: Any) -> Bench:
        made.append(Bench(**settings))
        return made[-1]

    yield make
    for one in made:
        one.compute.stop()
        one.compute.join(30)
        assert one.compute.failure is None


def test_unloading_gives_the_memory_back(bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture) -> None:
    """After a load, lines with a shared beginning and an unload, MLX holds what it held before: again and again."""
    caplog.set_level(logging.INFO, "promptmill.worker")
    worker, group = bench(), Group(str(POCKET))
    shared = "Once upon a time there was a little bear who lived in the woods with his mother and his father. " * 3
    before = worker.memory(group)
    texts = []
    for _ in range(3):
        texts.append(worker.run(group, *(f"{shared}{word}" for word in ("He", "She", "They", "One day"))))
        assert worker.memory(group) - before > WEIGHTS
        worker.compute.unload(group)
        assert abs(worker.memory(group) - before) < 64_000
        assert dict(worker.compute.loaded) == {}
    assert texts[0] == texts[1] == texts[2]
    said = [record.message for record in caplog.records if record.message.startswith("unloaded")]
    assert len(said) == 3
    assert all(f"unloaded {POCKET}: freed " in message and "still in use" in message for message in said)


def test_a_load_that_fails_leaves_nothing_behind(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that were read before the model was found not to run are given back."""
    held: list[int] = []

    def broken(*_: Any, **__: Any) -> None:
        held.append(active_memory())
        raise ValueError("it does not run")

    monkeypatch.setattr(mlx_models, "cache_cost", broken)
    worker, group = bench(), Group(str(POCKET))
    before = worker.memory(group)
    error = worker.compute.load(group).exception(60)
    assert "was loaded but cannot run: ValueError: it does not run" in str(error)
    free_memory()
    assert held[0] - before > WEIGHTS * 0.9
    assert abs(active_memory() - before) < 64_000


def test_a_model_larger_than_the_limit_is_refused(bench: Callable[..., Bench]) -> None:
    """Before it is read, and with the flag that would let it in."""
    with pytest.raises(ModelLoadError, match=r"3\.5 MiB of weights, and the memory limit is 2\.0 MiB.*--memory-limit"):
        bench(memory_limit=2 << 20).compute.load(Group(str(POCKET))).result(60)


def test_engines_share_what_the_weights_leave(bench: Callable[..., Bench], models: list[str]) -> None:
    """A second model halves the memory for caches, its going gives it back; a line that is larger than a part and not
    than the whole runs all the same."""
    one, two = (Group(model) for model in models)
    worker = bench(memory_limit=2 * WEIGHTS + 300_000, prefix_memory=0)
    texts = worker.run(one, "Once upon a time")
    engine = worker.compute._engines[one]
    per_row = engine.model.cache_cost(30)
    alone = engine._scheduler.memory
    assert alone is not None
    assert worker.run(two, "Once upon a time") == texts
    shared = engine._scheduler.memory
    assert shared is not None
    assert shared < per_row * 3 < alone
    raw = {"prompt": "Once upon a time", "max_tokens": shared // engine.model.cache_cost(1) + 10, "ignore_eos": True}
    job = check_line(orjson.dumps(raw)).job(index=0, line=1, batch_id="b", defaults=Defaults({"model": one.model}))
    worker.compute.add(one, worker.compute.served(one).preparer.prepare(job, key=("x-1", 0, 0)))
    until(lambda: worker.finished, "the long line is finished")
    assert worker.finished[0].error is None
    worker.compute.unload(two)
    worker.memory(one)
    assert abs(engine._scheduler.memory - alone) < 64_000


@pytest.fixture
def serve(store: Store, server_url: str, caplog: pytest.LogCaptureFixture) -> Callable[..., list[str]]:
    """``serve(groups, limit, **settings)``: a worker that runs until the queues are empty; what it loaded (+) and
    unloaded (-), in order."""
    caplog.set_level(logging.INFO, "promptmill.worker")

    def run(*groups: Group, limit: int | None, **settings: Any) -> list[str]:
        engine = EngineSettings(decode_concurrency=8, memory_limit=limit, load_patience_s=0.5)
        made = ServiceSettings(groups, name="mini", burst=True, engine=engine, **settings)
        assert Service(store.connection, connect(server_url), made).run() == 0
        keys = {f"{word} {group.key}": f"{sign}{Path(group.key).name}" for group in groups
                for word, sign in (("loaded", "+"), ("unloaded", "-"))}  # fmt: skip
        told = [(record.message.split(" in ")[0].split(": ")[0]) for record in caplog.records]
        return [keys[text] for text in told if text in keys]

    return run


def lines(model: str, count: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"Once {number}", "model": model, "max_tokens": 12, **fields} for number in range(count)]


def finished(store: Store, batch: str) -> list[dict[str, Any]]:
    """The records of a batch that is done."""
    assert store.batch(batch).status == "completed"
    return [orjson.loads(record.raw) for record in ordered_records(store.connection, batch)]


def test_one_worker_serves_two_models_that_do_not_fit_together(
    serve: Callable[..., list[str]], store: Store, models: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The first is drained before it makes room for the second: one switch, and every line has its model's text."""
    one, two = models
    mixed = [line for pair in zip(lines(one, 40), lines(two, 40), strict=True) for line in pair]
    batches = [make_batch(store, mixed) for _ in range(3)]
    assert serve(Group(one), Group(two), limit=ONE) == ["+one", "-one", "+two"]
    assert f"{two} does not fit beside the others" in caplog.text
    records = [record for batch in batches for record in finished(store, batch)]
    assert len(records) == 240
    ends = {model: sorted(r["finished_at"] for r in records if r["model"] == model) for model in models}
    assert ends[one][-1] < ends[two][0]
    texts = {model: [record["text"] for record in records if record["model"] == model] for model in models}
    assert texts[one] == texts[two]


def test_models_that_fit_together_are_not_unloaded(
    serve: Callable[..., list[str]], store: Store, models: list[str]
) -> None:
    """Room for both: each is loaded once."""
    batches = [make_batch(store, lines(model, 20)) for model in models * 2]
    assert serve(*map(Group, models), limit=3 * WEIGHTS) == ["+one", "+two"]
    assert all(len(finished(store, batch)) == 20 for batch in batches)


def test_a_busy_model_gives_way_after_the_bound(
    serve: Callable[..., list[str]], store: Store, models: list[str]
) -> None:
    """With endless work for the first, the second still has its turn, and then the first goes on."""
    one, two = models
    busy = [make_batch(store, lines(one, 64)) for _ in range(6)]
    other = make_batch(store, lines(two, 8))
    assert serve(Group(one), Group(two), limit=ONE, starvation_s=0.05) == ["+one", "-one", "+two", "-two", "+one"]
    records = [record for batch in busy for record in finished(store, batch)]
    assert len(records) == 6 * 64
    ends = [record["finished_at"] for record in records]
    assert min(ends) < min(record["finished_at"] for record in finished(store, other)) < max(ends)
    assert {record["attempt"] for record in records} == {1}


def test_a_model_left_cold_is_loaded_when_it_has_work(
    serve: Callable[..., list[str]], store: Store, models: list[str]
) -> None:
    """The warm one without work makes room at once; one without preloading starts with the model that is asked for."""
    batch = make_batch(store, lines(models[1], 8))
    assert serve(*map(Group, models), limit=ONE) == ["+one", "-one", "+two"]
    assert len(finished(store, batch)) == 8
    batch = make_batch(store, lines(models[1], 8))
    assert serve(*map(Group, models), limit=ONE, preload=False)[3:] == ["+two"]
    assert len(finished(store, batch)) == 8


def test_a_model_too_large_fails_its_lines_and_nobody_elses(
    serve: Callable[..., list[str]], store: Store, models: list[str]
) -> None:
    """The remedy stands in the record; the model beside it stays loaded."""
    shutil.copy(Path(models[1]) / "model.safetensors", Path(models[1]) / "model-2.safetensors")
    good, bad = (make_batch(store, lines(model, 8)) for model in models)
    assert serve(*map(Group, models), limit=ONE) == ["+one"]
    assert {record["stop_reason"] for record in finished(store, good)} <= {"max_tokens", "eos"}
    errors = [record["error"] for record in finished(store, bad)]
    assert {(error["code"], error["param"]) for error in errors} == {("model_load_failed", "model")}
    assert "raise --memory-limit" in errors[0]["message"]


def test_adapters_of_one_base_are_served_side_by_side(
    serve: Callable[..., list[str]], store: Store, tmp_path: Path
) -> None:
    """Under a limit for one model, a base and two adapters stay loaded, and each line has its adapter's text."""
    adapters = [str(save_adapter(tmp_path / f"adapter{seed}", POCKET, seed=seed)) for seed in (1, 2)]
    groups = [Group(str(POCKET), adapter) for adapter in (None, *adapters)]
    jobs = [line for adapter in adapters for line in lines(str(POCKET), 8, adapter_path=adapter)]
    batch = make_batch(store, [*lines(str(POCKET), 8), *jobs])
    events = serve(*groups, limit=ONE)
    assert events == ["+model", "+adapter1", "+adapter2"]
    records = finished(store, batch)
    assert [record.get("adapter_path") for record in records[::8]] == [None, *adapters]
    assert len({record["text"] for record in records[::8]}) == 3


def test_an_adapter_at_fault_is_the_field_of_the_record(
    serve: Callable[..., list[str]], store: Store, tmp_path: Path
) -> None:
    """Not the model: that one is served."""
    (tmp_path / "empty").mkdir()
    empty = str(tmp_path / "empty")
    batch = make_batch(store, [*lines(str(POCKET), 1), *lines(str(POCKET), 1, adapter_path=empty)])
    serve(Group(str(POCKET)), Group(str(POCKET), empty), limit=None)
    good, bad = finished(store, batch)
    assert "error" not in good
    assert (bad["error"]["code"], bad["error"]["param"]) == ("model_load_failed", "adapter_path")
    assert (bad["model"], bad["adapter_path"]) == (str(POCKET), empty)
    assert "is no adapter: it has no adapter_config.json" in bad["error"]["message"]


def test_an_adapter_that_no_worker_lists_waits(serve: Callable[..., list[str]], store: Store, tmp_path: Path) -> None:
    """A line cannot make a worker read a path that its owner did not name; the status says what it waits for."""
    adapter = str(save_adapter(tmp_path / "adapter", POCKET, seed=1))
    batch = make_batch(store, lines(str(POCKET), 2, adapter_path=adapter))
    assert serve(Group(str(POCKET)), limit=None) == ["+model"]
    workers = Workers(store.connection)
    info = store.batch(batch)
    assert (info.status, info.completed, info.failed) == ("in_progress", 0, 0)
    states = workers.read()
    assert BatchOutlook(info, workers.queues_of(batch, states), states).why_waiting == f"{NO_WORKER} {POCKET}+{adapter}"
    serve(Group(str(POCKET), adapter), limit=None)
    assert len(finished(store, batch)) == 2


def test_two_revisions_are_served_side_by_side(
    serve: Callable[..., list[str]], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NAME@REVISION is a model of its own for the worker and in the records, which tell the commit besides."""
    repository = tmp_path / "hub" / "models--someone--pocket"
    for revision, commit in (("v1", "1" * 40), ("main", "2" * 40)):
        shutil.copytree(POCKET, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    names = ["someone/pocket@v1", "someone/pocket"]
    batch = make_batch(store, [line for name in names for line in lines(name, 4)])
    assert serve(*map(Group, names), limit=3 * WEIGHTS) == ["+pocket@v1", "+pocket"]
    records = finished(store, batch)
    assert [(record["model"], record["model_revision"]) for record in records[::4]] == [
        (names[0], "1" * 40),
        (names[1], "2" * 40),
    ]


def test_the_published_state_says_what_is_loaded(
    store: Store, server_url: str, models: list[str], tmp_path: Path
) -> None:
    """Each loaded model with its bytes, a base that is shared with the first that has it; models left cold not."""
    adapter = str(save_adapter(tmp_path / "adapter", POCKET, seed=1))
    groups = (Group(models[0]), Group(models[0], adapter), Group(models[1]))
    engine = EngineSettings(decode_concurrency=8, memory_limit=ONE)
    service = Service(store.connection, connect(server_url), ServiceSettings(groups, name="mini", engine=engine))
    service.compute.start()
    try:
        for group in groups[:2]:
            service.compute.load(group).result(60)
        service.heartbeat._beat()
    finally:
        service.compute.stop()
        service.compute.join(30)
    state = orjson.loads(store.connection.get(worker_key(service.name)) or b"{}")
    assert state["models"] == [group.key for group in groups]
    assert [entry["model"] for entry in state["loaded"]] == [group.key for group in groups[:2]]
    base, own = (entry["bytes"] for entry in state["loaded"])
    assert abs(base - WEIGHTS) < 64_000
    assert 0 < own < WEIGHTS / 4
