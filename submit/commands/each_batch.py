"""Doing one thing to each of the batches that a command line names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click
import orjson

from jobs.errors import BatchNotFoundError, RefusedError
from submit.status.text import printable

if TYPE_CHECKING:
    from jobs.batch import Batch
    from jobs.store.store import Store

__all__ = ["called", "each_batch"]


def called(batch: Batch) -> str:
    """A batch for a person: ``nightly (b_...)``, or ``batch b_...`` where it has no name."""
    return f"batch {batch.id}" if batch.name is None else f"{printable(batch.name)} ({batch.id})"


def each_batch(store: Store, names: Iterable[str], act: Callable[[Batch], str], *, as_json: bool) -> int:
    """Do ``act`` to each batch of these ids or names and say what it answers; 0, or 2 where one was refused.

    With ``as_json`` each batch is printed as a line, as it is afterwards; of one that is gone, that it was purged.
    """
    status = 0
    for name in dict.fromkeys(names):
        try:
            batch = store.find(name)
            said = act(batch)
        except RefusedError as error:
            click.echo(f"promptmill: {error}", err=True)
            status = error.exit_status
            continue
        click.echo(said, err=True)
        if as_json:
            try:
                batch = store.batch(batch.id)
            except BatchNotFoundError:
                click.echo(orjson.dumps({"id": batch.id, "purged": True}).decode())
            else:
                click.echo(orjson.dumps(batch.as_dict(store.now())).decode())
    return status
