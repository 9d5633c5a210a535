"""Reading prompts: every kind of source, every kind of damage, in memory that does not grow."""

from __future__ import annotations

import gzip
import os
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import zstandard

from jobs.errors import LineError, RefusedError
from jobs.lines.line import MAX_LINE_BYTES
from submit.input.reader import PromptFile, PromptObjects, digest_of


def read(path: Path | str, **options: Any) -> list[tuple[int, bytes | LineError]]:
    with PromptFile(path, **options) as prompts:
        return list(prompts)


def saved(folder: Path, content: bytes, name: str = "a.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def refusal(path: Path | str, **options: Any) -> str:
    """The message with which reading is refused."""
    with pytest.raises(RefusedError) as caught:
        read(path, **options)
    assert caught.value.exit_status == 2
    return str(caught.value)


def test_lines_have_numbers_and_blank_ones_count(tmp_path: Path) -> None:
    """Blank lines are skipped and counted; outer whitespace and CRLF go; the last line needs no newline."""
    path = saved(tmp_path, b'{"a":1}\r\n\n \t \r\n  {"b":2}  \n{"c":3}')
    assert read(path) == [(1, b'{"a":1}'), (4, b'{"b":2}'), (5, b'{"c":3}')]


def test_byte_order_mark_on_the_first_line_is_tolerated(tmp_path: Path) -> None:
    """Windows editors write one; further down it would be a mistake of somebody else."""
    path = saved(tmp_path, b'\xef\xbb\xbf{"a":1}\n\xef\xbb\xbf{"b":2}')
    assert read(path) == [(1, b'{"a":1}'), (2, b'\xef\xbb\xbf{"b":2}')]


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
def test_files_without_lines(tmp_path: Path, content: bytes) -> None:
    """Nothing is read from nothing."""
    assert read(saved(tmp_path, content)) == []


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".GZ"])
def test_packed_files_are_unpacked_by_suffix(tmp_path: Path, suffix: str) -> None:
    """The same content reads the same, and has the same digest, however it is packed."""
    content = b"".join(b'{"n":%d}\n' % number for number in range(30_000))
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    path = saved(tmp_path, pack.get(suffix.lower(), bytes)(content), "a.jsonl" + suffix)
    with PromptFile(path) as prompts:
        lines = list(prompts)
        assert lines == [(number + 1, b'{"n":%d}' % number) for number in range(30_000)]
        assert prompts.size == prompts.bytes_read == path.stat().st_size
        assert prompts.digest == digest_of(path) == digest_of(saved(tmp_path, content, "plain"))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_packed_files_may_be_several_put_together(tmp_path: Path, suffix: str) -> None:
    """`cat a.gz b.gz` is a valid file, for both formats."""
    pack = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor().compress
    path = saved(tmp_path, pack(b"1\n") + pack(b"") + pack(b"2\n"), "a" + suffix)
    assert read(path) == [(1, b"1"), (2, b"2")]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "not packed", "rubbish after it"])
