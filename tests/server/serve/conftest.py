"""The application of a server on a real Redis, without sockets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from jobs.store.store import Store
from serve.access.keyfile import Key, changed_keys, digest
from serve.server import ServerParts
from serve.settings import Limits, ServeSettings

Client = Callable[..., TestClient]


@pytest.fixture
def client_of(store: Store, tmp_path: Path) -> Client:
    """Makes a client of an application with these settings."""

    def make(*, limits: Limits | None = None, **settings: Any) -> TestClient:
        made = ServeSettings(tmp_path / "files", limits=limits or Limits(), **settings)
        return TestClient(ServerParts(store, made).app(), base_url="http://localhost", raise_server_exceptions=False)

    return make


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A file of keys: `ann` and `ben`, `limited` to one model, `boss`, who is an admin, and `late`, which has
    expired. Each one's key is its name and `-secret`."""
    path = tmp_path / "keys.json"
    with changed_keys(path) as made:
        for name in ("ann", "ben", "boss", "late", "limited"):
            made.append(
                Key(
                    name,
                    digest(f"{name}-secret"),
                    0.0,
                    expires_at=1.0 if name == "late" else None,
                    models=("a/b",) if name == "limited" else (),
                    admin=name == "boss",
                )
            )
    return path


def as_key(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}-secret"}
