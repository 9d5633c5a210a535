"""Templates as users give them: a file of TOML or YAML, or texts of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.app.settings import read_toml
from jobs.errors import RefusedError
from submit.data.extras import require

MOST_BYTES = 4 << 20


def template_of(
    path: Path | None = None, *, prompt: str | None = None, user: str | None = None, system: str | None = None
) -> dict[str, Any] | None:
    """The fields of a line as templates, from one of these; None where none is given.

    Raises:
        RefusedError: more than one is given, or the file is no template.
    """
    for name, text in (("prompt", prompt), ("user", user), ("system", system)):
        if not isinstance(text, str | None):
            raise RefusedError(f"{name} must be a text, not {text!r:.40}")
    given = [
        name for name, value in (("--template", path), ("--prompt", prompt), ("--user", user)) if value is not None
    ]
    if len(given) > 1:
        raise RefusedError(f"{' and '.join(given)} say the same thing: give one of them")
    if system is not None and user is None:
        raise RefusedError("--system goes with --user: it is the system message before the user's")
    if path is not None:
        return read_template(path)
    if prompt is not None:
        return {"prompt": prompt}
    if user is None:
        return None
    first = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*first, {"role": "user", "content": user}]}


def read_template(path: Path) -> dict[str, Any]:
    """What a file of TOML or YAML says of a line.

    Raises:
        RefusedError: it cannot be read, or says something else.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise RefusedError(f"{path}: has more than {MOST_BYTES >> 20} MiB, which no template has")
    except OSError as error:
        raise RefusedError(f"{path}: cannot be read: {error.strerror or error}") from None
    fields = read_toml(path) if path.suffix.lower() == ".toml" else _read_yaml(path)
    if not isinstance(fields, Mapping) or not all(isinstance(name, str) for name in fields):
        raise RefusedError(f"{path}: holds the fields of a line, such as\nprompt: 'Summarise: {{{{ text }}}}'")
    return dict(fields)


def _read_yaml(path: Path) -> Any:
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise RefusedError(f"{path}: a template is a file of TOML or YAML: give it the suffix .toml, .yaml or .yml")
    require("yaml", f"{path}, which is YAML (TOML does without),")
    import yaml

    class Loader(yaml.SafeLoader):
        """Without aliases: a few of them make billions of values."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):  # type: ignore[no-untyped-call]
                raise yaml.YAMLError("aliases (*name) are not taken")
            return super().compose_node(parent, index)  # type: ignore[no-untyped-call]

    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)  # type: ignore[no-untyped-call]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RefusedError(f"{path}: cannot be read as YAML: {error}") from None
    except RecursionError:
        raise RefusedError(f"{path}: cannot be read as YAML: it is nested too deeply") from None
