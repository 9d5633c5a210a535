"""Where a table lies: in files, in a folder that ``datasets`` saved, or on the Hub."""

from __future__ import annotations

from pathlib import Path

from submit.data.formats import HUB, shards, table_of_files
from submit.data.order import TableOrder
from submit.data.tables.table import Table

SAVED = ("dataset_info.json", "state.json", "dataset_dict.json")


def open_table(source: str, order: TableOrder) -> Table:
    """The table of a path, a folder, a glob of shards, or ``hf://datasets/NAME``.

    Raises:
        RefusedError: there is none, its format is not known, or it cannot be read.
    """
    if source.startswith(HUB):
        from submit.data.tables.hub import open_hub_table

        return open_hub_table(source, order)
    path = Path(source)
    if path.is_dir() and (order.input_format == "folder" or any((path / name).exists() for name in SAVED)):
        from submit.data.tables.saved_folder import saved_table

        return saved_table(path)
    paths = shards(source)
    return table_of_files(paths, source, order)
