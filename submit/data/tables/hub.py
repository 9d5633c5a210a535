"""Data sets of the Hugging Face Hub, by its own library: ``hf://datasets/NAME[@REVISION][:SPLIT][:CONFIG]``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol

from jobs.errors import RefusedError
from jobs.params import did_you_mean
from submit.data.extras import require
from submit.data.formats import format_of, table_of_files
from submit.data.order import TableOrder
from submit.data.tables.table import Table

CONVERTED = "refs/convert/parquet"
"""Where the Hub keeps a copy in Parquet of most data sets: ``CONFIG/SPLIT/0000.parquet``."""
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
FORM = "hf://datasets/NAME[@REVISION][:SPLIT][:CONFIG]"

_ADDRESS = re.compile(
    r"hf://datasets/(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^:@]+))?(?::(?P<split>[\w.-]+))?(?::(?P<config>[\w.-]+))?"
)
_SPLIT_WORD = re.compile(rf"(?:^|[/_.-])({'|'.join(SPLITS)})(?=$|[/_.-])")


@dataclass(frozen=True, slots=True)
class Address:
    """What an address says of a data set."""

    name: str
    revision: str | None = None
    split: str | None = None
    config: str | None = None


class Hub(Protocol):
    """What is asked of the Hub."""

    def files(self, name: str, revision: str | None) -> tuple[str, list[str]]:
        """The commit of a data set's revision, and the files in it."""

    def download(self, name: str, commit: str, file: str) -> str:
        """Where a file lies on this machine."""


def address_of(text: str) -> Address:
    """The address as it is written.

    Raises:
        RefusedError: it is none.
    """
    if (match := _ADDRESS.fullmatch(text)) is None:
        raise RefusedError(f"{text:.200}: an address is {FORM}, such as hf://datasets/openai/gsm8k:test:main")
    return Address(**match.groupdict())


def open_hub_table(text: str, order: TableOrder, hub: Hub | None = None) -> Table:
    """The table of a data set. The Hub is asked for its files; those in the Hub's cache on this machine are not
    downloaded again.

    Raises:
        RefusedError: there is no such data set, split or configuration, or it cannot be downloaded.
    """
    address = address_of(text)
    if hub is None:
        require("huggingface_hub", text)
        hub = _Client()
    commit, files = _listed(hub, address)
    chosen = _chosen(address, files, order)
    paths = [hub.download(address.name, commit, file) for file in chosen]
    name = f"hf://datasets/{address.name}@{commit}"
    return table_of_files(paths, ":".join(filter(None, (name, address.split, address.config))), order)


def _listed(hub: Hub, address: Address) -> tuple[str, list[str]]:
    """The commit and the files that are read: the Hub's copy in Parquet where it has one, and no revision is asked."""
    if address.revision is None:
        try:
            commit, files = hub.files(address.name, CONVERTED)
        except LookupError:
            pass
        else:
            if found := _data_files(files):
                return commit, found
    try:
        commit, files = hub.files(address.name, address.revision)
    except LookupError as error:
        raise RefusedError(f"hf://datasets/{address.name}: {error}") from None
    if not (found := _data_files(files)):
        raise RefusedError(f"hf://datasets/{address.name}: has no files of Parquet, Arrow, CSV or JSON")
    return commit, found


def _data_files(files: Iterable[str]) -> list[str]:
    known = ("jsonl", "json", "csv", "tsv", "parquet", "arrow")
    no_data = ("dataset_infos.json", "dataset_info.json", "state.json", "package.json", "config.json")
    return sorted(file for file in files if format_of(file) in known and PurePosixPath(file).name not in no_data)


def _chosen(address: Address, files: list[str], order: TableOrder) -> list[str]:
    """The files of the split and the configuration that are asked for, or that are the only ones."""
    by_config: dict[str, list[str]] = {}
    for file in files:
        by_config.setdefault(_config(file), []).append(file)
    files = by_config[_pick("configuration", address.config, by_config, "default", f":SPLIT:{next(iter(by_config))}")]
    by_split: dict[str, list[str]] = {}
    for file in files:
        by_split.setdefault(_split(file), []).append(file)
    files = by_split[_pick("split", address.split, by_split, None, f":{next(iter(by_split))}")]
    formats = {format_of(file) for file in files}
    if len(formats) > 1 and order.input_format is None and "parquet" in formats:
        return [file for file in files if format_of(file) == "parquet"]
    return files


def _pick(what: str, asked: str | None, known: dict[str, list[str]], usual: str | None, example: str) -> str:
    names = ", ".join(known)
    if asked is not None:
        if asked not in known:
            raise RefusedError(
                f"the data set has no {what} '{asked}'{did_you_mean(asked, known)} (it has {names:.300})"
            )
        return asked
    if len(known) == 1:
        return next(iter(known))
    if usual in known and usual is not None:
        return usual
    raise RefusedError(f"the data set has several {what}s ({names:.300}): say which, such as {example} at the end")


def _config(file: str) -> str:
    """The folder of a file, but for those that name a split, or hold all data."""
    parts = [part for part in PurePosixPath(file).parts[:-1] if part != "data" and _SPLIT_WORD.fullmatch(part) is None]
    return "/".join(part.removeprefix("partial-") for part in parts) or "default"


def _split(file: str) -> str:
    """The split that a file's path names; ``train`` where it names none."""
    found = _SPLIT_WORD.findall(str(PurePosixPath(file).with_suffix("")))
    return str(found[-1]) if found else "train"


class _Client:
    """The Hub by its own library."""

    def __init__(self) -> None:
        from huggingface_hub import HfApi

        self._api = HfApi()

    def files(self, name: str, revision: str | None) -> tuple[str, list[str]]:
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        try:
            info: Any = self._api.dataset_info(name, revision=revision)
        except RevisionNotFoundError:
            raise LookupError(f"there is no revision '{revision}'") from None
        except GatedRepoError:
            raise LookupError("its owner asks for consent first: give it on its page, then `hf auth login`") from None
        except RepositoryNotFoundError:
            raise LookupError("there is no such data set, or it is private: `hf auth login`") from None
        except HfHubHTTPError as error:
            raise LookupError(_first_line(error)) from None
        except Exception as error:
            # The library's transport has errors of its own, which differ between its versions.
            raise RefusedError(f"hf://datasets/{name}: the Hub cannot be asked: {_first_line(error)}") from None
        return str(info.sha), [sibling.rfilename for sibling in info.siblings or ()]

    def download(self, name: str, commit: str, file: str) -> str:
        from huggingface_hub import hf_hub_download

        try:
            return str(hf_hub_download(name, file, repo_type="dataset", revision=commit))
        except Exception as error:
            raise RefusedError(f"hf://datasets/{name}: {file} cannot be downloaded: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return f"{text.splitlines()[0]:.300}"
