"""Data frames of pandas through a batch and back."""

from __future__ import annotations

import pytest

from jobs.store.store import Store
from submit import Client
from tests.pool import MODEL, work

pytest.importorskip("pyarrow")
pytest.importorskip("jinja2")
pandas = pytest.importorskip("pandas")


def test_integers_with_gaps_are_exact(server_url: str, store: Store) -> None:
    """Of pandas' own columns with gaps, and of a result's where a line failed; no float holds these."""
    large = 2**53 + 1
    given = pandas.DataFrame({"q": ["a", ""], "n": pandas.array([large, None], "Int64"), "few": [1, 2]})
    with Client(server_url) as client:
        batch = client.submit(given, prompt="{{ q }}", seed=large, model=MODEL, on_bad_line="skip")
        work(store, batch.id)
        frame = batch.to_pandas()
    assert frame["n"].tolist() == [large, pandas.NA]
    assert frame["seed"].tolist() == [large, pandas.NA]
    kinds = [str(frame[name].dtype) for name in ("n", "few", "seed", "completion_tokens")]
    assert kinds == ["Int64", "int64", "UInt64", "Int64"]
