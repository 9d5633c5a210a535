"""Doing one thing to each of the things that a command line names, batches above all."""

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


def called(batch: Batch) -> str:
    """A batch for a person: ``nightly (b_...)``, or ``batch b_...`` where it has no name."""
    return f"batch {batch.id}" if batch.name is None else f"{printable(batch.name)} ({batch.id})"


def for_each(names: Iterable[str], act: Callable[[str], None]) -> int:
    """Do ``act`` for each of these names, once; 0, or 2 where one was refused: stderr says which and why."""
    status = 0
    for name in dict.fromkeys(names):
        try:
            act(name)
        except RefusedError as error:
            click.echo(f"promptmill: {error}", err=True)
            status = error.exit_status
    return status


def each_batch(store: Store, names: Iterable[str], act: Callable[[Batch], str], *, as_json: bool) -> int:
    """Do ``act`` to each batch of these ids or names and print what it returns; 0, or 2 where one was refused.

    With ``as_json`` each batch is printed as a line, as it is afterwards; of one that is gone, that it was purged.
    """

    def act_on(name: str) -> None:
        batch = store.find(name)
        click.echo(act(batch), err=True)
        if as_json:
            try:
                shown = store.batch(batch.id).as_dict(store.now())
            except BatchNotFoundError:
                shown = {"id": batch.id, "purged": True}
            click.echo(orjson.dumps(shown).decode())

    return for_each(names, act_on)