def test_damaged_packed_files_are_refused(tmp_path: Path, suffix: str, damage: str) -> None:
    """A file that ends early must not pass for a shorter one."""
    content = os.urandom(200_000).hex().encode()
    pack = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress
    packed = bytearray(pack(content))
    if damage == "cut":
        del packed[-20:]
    elif damage == "flipped":
        packed[len(packed) // 2] ^= 0xFF
    elif damage == "not packed":
        packed = bytearray(b'{"prompt":"x"}\n')
    else:
        packed += b"rubbish"
    path = saved(tmp_path, bytes(packed), "a" + suffix)
    assert str(path) in refusal(path)


@pytest.mark.parametrize(
    ("start", "named"),
    [
        ("x".encode("utf-16"), "UTF-16"),
        (b"\xfe\xff\x00x", "UTF-16"),
        ("x".encode("utf-32"), "UTF-32"),
        (b"\x00\x00\xfe\xff\x00", "UTF-32"),
        (gzip.compress(b"x", mtime=0), ".gz"),  # the same bytes, and so the same name of the test, in each process
        (zstandard.compress(b"x"), ".zst"),
    ],
)
def test_foreign_formats_are_named_with_the_remedy(tmp_path: Path, start: bytes, named: str) -> None:
    """A wrong encoding or a missing suffix is said once, not as a bad line for each line."""
    assert named in refusal(saved(tmp_path, start))


def test_files_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    """Missing, a folder, unreadable, or no path at all."""
    assert "missing.jsonl" in refusal(tmp_path / "missing.jsonl")
    assert "directory" in refusal(tmp_path).lower()
    assert "null" in refusal("a\0b")
    locked = saved(tmp_path, b"{}")
    locked.chmod(0)
    if not os.access(locked, os.R_OK):  # root may read everything
        assert "ermission" in refusal(locked)


def test_names_that_are_no_text_can_be_shown(tmp_path: Path) -> None:
    """A file system allows any bytes in a name; messages and Redis do not."""
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl")
    try:
        Path(path).write_bytes(b"{}")
    except OSError as error:
        pytest.skip(f"this file system takes only names in UTF-8: {error.strerror}")  # as APFS does
    with PromptFile(path) as prompts:
        assert prompts.name.encode().endswith("caf\ufffd.jsonl".encode())
        assert list(prompts) == [(1, b"{}")]


def test_standard_input_gives_lines_as_they_come() -> None:
    """A line in a pipe is read before the next one is written."""
    reading, writing = os.pipe()
    try:
        with PromptFile("-", stdin=reading) as prompts:
            lines = iter(prompts)
            os.write(writing, b'{"a":1}\n')
            assert next(lines) == (1, b'{"a":1}')
            os.write(writing, b'{"b":2}\n')
            assert next(lines) == (2, b'{"b":2}')
            os.close(writing)
            assert list(lines) == []
            assert (prompts.name, prompts.size, prompts.bytes_read) == ("standard input", None, 16)
    finally:
        os.close(reading)


def test_closed_standard_input_is_refused() -> None:
    """As a daemon may have it."""
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    assert "standard input" in refusal("-", stdin=reading)


def feed(writing: int, total: int) -> None:
    """Write ``total`` bytes of one line, then a good one, into a pipe."""
    block = b"x" * (1 << 20)
    with os.fdopen(writing, "wb") as pipe:
        for _ in range(total // len(block)):
            pipe.write(block)
        pipe.write(b'\n{"a":1}\n')


def test_endless_line_is_skipped_without_being_held() -> None:
    """A line of 100 MiB becomes the problem of its line, and memory stays near the longest line allowed."""
    reading, writing = os.pipe()
    total = 100 << 20
    feeder = threading.Thread(target=feed, args=(writing, total))
    feeder.start()
    tracemalloc.start()
    try:
        with PromptFile("-", stdin=reading) as prompts:
            (number, problem), after = list(prompts)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        feeder.join()
        os.close(reading)
    assert number == 1
    assert isinstance(problem, LineError)
    assert problem.code == "out_of_range"
    assert f"has {total} bytes" in problem.message
    assert after == (2, b'{"a":1}')
    assert peak < 4 * MAX_LINE_BYTES


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_line_of_exactly_the_limit_is_read(tmp_path: Path, ending: bytes) -> None:
    """The limit counts the line, not its newline; one byte more is a problem of the line."""
    content = b'"' + b"x" * (MAX_LINE_BYTES - 2) + b'"'
    assert read(saved(tmp_path, content + ending)) == [(1, content)]
    ((_, longer),) = read(saved(tmp_path, b" " + content + b"yy" + ending))
    assert isinstance(longer, LineError)
    assert longer.code == "out_of_range"


def test_objects_become_lines() -> None:
    """Dicts are written as JSON, in order, with numbers from 1; integer token ids may be keys."""
    prompts = PromptObjects(iter([{"prompt": "é"}, {"logit_bias": {5: 1}}]))
    assert list(prompts) == [(1, '{"prompt":"é"}'.encode()), (2, b'{"logit_bias":{"5":1}}')]
    assert prompts.bytes_read == 17 + 22


@pytest.mark.parametrize(
    ("item", "code", "field"),
    [
        ("text", "invalid_type", None),
        (None, "invalid_type", None),
        ({"prompt": object()}, "invalid_type", None),
        ({"prompt": "\ud800"}, "invalid_type", None),
        ({"seed": 2**70}, "invalid_type", None),
        ({"temperature": float("nan")}, "out_of_range", "temperature"),
        ({"body": {"top_p": float("inf")}}, "out_of_range", "top_p"),
    ],
)
def test_objects_that_are_no_json_are_problems_of_their_line(item: Any, code: str, field: str | None) -> None:
    """The line is refused; NaN above all is not written as null, which would mean that nothing was given."""
    (first, (number, problem), third) = list(PromptObjects([{"a": 1}, item, {"b": 2}]))
    assert number == 2
    assert isinstance(problem, LineError)
    assert (problem.code, problem.field) == (code, field)
    assert (first[0], third[0]) == (1, 3)


def test_objects_nested_in_circles_are_a_problem_of_their_line() -> None:
    """A dict that holds itself ends the line, not the program."""
    circle: dict[str, Any] = {}
    circle["metadata"] = circle
    ((_, problem),) = list(PromptObjects([circle]))
    assert isinstance(problem, LineError)


def test_digest_names_the_content(tmp_path: Path) -> None:
    """Another content has another digest, and reading lines gives the same one as digest_of."""
    one, two = saved(tmp_path, b"1\n2\n", "1"), saved(tmp_path, b"1\n3\n", "2")
    with PromptFile(one) as prompts:
        list(prompts)
        assert prompts.digest == digest_of(one) != digest_of(two)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, suffix: str) -> None:
    """However little of it lies on disk, and whether it has lines or not."""
    path = tmp_path / f"x.jsonl{suffix}"
    data = b"\0" * (4 << 20)
    path.write_bytes({"": data, ".gz": gzip.compress(data), ".zst": zstandard.compress(data)}[suffix])
    with (
        pytest.raises(RefusedError, match=r"has more than 1\.0 MiB when it is unpacked"),
        PromptFile(path, most_bytes=1 << 20) as prompts,
    ):
        list(prompts)
