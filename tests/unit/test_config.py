"""The settings file: keys are the names of flags, and what is no setting is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import RefusedError
from jobs.settings import read_settings
from submit.commands.submit import command


def settings(folder: Path, text: str) -> dict[str, object]:
    """What ``promptmill submit`` takes from a settings file of this text."""
    path = folder / "promptmill.toml"
    path.write_text(text)
    return read_settings(path, "submit", command.params)


def test_keys_are_flags_and_a_commands_table_wins(tmp_path: Path) -> None:
    """Dashes and underscores are one; a flag that may be given several times takes one value too."""
    found = settings(
        tmp_path, 'redis = "redis://a"\nmax-tokens = 1\nwatch = true\n[submit]\nmax_tokens = 2\nstop = "x"\n'
    )
    assert found == {"redis_url": "redis://a", "max_tokens": 2, "stop": ["x"]}


@pytest.mark.parametrize("text", ["submit = 3", "[sumbit]", "[submit]\ntemperatur = 1", "=", "[temperature]"])
def test_what_is_no_setting_is_refused(tmp_path: Path, text: str) -> None:
    """The message names the file."""
    with pytest.raises(RefusedError, match=r"promptmill\.toml"):
        settings(tmp_path, text)
