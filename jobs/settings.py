"""The settings file: values for flags that the command line and the environment leave open."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jobs.errors import RefusedError

__all__ = ["COMMANDS", "config_file", "read_settings"]

COMMANDS = (
    "run",
    "submit",
    "worker",
    "status",
    "results",
    "check",
    "cancel",
    "retry",
    "priority",
    "pause",
    "resume",
    "purge",
    "deploy",
    "doctor",
    "workers",
    "schedule",
    "scheduler",
)
"""The commands of ``promptmill``; the file may have a table for each."""


class Parameter(Protocol):
    """What click says of a parameter of a command: an option's ``opts`` are its flags."""

    @property
    def name(self) -> str | None: ...
    @property
    def opts(self) -> Sequence[str]: ...
    @property
    def multiple(self) -> bool: ...
    @property
    def param_type_name(self) -> str: ...


def config_file(environ: Mapping[str, str], platform: str = sys.platform) -> Path:
    """Where settings are read from when ``--config`` says nothing."""
    if platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "promptmill" / "promptmill.toml"
    return Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "promptmill" / "promptmill.toml"


def read_settings(path: Path, command: str, parameters: Iterable[Parameter]) -> dict[str, Any]:
    """Values for a command's parameters, by name: of the file's top-level keys those that are flags of it, and all of
    the table of its name.

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
    options = [parameter for parameter in parameters if parameter.param_type_name == "option"]
    flags = {flag.removeprefix("--"): option for option in options for flag in option.opts}
    own, settings = document.get(command, {}), {}
    for key, value in (document | own).items():
        option = flags.get(key.replace("_", "-"))
        if option is not None and option.name is not None:
            settings[option.name] = [value] if option.multiple and isinstance(value, str) else value
        elif key in own:
            raise RefusedError(f"{path}: '{key}' in [{command}] is not a flag of `promptmill {command}`")
    return settings
