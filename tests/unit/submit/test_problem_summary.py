"""Problems on screen: alike ones are said once, with how many lines have them."""

from __future__ import annotations

from jobs.errors import ProblemLine
from submit.input.problem_summary import grouped, listed


def hot(line: int, value: object = "'hot'") -> ProblemLine:
    return ProblemLine(line, "invalid_type", "temperature", f"must be a number, not {value}")


def test_equal_problems_are_one_line_with_their_count() -> None:
    """A thousand lines with the same fault are not a thousand messages."""
    assert grouped(hot(line) for line in range(3, 2003, 2)) == [
        "1,000 lines, field 'temperature': must be a number, not 'hot' [invalid_type] (lines 3, 5, 7, 9, 11, ...)"
    ]
    assert grouped([hot(3), hot(7)]) == [
        "2 lines, field 'temperature': must be a number, not 'hot' [invalid_type] (lines 3, 7)"
    ]


def test_problems_that_differ_in_values_are_grouped_too() -> None:
    """Other values, other places in the same list: the first is shown, and that the others are alike."""
    roles = [ProblemLine(n, "out_of_range", f"messages[{n}].role", f"must be one of user, not 'r{n}'") for n in (1, 2)]
    assert grouped([hot(1, "'a'"), hot(2, "'b'"), *roles]) == [
        "2 lines, field 'temperature': must be a number, not 'a', and alike [invalid_type] (lines 1, 2)",
        "2 lines, field 'messages[1].role': must be one of user, not 'r1', and alike [out_of_range] (lines 1, 2)",
    ]


def test_problems_of_one_line_are_said_as_they_are() -> None:
    """With their line, field and code; other fields and codes are other groups."""
    others = [
        ProblemLine(1, "invalid_json_line", None, "not valid JSON"),
        ProblemLine(2, "missing_field", "prompt", "no"),
    ]
    assert grouped([hot(1), *others]) == [str(hot(1)), *map(str, others)]


def test_the_first_20_kinds_are_shown() -> None:
    """The rest is counted, and where to find it said."""
    kinds = [ProblemLine(n, "unknown_field", f"column_{chr(97 + n)}", "is not a field of a line") for n in range(25)]
    lines = listed(kinds)
    assert len(lines) == 21
    assert lines[-1] == "  ... and 5 kinds of problems more: `promptmill check FILE --json` lists them all"


def test_what_a_file_says_cannot_steer_the_terminal() -> None:
    """Names of fields come from the file."""
    assert "\x1b" not in grouped([ProblemLine(1, "unknown_field", "a\x1b[2J", "is not a field of a line")])[0]
