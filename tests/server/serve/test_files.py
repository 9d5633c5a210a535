"""The folder of files and Redis: a file is in both, or in neither, whatever breaks on the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from redis.exceptions import OutOfMemoryError

from jobs.store.store import Store
from serve.files.store import PART_S, Files, StoredFile
from tests.server.serve.conftest import Client

UPLOAD = {"files": {"file": ("x.jsonl", b"{}\n")}, "data": {"purpose": "batch"}}
FILE = StoredFile(f"file-{'a' * 24}", "x.jsonl", 3, 1.0, "batch", "")


def test_a_folder_that_takes_nothing_is_said(
    client_of: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full, or not to be written to: 507, to be tried again, and nothing is kept anywhere."""
    client = client_of()
    folder = tmp_path / "files"

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "open"):
        with monkeypatch.context() as patch:
            patch.setattr(f"os.{name}", full)
            answer = client.post("/v1/files", **UPLOAD)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full")
        assert "No space left" in answer.json()["error"]["message"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        assert client.post("/v1/files", **UPLOAD).status_code == 507  # type: ignore[arg-type]
    assert list(folder.iterdir()) == []
    assert client.get("/v1/files").json()["data"] == []


def test_a_redis_that_is_full_is_said(client_of: Client, store: Store, tmp_path: Path) -> None:
    """503 with its own code, to be tried again; what was sent is not kept."""
    client = client_of()
    store.connection.config_set("maxmemory", 1)
    store.connection.config_set("maxmemory-policy", "noeviction")
    try:
        answer = client.post("/v1/files", **UPLOAD)  # type: ignore[arg-type]
        with pytest.raises(OutOfMemoryError):
            store.connection.set("x", "y")
    finally:
        store.connection.config_set("maxmemory", 0)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_full")
    assert answer.headers["retry-after"]
    assert [path.stat().st_size for path in (tmp_path / "files").iterdir()] == [0]
    assert client.get("/v1/files").json()["data"] == []


@pytest.mark.parametrize("died", ["before it was known", "once it was known", "while it was removed"])
def test_what_a_server_left_that_died_is_removed(store: Store, tmp_path: Path, died: str) -> None:
    """Its bytes and what Redis knows, after an hour; a file that is whole stays."""
    files = Files(store.connection, tmp_path)
    whole = StoredFile(f"file-{'b' * 24}", "x.jsonl", 3, 1.0, "batch", "")
    for file in (FILE, whole):
        files.part(file.id).write_bytes(b"{}\n")
        files.add(file)
    files.path(FILE).replace(files.part(FILE.id))
    if died == "before it was known":
        files._forget(FILE)
    files.tidy()
    assert files.part(FILE.id).exists()  # it may be under way
    old = files.part(FILE.id).stat().st_mtime - PART_S - 1
    os.utime(files.part(FILE.id), (old, old))
    files.tidy()
    assert list(tmp_path.iterdir()) == [files.path(whole)]
    assert not store.connection.exists(f"promptmill:file:{FILE.id}")
    assert store.connection.zrange("promptmill:files", 0, -1) == [whole.id.encode()]
