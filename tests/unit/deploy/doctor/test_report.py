"""How the doctor's findings are shown."""

from __future__ import annotations

import pytest

from deploy.doctor.finding import Section, as_object, failed, good, lines, skipped, summary, unsure

SECTION = Section(
    "redis",
    "Redis at redis://mini",
    [
        good("version", "Redis 7.2.4"),
        skipped("sleep", "not a Mac"),
        failed("memory org/model-with-a-long-name", "too large", "take another"),
        skipped("power", "not a Mac"),
        unsure("disk", "little room", "free some; `du -hd1 /a/very/long/path/that/is/to/be/copied/in/one/piece` tells"),
    ],
)


def test_a_person_sees_what_is_wrong_and_what_to_type() -> None:
    """Marks in the first column, a failure in capitals, remedies under their findings; what is skipped is one line."""
    shown = list(lines(SECTION, 100, colour=False))
    assert shown[0] == "Redis at redis://mini"
    assert shown[1] == "  ok    version           Redis 7.2.4"
    assert shown[2] == "  -     sleep, power      not a Mac"
    assert shown[3] == "  FAIL  memory            org/model-with-a-long-name: too large"
    assert shown[4] == "                          -> take another"
    assert shown[5] == "  warn  disk              little room"
    assert summary([SECTION]) == "1 ok, 1 warning, 1 FAILED"


def test_commands_are_not_broken() -> None:
    """However narrow the terminal: what is to be copied is broken at spaces only."""
    shown = list(lines(SECTION, 20, colour=False))
    assert any("`du -hd1" in line for line in shown)
    assert any("/a/very/long/path/that/is/to/be/copied/in/one/piece`" in line for line in shown)


def test_a_long_command_is_one_line() -> None:
    """Pasted in parts it would be several commands."""
    command = "cd / && sudo -u promptmill env " + " ".join(f"NAME{number}=value" for number in range(30))
    section = Section("machine", "This machine", [unsure("deployed worker", "of another user", "by:", command)])
    assert list(lines(section, 60, colour=False))[-1] == " " * 8 + command
    assert as_object([section])["checks"][0]["command"] == command


def test_colours_are_for_terminals() -> None:
    """Without them there is no control character."""
    assert all(line.isprintable() for line in lines(SECTION, 80, colour=False))
    assert any("\x1b[31m" in line for line in lines(SECTION, 80, colour=True))


def test_a_script_gets_one_object() -> None:
    """Every finding by itself, with its section, and the numbers."""
    found = as_object([SECTION])
    assert found["ok"] is False
    assert found["summary"] == {"ok": 1, "warn": 1, "fail": 1, "skip": 2}
    assert found["checks"][0] == {
        "section": "redis",
        "name": "version",
        "state": "ok",
        "reason": "Redis 7.2.4",
        "remedy": None,
        "command": None,
    }
    assert [check["name"] for check in found["checks"]][1:4] == ["sleep", "memory org/model-with-a-long-name", "power"]


@pytest.mark.parametrize("text", ["a\x1b[2Jb", "a\nb", "a\u202eb"])
def test_nothing_steers_the_terminal(text: str) -> None:
    """Reasons and remedies may quote what others wrote."""
    finding = failed("x", text, text)
    assert finding.reason.isprintable()
    assert (finding.remedy or "").isprintable()
