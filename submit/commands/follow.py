"""Following a batch from the command line: its results into files, its progress on stderr."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from jobs.batch import Batch
    from jobs.store.store import Store
    from submit.results.destination import Destination
    from submit.results.summary import Tally


def follow_with_progress(
    store: Store, batch_id: str, destination: Destination, timeout: float | None
) -> tuple[Batch, Tally]:
    """Write the results as they come, until the batch is done. Whoever interrupts this reads that the batch goes on,
    and how to get the rest."""
    from submit.results.follow import follow_results
    from submit.status.progress import Progress

    # Records on the same terminal would tear the bar to pieces.
    progress = None if destination.out is None and sys.stdout.isatty() else Progress()
    try:
        return follow_results(store, batch_id, destination, progress=progress, timeout=timeout)
    except KeyboardInterrupt:
        flags = shlex.join([*(("-o", "OUT") if destination.out is None else ()), *destination.flags])
        click.echo(f"\nthe batch goes on; `promptmill results {batch_id} {flags}` writes the rest", err=True)
        raise
    finally:
        if progress is not None:
            progress.close()
