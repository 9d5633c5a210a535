"""Which format a source has: by its suffix, by what a folder holds, or as the user says."""

from __future__ import annotations

import glob
from pathlib import Path

from jobs.errors import RefusedError
from submit.data.extras import require
from submit.data.order import TableOrder
from submit.data.tables.table import Table

SUFFIXES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv",
    ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
}  # fmt: skip
PACKED = (".gz", ".zst")
HUB = "hf://"


def format_of(path: str) -> str | None:
    """The format that a file's suffix says; None where it says none."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes[-2:]]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def is_table(source: str, order: TableOrder) -> bool:
    """Whether a source is to be read as a table: it is one by its name or its kind, or something is said of rows."""
    if order.asks or source.startswith(HUB):
        return True
    if source == "-":
        return False
    if format_of(source) in ("csv", "tsv", "parquet", "arrow"):
        return True
    path = Path(source)
    try:
        if path.is_dir():
            return True
        if format_of(source) == "json":
            return _begins_array(path)
        return not path.exists() and glob.has_magic(source)
    except (OSError, ValueError):
        return False  # reading it says what is wrong


def _begins_array(path: Path) -> bool:
    if path.suffix.lower() in PACKED:
        from submit.input.reader import PromptFile

        with PromptFile(path) as file:
            start = next(file.blocks(), b"")
    else:
        with path.open("rb") as plain:
            start = plain.read(4096)
    return start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def table_of_files(paths: list[str], name: str, order: TableOrder) -> Table:
    """The table of files that are one data set, in this order."""
    known = {order.input_format} if order.input_format else {format_of(path) or "jsonl" for path in paths}
    if len(known) > 1:
        raise RefusedError(f"{name}: has files of several formats ({', '.join(sorted(known))}); give one, as in *.csv")
    fmt = known.pop()
    if fmt in ("parquet", "arrow"):
        require("pyarrow", f"{name}, which is {fmt.capitalize()},")
    match fmt:
        case "csv" | "tsv":
            from submit.data.tables.csv_table import CsvTable

            return CsvTable(paths, name, "\t" if fmt == "tsv" and order.delimiter is None else order.delimiter,
                            order.encoding)  # fmt: skip
        case "parquet":
            from submit.data.tables.arrow_table import parquet_table

            return parquet_table(paths, name)
        case "arrow":
            from submit.data.tables.arrow_table import arrow_table

            return arrow_table(paths, name)
        case "json":
            from submit.data.tables.json_array import JsonArrays

            return JsonArrays(paths, name)
    from submit.data.tables.json_table import JsonLines

    return JsonLines(paths, name)


def shards(source: str) -> list[str]:
    """The files of a path: itself, those of a folder, or those that a glob matches, in the order of their names.

    Raises:
        RefusedError: there are none.
    """
    path = Path(source)
    try:
        if path.is_dir():
            found = [str(file) for file in path.iterdir() if file.is_file() and format_of(str(file)) is not None]
        elif not path.exists() and glob.has_magic(source):
            found = [file for file in glob.glob(source, recursive=True) if Path(file).is_file()]  # noqa: PTH207
        else:
            return [source]
    except (OSError, ValueError) as error:
        raise RefusedError(f"{source}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not found and not path.is_dir():
        raise RefusedError(f"{source}: there are no such files")
    if not found:
        raise RefusedError(f"{source}: holds no files of a format that is known ({', '.join(SUFFIXES)})")
    return sorted(found)
