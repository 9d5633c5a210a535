"""The settings file: values for flags that the command line and the environment leave open."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from jobs.app.worker_options import WORKER_OPTIONS
from jobs.errors import RefusedError
from jobs.params import ALIASES, PARAMETERS, did_you_mean

COMMANDS = (
    "run",
    "submit",
    "status",
    "results",
    "check",
    "cancel",
    "retry",
    "priority",
    "pause",
    "resume",
    "purge",
    "worker",
    "workers",
    "tune",
    "schedule",
    "scheduler",
    "serve",
    "key",
    "doctor",
    "deploy",
)
"""The commands of ``promptmill``; the file may have a table for each."""

TABLED = frozenset((*PARAMETERS, *ALIASES, *(row.name for row in WORKER_OPTIONS if not row.hidden)))
"""Flags that are in a table, with underscores."""


def config_file(environ: Mapping[str, str], platform: str = sys.platform) -> Path:
    """Where settings are read from when ``--config`` says nothing."""
    if platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "promptmill" / "promptmill.toml"
    return Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "promptmill" / "promptmill.toml"


def read_settings(
    path: Path, command: str, parameters: Iterable[Any], all_flags: Callable[[], Collection[str]]
) -> dict[str, Any]:
    """Values for a command's parameters, which are click's, by name: of the file's top-level keys those that are flags
    of it, and all of the table of its name.

    ``all_flags`` knows the flags of all commands, without dashes before them. It takes a while, and is asked only where
    a top-level key is neither a flag of this command nor in a table of flags.

    Raises:
        RefusedError: the file is not TOML, cannot be read, or has a table for no command or a key for no flag.
    """
    document = read_toml(path)
    options = [parameter for parameter in parameters if parameter.param_type_name == "option"]
    flags = {flag.removeprefix("--"): option for option in options for flag in option.opts}
    shown = {flag for flag, option in flags.items() if not getattr(option, "hidden", False)}
    for key, value in document.items():
        if isinstance(value, dict):
            _check_table(path, key)
        elif key.replace("_", "-") not in shown and key.replace("-", "_") not in TABLED:
            _check_key(path, key, all_flags())
    own, settings = document.get(command, {}), {}
    for key, value in (document | own).items():
        option = flags.get(key.replace("_", "-"))
        if option is not None and option.name is not None:
            settings[option.name] = [value] if option.multiple and isinstance(value, str) else value
        elif key in own:
            meant = did_you_mean(key.replace("_", "-"), (flag for flag in flags if len(flag) > 1))
            raise RefusedError(f"{path}: '{key}' in [{command}] is not a flag of `promptmill {command}`{meant}")
    return settings


def read_toml(path: Path) -> dict[str, Any]:
    """What a file of TOML says.

    Raises:
        RefusedError: it is not TOML, or cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RefusedError(f"{path}: there is no such file") from None
    except OSError as error:
        raise RefusedError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RefusedError(f"{path}: cannot be read as TOML: {error}") from None
    except RecursionError:
        raise RefusedError(f"{path}: cannot be read as TOML: it is nested too deeply") from None


def _check_table(path: Path, name: str) -> None:
    if name not in COMMANDS:
        meant = did_you_mean(name, COMMANDS) or f"; there is a table for each of {', '.join(COMMANDS)}"
        raise RefusedError(f"{path}: [{name}] is no command{meant}")


def _check_key(path: Path, key: str, all_flags: Collection[str]) -> None:
    """See that a top-level key is a flag of some command."""
    flag = key.replace("_", "-")
    if key in COMMANDS and flag not in all_flags:
        raise RefusedError(f"{path}: '{key}' is a command, and has a table: [{key}]")
    if flag not in all_flags:
        meant = did_you_mean(flag, sorted(all_flags)) or "; keys are the names of flags"
        raise RefusedError(f"{path}: '{key}' is no flag of any command{meant}")


def origin(context: Any, parameter: Any, environ: Mapping[str, str]) -> str | None:
    """What set a parameter that was not set on the command line, as messages name it: a key of the settings file or
    an environment variable; None for all others. The context is click's, its ``obj`` the path of the file."""
    source = context.get_parameter_source(parameter.name)
    if source is not None and source.name == "DEFAULT_MAP":
        return f"'{parameter.opts[0].lstrip('-')}' in {context.obj}"
    if source is None or source.name != "ENVIRONMENT":
        return None
    named = [parameter.envvar] if isinstance(parameter.envvar, str) else list(parameter.envvar or ())
    by_rule = f"{context.auto_envvar_prefix}_{parameter.name.upper()}"
    return next((name for name in (*named, by_rule) if environ.get(name)), by_rule)
