"""Folders that ``datasets.save_to_disk`` wrote: their files of Arrow, in the order that ``state.json`` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs.errors import RefusedError
from submit.data.extras import require
from submit.data.tables.arrow_table import ArrowFiles, arrow_table

MOST_BYTES = 16 << 20


def saved_table(folder: Path) -> ArrowFiles:
    """The table of a saved data set.

    Raises:
        RefusedError: it is damaged, or several splits.
    """
    require("pyarrow", "a saved data set")
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = _json(splits).get("splits", [])
        example = f"{folder}/{names[0]}" if names else "one of its folders"
        raise RefusedError(f"{folder}: holds the splits {', '.join(map(str, names))}; take one of them: {example}")
    state = _json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise RefusedError(f"{folder}: has an order of its own; save it with dataset.flatten_indices() first")
    listed = [file.get("filename") for file in state.get("_data_files", []) if isinstance(file, dict)]
    files = [name for name in listed if isinstance(name, str) and Path(name).name == name]
    if not files or len(files) < len(listed):
        raise RefusedError(f"{folder}/state.json: names no files of data in the folder")
    return arrow_table([str(folder / name) for name in files], str(folder))


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise RefusedError(f"{path}: is too large to be what datasets wrote")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RefusedError(f"{path}: cannot be read: {error.strerror or error}") from None
    except RecursionError:
        raise RefusedError(f"{path}: is nested too deeply to be what datasets wrote") from None
    except ValueError as error:
        raise RefusedError(f"{path}: is not valid JSON: {error!s:.100}") from None
    if not isinstance(value, dict):
        raise RefusedError(f"{path}: is no JSON object")
    return value
