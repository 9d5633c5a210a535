"""The settings file: keys are the names of flags, and what is no setting is said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from jobs.app.settings import COMMANDS, read_settings
from jobs.errors import RefusedError
from submit.cli import main
from submit.commands import MODULES, all_flags, load
from submit.commands.prompts.submit import command
from worker.cli import command as worker_command, main as worker_main


def settings(folder: Path, text: str) -> dict[str, object]:
    """What ``promptmill submit`` takes from a settings file of this text."""
    path = folder / "promptmill.toml"
    path.write_text(text)
    return read_settings(path, "submit", command.params, all_flags)


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


def flags(command: click.Command) -> Iterator[str]:
    """The flags of a command and of its subcommands that its help shows."""
    if isinstance(command, click.Group):
        for part in command.commands.values():
            yield from flags(part)
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            yield from (flag[2:] for flag in parameter.opts if flag.startswith("--"))


def test_flags_are_those_of_all_commands() -> None:
    """The keys that may stand at the top are the flags of all commands, the worker's too."""
    found = set(flags(worker_command))
    for name in COMMANDS:
        found |= set(flags(load(name)))
    assert sorted(all_flags()) == sorted(found)
    assert sorted(MODULES) == sorted(COMMANDS)


def test_keys_that_any_table_names_ask_nobody(tmp_path: Path) -> None:
    """A light command imports no other for keys that are its own, parameters, or a worker's options."""
    path = tmp_path / "promptmill.toml"
    path.write_text('redis = "redis://a"\nmodel = "m"\ntemperature = 1\ndecode-concurrency = 3\nautotune = true\n')
    assert read_settings(path, "status", load("status").params, lambda: pytest.fail("it asked")) == {
        "redis_url": "redis://a"
    }


@pytest.mark.parametrize("key", ["check", "pool"])
def test_hidden_flags_are_no_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    """A worker that only checks its flags, or has private queues, is nothing that a file of settings may ask for."""
    path = tmp_path / "promptmill.toml"
    path.write_text(f'{key} = "true"')
    assert worker_main(["--config", str(path), "--model", "m", "--redis", "redis://nowhere"]) == 2
    assert f"'{key}' is " in capsys.readouterr().err


def test_a_worker_takes_the_keys_of_other_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is a flag of a command that the worker does not know is no misspelt key."""
    path = tmp_path / "promptmill.toml"
    path.write_text('on-bad-line = "skip"\nkeep = "2d"\n')
    assert worker_main(["--config", str(path), "--model", "m", "--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('rediss = "x"', "'rediss' is no flag of any command; did you mean 'redis'?"),
        ("max_tokns = 3", "'max_tokns' is no flag of any command; did you mean 'max-tokens'?"),
        ("[submit]\ntemperatur = 1", "is not a flag of `promptmill submit`; did you mean 'temperature'?"),
        ("[sumbit]", "[sumbit] is no command; did you mean 'submit'?"),
    ],
)
def test_a_misspelt_key_is_refused_by_all_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    """Nothing is sent to another Redis than was meant: exit 2, with what was meant. The worker reads the same file."""
    path = tmp_path / "promptmill.toml"
    path.write_text(text)
    assert main(["--config", str(path), "submit", "in.jsonl", "--model", "m"]) == 2
    assert said in capsys.readouterr().err
    if "submit]" not in text:
        assert worker_main(["--config", str(path), "--model", "m"]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('priority = "hig"', "Invalid value for 'priority' in {}: 'hig' is not one of"),
        ("redis = 5", "Invalid value for 'redis' in {}: 5 is not a Redis URL"),
        ("[submit]\nkeep = 0", "Invalid value for 'keep' in {}: must be above 0"),
        ("[submit]\ntemperature = 900", "'temperature' in {} must be float 0..100, not 900"),
    ],
)
def test_a_bad_value_is_blamed_on_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    """Not on a flag that nobody typed."""
    path = tmp_path / "promptmill.toml"
    path.write_text(text)
    assert main(["--config", str(path), "submit", "in.jsonl", "--model", "m"]) == 2
    assert said.format(path) in capsys.readouterr().err


def test_the_schedulers_own_config_is_blamed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file that a daemon is given behind the command's name."""
    path = tmp_path / "promptmill.toml"
    path.write_text('[scheduler]\nlog-format = "xml"')
    assert main(["scheduler", "--config", str(path)]) == 2
    assert f"Invalid value for 'log-format' in {path}: 'xml' is not one of" in capsys.readouterr().err


def test_a_bad_value_is_blamed_on_its_variable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the name that it has in the environment, also by the worker, and on the flag where one was typed."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("PROMPTMILL_SUBMIT_PRIORITY", "hig")
    assert main(["submit", "in.jsonl", "--model", "m"]) == 2
    assert "Invalid value for PROMPTMILL_SUBMIT_PRIORITY: 'hig'" in capsys.readouterr().err
    assert main(["submit", "in.jsonl", "--priority", "lo"]) == 2
    assert "Invalid value for '--priority': 'lo'" in capsys.readouterr().err
    monkeypatch.setenv("PROMPTMILL_REDIS_URL", "localhost:6379")
    for entry, arguments in ((main, ["status"]), (worker_main, ["--model", "m"])):
        assert entry(arguments) == 2
        said = capsys.readouterr().err
        assert "Invalid value for PROMPTMILL_REDIS_URL: localhost:6379 is not a Redis URL: write redis://local" in said


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In words, not by a number."""
    path = tmp_path / "none.toml"
    assert main(["--config", str(path), "status"]) == 2
    assert capsys.readouterr().err == f"promptmill: {path}: there is no such file\n"
