"""Files that hold no lines of JSON: what they are is said once, with what makes lines of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.errors import LineError, RefusedError
from submit.input.reader import PromptFile

ROWS = [{"id": f"row-{number}", "prompt": f"say {number}"} for number in range(26)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def read(folder: Path, content: bytes | str) -> list[tuple[int, bytes | LineError]]:
    path = folder / "a.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with PromptFile(path) as prompts:
        return list(prompts)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps(ROWS), "is a JSON array, not one object a line; give it the suffix .json, or say"),
        (json.dumps(ROWS, indent=2), "is a JSON array"),
        ("[\n" + LINES.replace("}\n", "},\n") + "]\n", "is a JSON array"),
        ("\n\n[" + "x" * 100, "is a JSON array"),
        (json.dumps(ROWS[0], indent=2), "holds objects over several lines; make lines of it: jq -c '.' FILE"),
        ("\n".join(json.dumps(row, indent=4) for row in ROWS), "holds objects over several lines"),
        (json.dumps({"prompt": "x" * (2 << 20), "id": "a"}, indent=1), "holds objects over several lines"),
        (json.dumps({"version": 1, "data": ROWS}, indent=1), "the rows in 'data', not one object a line; make lines of "
         "it: jq -c '.[\"data\"][]' FILE"),
        (LINES.replace("\n", ""), "has several objects on a line; make lines of it: jq -c '.' FILE"),
        (LINES.replace("}\n", "},\n"), "has a comma behind each line's object; remove them: sed"),
        ('{"prompt": "one\ntwo"}\n{"prompt": "three"}\n', "has line breaks inside of texts, which JSON writes as \\n"),
        ("".join(f"{row}\n" for row in ROWS), "holds Python dicts, not JSON; make lines of it: python -c"),
        ("id,prompt\n1,\"Hello, you\"\n2,b\n", "is CSV (columns id, prompt), not one JSON object a line"),
        ("id\tprompt\n1\ta\n", "is TSV (columns id, prompt)"),
        ("id;prompt;answer\n1;a;b\n", "is CSV (columns id, prompt, answer)"),
        ("prompt\n\"Hello, you\"\n", "is CSV (column prompt), not one JSON object a line"),
        ("<!DOCTYPE html>\n<html></html>\n", "is a web page or XML"),
        (LINES.encode("utf-16"), "is UTF-16; save it as UTF-8"),
        (LINES.encode("utf-16-le"), "is UTF-16; save it as UTF-8"),
        (LINES.encode("utf-16-be"), "is UTF-16; save it as UTF-8"),
        (b"PAR1\x15\x04\x15", "is Parquet; give it the suffix .parquet"),
        (b"PK\x03\x04\x14\x00", "is a zip archive"),
        (b"BZh91AY&SY", "is bzip2 data"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
    ids=range(24),
)  # fmt: skip
def test_files_of_another_shape_are_named_once_with_the_cure(tmp_path: Path, content: bytes | str, said: str) -> None:
    """Instead of a riddle for each of their lines."""
    with pytest.raises(RefusedError) as caught:
        read(tmp_path, content)
    assert f"a.jsonl {said}" in str(caught.value) or said in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        "nope\n" + LINES,
        "Hello, world\nGood morning, all\n",
        "id,prompt\n",
        '{"prompt":"cut off\n' + LINES,
        '{"prompt":"x",\n' + LINES,
        '{"prompt":"x"}{"prompt":"y"}\n' + LINES,
        "{'prompt': 'x'}\n" + LINES,
        '{"prompt":"x"},\n' + LINES,
        "{\n",
        "[]\n",
        '["a", 1]\n["b", 2]\n',
        "null\n" + LINES,
        '"text"\n',
    ],
    ids=range(14),
)
def test_files_that_have_lines_are_read_to_their_end(tmp_path: Path, content: str) -> None:
    """A bad first line is a bad line: looking ahead loses none, and their numbers stay."""
    expected = [(number, line.encode()) for number, line in enumerate(content.splitlines(), 1)]
    assert read(tmp_path, content) == expected


def test_looking_ahead_ends(tmp_path: Path) -> None:
    """Of a long file the start is looked at, and all of it is read."""
    lines = read(tmp_path, "nope\n" + LINES * 200)
    assert [number for number, _ in lines] == list(range(1, 26 * 200 + 2))


def test_an_array_on_one_endless_line_is_an_array(tmp_path: Path) -> None:
    """One that is longer than a line may be."""
    with pytest.raises(RefusedError, match="is a JSON array"):
        read(tmp_path, "[" + LINES.replace("\n", ",") * 14_000 + "{}]")
