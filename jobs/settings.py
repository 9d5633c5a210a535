"""The settings file: values for flags that the command line and the environment leave open."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import RefusedError

__all__ = ["COMMANDS", "Flag", "config_file", "read_settings"]

COMMANDS = ("run", "submit", "worker", "status", "results", "check")
"""The commands of ``promptmill``; the file may have a table for each."""


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag of a command: its parameter's name, and whether it takes several values."""

    parameter: str
    multiple: bool


def config_file(environ: Mapping[str, str], platform: str = sys.platform) -> Path:
    """Where settings are read from when ``--config`` says nothing."""
    if platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "promptmill" / "promptmill.toml"
    return Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "promptmill" / "promptmill.toml"


def read_settings(path: Path, command: str, flags: Mapping[str, Flag]) -> dict[str, Any]:
    """Values for a command's parameters: of the file's top-level keys those that are flags of it, and all of the
    table of its name. ``flags`` are the command's, without their dashes.

    Raises:
        RefusedError: the file is not TOML, cannot be read, or has a table for no command or a key for no flag.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RefusedError(f"{path}: cannot be read as TOML: {error}") from None
    for key, value in document.items():
        if isinstance(value, dict) != (key in COMMANDS):
            raise RefusedError(f"{path}: '{key}' is no setting; there is a table for each of {', '.join(COMMANDS)}")
    own, settings = document.get(command, {}), {}
    for key, value in (document | own).items():
        flag = flags.get(key.replace("_", "-"))
        if flag is not None:
            settings[flag.parameter] = [value] if flag.multiple and isinstance(value, str) else value
        elif key in own:
            raise RefusedError(f"{path}: '{key}' in [{command}] is not a flag of `promptmill {command}`")
    return settings
