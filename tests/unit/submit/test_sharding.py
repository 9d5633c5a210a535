"""From lines to shards: limits, order, groups."""

from __future__ import annotations

import orjson
from hypothesis import given, settings, strategies as st

from jobs.errors import ProblemLine
from jobs.shard import Group, ShardLine
from submit.input.validate import BadLine, Chunk, GoodLine
from submit.upload.sharding import OPEN_BYTES, SHARD_BYTES, SHARD_LINES, Packing
from submit.upload.uploader import Parcel


def good(index: int, group: Group, size: int = 2) -> GoodLine:
    return GoodLine(ShardLine(index, index + 1, b"x" * size), group, None)


def bad(index: int) -> BadLine:
    problem = ProblemLine(index + 1, "missing_field", "prompt", "a line needs 'prompt'")
    return BadLine(index, f"row-{index}", (problem,))


def packed(*chunks: Chunk) -> list[Parcel]:
    packing = Packing("b_1", lambda: 0.0)
    parcels = [parcel for chunk in chunks for parcel in packing.add(chunk)]
    return [*parcels, packing.rest()]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1, 100, SHARD_BYTES // 3, SHARD_BYTES + 1])), max_size=200)
)
@settings(max_examples=50, deadline=None)
def test_every_line_is_in_one_shard_of_its_group(draws: list[tuple[int, int]]) -> None:
    """Shards keep their limits, hold one group, ascend within it, and together hold each line once."""
    groups = [Group("a"), Group("b"), Group("a", "lora")]
    chunk = Chunk(
        [good(index, groups[pick], size) for index, (pick, size) in enumerate(draws) if pick < 3],
        [bad(index) for index, (pick, _) in enumerate(draws) if pick == 3],
    )
    parcels = packed(chunk)
    runnable = [shard for parcel in parcels for shard in parcel.runnable]
    refused = [shard for parcel in parcels for shard in parcel.rejected]
    for shard in runnable:
        assert 1 <= len(shard.lines) <= SHARD_LINES
        assert len(shard.lines) == 1 or sum(len(line.raw) for line in shard.lines) <= SHARD_BYTES
        assert all(groups[draws[line.index][0]] == shard.group for line in shard.lines)
    for number in {shard.group_number for shard in runnable}:
        own = [line.index for shard in runnable if shard.group_number == number for line in shard.lines]
        assert own == sorted(own)
    indices = [line.index for shard in runnable for line in shard.lines]
    indices += [line.index for shard in refused for line in shard.records]
    assert sorted(indices) == list(range(len(draws)))
    assert sorted(shard.number for shard in (*runnable, *refused)) == list(range(len(runnable) + len(refused)))


def test_many_models_do_not_pile_up() -> None:
    """Lines of ever new models are sent on once enough bytes of them wait."""
    packing = Packing("b_1", lambda: 0.0)
    sent = 0
    for start in range(0, 200, 10):
        chunk = Chunk([good(index, Group(f"m{index}"), SHARD_BYTES // 2) for index in range(start, start + 10)], [])
        sent += sum(len(line.raw) for parcel in packing.add(chunk) for shard in parcel.runnable for line in shard.lines)
        assert (start + 10) * SHARD_BYTES // 2 - sent <= OPEN_BYTES + 10 * SHARD_BYTES


def test_rejected_lines_keep_their_place_and_problem() -> None:
    """The error record of a bad line has its id, index, code, field and line number."""
    (parcel,) = packed(Chunk([], [bad(4)]))
    record = orjson.loads(parcel.rejected[0].records[0].record)
    assert (record["id"], record["index"], record["attempt"]) == ("row-4", 4, 0)
    assert record["error"] == {
        "code": "missing_field",
        "message": "line 5, field 'prompt': a line needs 'prompt'",
        "param": "prompt",
    }
