"""Workers that RQ lists and that say nothing, on a real server."""

from __future__ import annotations

from datetime import UTC, datetime

from redis import Redis

from jobs.redis.connect import connect
from jobs.store.store import Store
from submit.status.workers import LostWorker, read_lost_workers
from tests.servers import running_server

NOW = 1_790_000_000.0


def register(connection: Redis, name: str, *, age: float = 60.0, **fields: str) -> None:
    """As RQ registers a worker; its last heartbeat is so old."""
    heartbeat = datetime.fromtimestamp(NOW - age, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    known = {"last_heartbeat": heartbeat, "queues": "promptmill:normal:m,promptmill:low:m", "hostname": "mini"}
    connection.sadd("rq:workers", f"rq:worker:{name}")
    connection.hset(f"rq:worker:{name}", mapping={**known, **fields})


def test_registered_workers_that_publish_nothing_are_silent(store: Store) -> None:
    """With the age of their last heartbeat; the live ones, and those that have just started, are not."""
    for name, age in (("mini.1", 60.0), ("studio.2", 75.0), ("new.3", 2.0)):
        register(store.connection, name, age=age)
    found = read_lost_workers(store.connection, {"mini.1"}, NOW)
    assert found == [LostWorker("studio.2", 75.0, "mini")]


def test_what_is_not_a_worker_of_ours_is_left_out(store: Store) -> None:
    """Other users of RQ, entries without a registration, fields of another kind or size."""
    register(store.connection, "other.1", queues="default,promptmill2")
    register(store.connection, "bad.2", last_heartbeat="yesterday")
    register(store.connection, "huge.3", queues="promptmill:" + "x" * 70_000)
    store.connection.sadd("rq:workers", "rq:worker:gone.4", "nonsense")
    store.connection.sadd("rq:workers", "rq:worker:text.5")
    store.connection.set("rq:worker:text.5", "x")
    register(store.connection, "evil.6", hostname="a\x1b[2J")
    assert read_lost_workers(store.connection, frozenset(), NOW) == [LostWorker("evil.6", 60.0, "a?[2J")]


def test_a_registry_of_another_kind_is_no_error(store: Store) -> None:
    """Somebody wrote a string under the registry's name."""
    store.connection.set("rq:workers", "x")
    assert read_lost_workers(store.connection, frozenset(), NOW) == []


def test_a_user_without_rights_to_the_registry_sees_none() -> None:
    """The submitter's user of deploy/redis may not read it: the live workers are shown all the same."""
    with running_server() as url:
        admin = connect(url)
        register(admin, "mini.1")
        admin.execute_command(
            "ACL", "SETUSER", "submitter", "on", ">pw", "~promptmill:*", "~rq:queues", "+@all", "-@dangerous", "+info"
        )
        limited = connect(url.replace("unix://", "unix://submitter:pw@"))
        try:
            assert read_lost_workers(admin, frozenset(), NOW) == [LostWorker("mini.1", 60.0, "mini")]
            assert read_lost_workers(limited, frozenset(), NOW) == []
        finally:
            limited.close()
            admin.close()
