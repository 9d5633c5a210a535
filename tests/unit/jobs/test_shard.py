"""Shards: what goes in comes out, and nothing else is taken for one."""

from __future__ import annotations

import orjson
import pytest
import zstandard
from hypothesis import given, settings, strategies as st

from jobs.errors import RefusedError
from jobs.shard import Group, ShardLine, decode_lines, encode_lines, pack, unpack

raws = st.binary(min_size=1, max_size=30).filter(lambda raw: b"\n" not in raw)
places = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), raws), min_size=1, max_size=30)


@given(places)
@settings(max_examples=150, deadline=None)
def test_lines_come_back_as_they_were(steps: list[tuple[int, int, bytes]]) -> None:
    """Indices, line numbers and bytes survive, however many lines lie between them in the file."""
    lines, index, number = [], 0, 0
    for index_step, line_step, raw in steps:
        index, number = index + index_step, number + line_step
        lines.append(ShardLine(index, number, raw))
    assert decode_lines(encode_lines(lines)) == lines


def test_neighbours_take_one_entry_in_the_header() -> None:
    """A shard of consecutive lines costs a few bytes of header, not a few per line."""
    lines = [ShardLine(index, index + 1, b"{}") for index in range(50)]
    header = unpack(encode_lines(lines)).split(b"\n")[0]
    assert orjson.loads(header) == {"runs": [[0, 1, 50]]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json\n{}",
        b"{}\n{}",
        b'{"runs":5}\n{}',
        b'{"runs":[[0,1]]}\n{}',
        b'{"runs":[["a",1,1]]}\n{}',
        b'{"runs":[[0,1,2]]}\n{}',
        b'{"runs":[[0,1,1]]}\n{}\n{}',
        b'{"runs":[[-1,1,1]]}\n{}',
        b'{"runs":[[0,1,4000000000]]}\n{}',
    ],
)
def test_payloads_that_are_no_shards_are_refused(content: bytes) -> None:
    """Nothing that comes from Redis is trusted."""
    with pytest.raises(RefusedError):
        decode_lines(pack(content))


def test_frames_that_blow_up_are_refused_before_they_do() -> None:
    """The size a frame claims is checked first; a frame that claims none, or no frame, is refused too."""
    with pytest.raises(RefusedError, match="at most 1000"):
        unpack(pack(b"x" * 1001), limit=1000)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 100)
    for payload in (unsized, b"", b"plain text", pack(b"x" * 100)[:-3]):
        with pytest.raises(RefusedError):
            unpack(payload)


def test_group_key_names_model_and_adapter() -> None:
    """Lines with different adapters go to different queues."""
    assert Group("m").key == "m"
    assert Group("m", "lora").key == "m+lora"
