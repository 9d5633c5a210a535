"""Tables of every format, as rows: what is read, what is refused, and by which sentence."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.errors import LineError, RefusedError
from submit.data.open import input_digest, open_any, open_input, order_of
from submit.data.order import TableOrder
from submit.data.tables.hub import open_hub_table
from submit.results.destination import format_for
from submit.results.tables.restore import array_of

pytest.importorskip("jinja2")
pa = pytest.importorskip("pyarrow")

PROMPT = {"prompt": "{{ q }}"}
ROWS = [{"q": f"what, is {number}?\nsay", "n": number} for number in range(7)]
Order = Callable[..., TableOrder]


def order(**said: Any) -> TableOrder:
    return TableOrder(template=PROMPT, **said)


def lines(path: Path | str, said: TableOrder) -> list[tuple[int, Any]]:
    """The lines of a table: numbers, and lines as dicts or errors."""
    with open_input(str(path), said) as prompts:
        return [(number, raw if isinstance(raw, LineError) else orjson.loads(raw)) for number, raw in prompts]


def written(folder: Path, kind: str) -> Path:
    """ROWS in a file, or folder, of a kind."""
    import csv
    import io

    import pyarrow.feather as feather
    import pyarrow.parquet as pq

    path, table = folder / f"rows.{kind}", pa.Table.from_pylist(ROWS)
    match kind:
        case "jsonl":
            path.write_bytes(b"\n".join(map(orjson.dumps, ROWS)))
        case "json":
            path.write_text(json.dumps(ROWS, indent=2))
        case "json.gz":
            path.write_bytes(gzip.compress(orjson.dumps(ROWS)))
        case "parquet":
            pq.write_table(table, path, row_group_size=3)
        case "feather":
            feather.write_feather(table, str(path))
        case "arrow":
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table, max_chunksize=2)
        case "folder":
            for start in (0, 3):
                path.mkdir(exist_ok=True)
                pq.write_table(table.slice(start, 3 if start == 0 else 4), path / f"part-{start}.parquet")
        case _:
            text = io.StringIO()
            delimiter = {"tsv": "\t", "semicolon.csv": ";"}.get(kind, ",")
            writer = csv.DictWriter(text, ["q", "n"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(ROWS)
            content = text.getvalue().encode("utf-16" if kind == "utf16.csv" else "utf-8-sig")
            path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    return path


KINDS = [
    "jsonl",
    "json",
    "json.gz",
    "csv",
    "csv.gz",
    "tsv",
    "semicolon.csv",
    "utf16.csv",
    "parquet",
    "feather",
    "arrow",
]


@pytest.mark.parametrize("kind", [*KINDS, "folder"])
def test_every_format_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    """In order, numbered, with the columns that come back; cells of CSV are text. The digest is known beforehand."""
    path = written(tmp_path, kind)
    found = lines(path, order())
    text = "csv" in kind or kind == "tsv"
    rows = [{**row, "n": str(row["n"])} for row in ROWS] if text else ROWS
    assert found == [(at, {"prompt": row["q"], "metadata": row}) for at, row in enumerate(rows, 1)]
    with open_input(str(path), order()) as prompts:
        assert prompts.digest == input_digest(str(path), order())


def test_a_saved_data_set(tmp_path: Path) -> None:
    """As ``save_to_disk`` leaves it; of a folder of splits one is to be named."""
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(tmp_path / "one", num_shards=2)
    assert [line["metadata"] for _, line in lines(tmp_path / "one", order())] == ROWS
    datasets.DatasetDict({"train": whole, "test": whole}).save_to_disk(tmp_path / "two")
    with pytest.raises(RefusedError, match=r"holds the splits train, test; take one of them: .*two/train"):
        lines(tmp_path / "two", order())
    assert len(lines(tmp_path / "two" / "test", order())) == 7


def numbers(path: Path, **said: Any) -> list[int]:
    return [number for number, _ in lines(path, order(**said))]


def test_which_rows(tmp_path: Path) -> None:
    """A condition first, then offset and limit, then a sample, in the order of the table and the same each time."""
    path = written(tmp_path, "parquet")
    assert numbers(path, where="n % 2 == 0") == [1, 3, 5, 7]
    assert numbers(path, where="n % 2 == 0", offset=1, limit=2) == [3, 5]
    drawn = numbers(path, sample=3, sample_seed=1)
    assert len(set(drawn)) == 3
    assert drawn == sorted(drawn) == numbers(path, sample=3, sample_seed=1)
    assert {tuple(numbers(path, sample=3, sample_seed=seed)) for seed in range(9)} != {tuple(drawn)}
    assert numbers(path, sample=99) == [1, 2, 3, 4, 5, 6, 7]
    assert set(numbers(path, sample=2, offset=2, limit=3)) <= {3, 4, 5}


def test_repeats_and_ids(tmp_path: Path) -> None:
    """Lines of a row are told apart by their ids; a column may hold these."""
    path = written(tmp_path, "jsonl")
    assert [line["id"] for _, line in lines(path, order(limit=2, repeat=2))] == [
        "line-1#1", "line-1#2", "line-2#1", "line-2#2",
    ]  # fmt: skip
    assert [line["id"] for _, line in lines(path, order(limit=2, id_column="n"))] == ["0", "1"]
    assert [line["id"] for _, line in lines(path, order(limit=1, repeat=2, id_column="n"))] == ["0#1", "0#2"]


def test_which_columns_come_back(tmp_path: Path) -> None:
    """All but long cells, those that are named, none; a name that is none is refused."""
    path = tmp_path / "rows.jsonl"
    row = {"q": "x", "long": "y" * 70_000, "list": ["z" * 70_000], "n": 1}
    path.write_bytes(orjson.dumps(row))
    kept = {**row, "long": None, "list": None}
    assert lines(path, order())[0][1]["metadata"] == kept
    with open_input(str(path), order()) as prompts:
        list(prompts)
        assert prompts.notes() == [
            f"1 cell of '{name}' with more than 64 KiB will not come back: --keep-columns all brings them"
            for name in ("long", "list")
        ]
    assert lines(path, order(keep="all"))[0][1]["metadata"] == row
    assert lines(path, order(keep="n, q"))[0][1]["metadata"] == {"n": 1, "q": "x"}
    assert lines(path, order(keep="none"))[0][1]["metadata"] == {}
    with pytest.raises(RefusedError, match="--keep-columns: 'm' is no column"):
        lines(written(tmp_path, "csv"), order(keep="m"))


def test_binary_columns_are_refused_by_name(tmp_path: Path) -> None:
    """In a template, and among columns to keep; else they stay behind, and that is said."""
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"q": ["x"], "image": [{"bytes": b"\0", "path": "a.png"}]}), path)
    assert lines(path, order())[0][1]["metadata"] == {"q": "x"}
    with open_input(str(path), order()) as prompts:
        assert prompts.notes() == ["binary columns do not come back: image"]
    with pytest.raises(RefusedError, match="'image' is binary"):
        lines(path, order(keep="image"))
    with pytest.raises(RefusedError, match=r"'image' of .* is binary"):
        lines(path, TableOrder(template={"prompt": "{{ image }}"}))


def test_rows_that_are_lines_need_no_template(tmp_path: Path) -> None:
    """Columns that are fields: texts of CSV become numbers, and empty cells are no fields."""
    path = tmp_path / "rows.csv"
    path.write_text("id,prompt,temperature,stop\na,1,0.5,7\nb,2,,\n")
    assert [line for _, line in lines(path, TableOrder())] == [
        {"id": "a", "prompt": "1", "temperature": 0.5, "stop": "7"},
        {"id": "b", "prompt": "2"},
    ]


def test_a_table_without_a_template_is_explained(tmp_path: Path) -> None:
    """Its columns, and the flag that would work."""
    with pytest.raises(RefusedError, match=r"rows of a table \(columns q, n\); say what to ask .*--user '\{\{ q \}\}'"):
        lines(written(tmp_path, "csv"), TableOrder())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"a,a\n1,2\n", "two columns 'a'"),
        ("a.csv", b"q,n\n\xff\xfe\xfd,1\n", "--encoding cp1252"),
        ("a.csv", b"q\n" + b"x" * (17 << 20), "has a line of more than"),
        ("a.csv", b'q\n"' + b"x\n" * (9 << 20), "no CSV"),
        ("a.csv", b"q," * 20_000 + b"\n", "at most 10,000"),
        ("a.csv", b"q,n\0\n1,2", "zero bytes"),
        ("a.csv.gz", b"no gzip", "cannot be unpacked"),
        ("a.json", b'[{"q"', "row 1 is not valid JSON"),
        ("a.json", b'[{"q": "a"} {"q": "b"}]', "after row 1"),
        ("a.json", b'[{"q": NaN}]', "no NaN"),
        ("a.json", b"[" * 100_000, "row 1 is nested too deeply"),
        ("a.json", b'["' + b"x" * (20 << 20), "row 1 is not valid JSON, or has more than"),
        ("a.parquet", b"", "no whole file of Parquet"),
        ("a.parquet", b"PAR1" + b"x" * 100 + b"\xff\xff\xff\x7fPAR1", "more than is taken"),
        ("a.parquet", b"PAR1" + b"x" * 100 + b"\x20\0\0\0PAR1", "is damaged"),
        ("a.feather", b"ARROW1" + b"x" * 100, "is damaged"),
        ("a.arrow", b"\xff" * 100, "is damaged"),
    ],
    ids=[str(number) for number in range(18)],
)
def test_damaged_tables_are_refused(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    """By a sentence that names the file and what is wrong."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RefusedError, match=said) as caught:
        lines(tmp_path / name, order())
    assert name in str(caught.value)


def test_bad_rows_are_errors_of_their_own(tmp_path: Path) -> None:
    """The others are read: a row with too few cells, one that is no object, one that lacks a column."""
    (tmp_path / "a.csv").write_text("q,n\none,1\ntwo\nthree,3\n")
    found = lines(tmp_path / "a.csv", order())
    assert [isinstance(line, LineError) for _, line in found] == [False, True, False]
    (tmp_path / "a.jsonl").write_bytes(b'{"q": 1}\n[2]\n{"p": 3}\n{"q"\n')
    found = lines(tmp_path / "a.jsonl", order())
    assert [(number, line.field) for number, line in found if isinstance(line, LineError)] == [
        (2, None), (3, "q"), (4, None),
    ]  # fmt: skip


def test_parquet_bombs_are_refused(tmp_path: Path) -> None:
    """A column that unpacks to a thousand times its size; a cell that is longer than a line is an error of its row."""
    import pyarrow.parquet as pq

    path = tmp_path / "bomb.parquet"
    bomb = pa.table({"q": ["x"], "zeros": ["0" * (300 << 20)]})
    pq.write_table(bomb, path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(RefusedError, match=r"'zeros' unpacks to .* 1,000 times"):
        lines(path, order())
    assert len(lines(path, order(keep="q"))) == 1
    pq.write_table(pa.table({"q": ["x", "0" * (40 << 20), "y"]}), path, compression="none")
    found = lines(path, order())
    assert [type(line) for _, line in found] == [dict, LineError, dict]
    assert found[1][1].field == "q"


def test_a_million_columns_are_refused(tmp_path: Path) -> None:
    """Before any row is read."""
    import pyarrow.parquet as pq

    path = tmp_path / "wide.parquet"
    pq.write_table(pa.table({f"c{number}": [1] for number in range(11_000)}), path)
    with pytest.raises(RefusedError, match="11,000 columns; at most 10,000"):
        lines(path, order())


def test_shards_have_the_same_columns(tmp_path: Path) -> None:
    """Else the first that differs is named."""
    (tmp_path / "a.csv").write_text("q,n\none,1\n")
    (tmp_path / "b.csv").write_text("q,m\none,1\n")
    with pytest.raises(RefusedError, match=r"b\.csv: has the columns q, m"):
        lines(tmp_path / "*.csv", order())


class Hub:
    """A hub of one data set: its files by revision, all of which are one file here."""

    def __init__(self, path: Path, **revisions: list[str]) -> None:
        self._path, self._revisions = path, revisions
        self.asked: list[str] = []

    def files(self, name: str, revision: str | None) -> tuple[str, list[str]]:
        key = {None: "main", "refs/convert/parquet": "converted"}.get(revision, revision)
        if key not in self._revisions:
            raise LookupError(f"no revision {revision} of {name}")
        return f"commit-of-{key}", self._revisions[str(key)]

    def download(self, name: str, commit: str, file: str) -> str:
        self.asked.append(f"{commit}/{file}")
        return str(self._path)


def test_data_sets_of_the_hub(tmp_path: Path) -> None:
    """The Hub's copy in Parquet, or the files of a revision; split and configuration by their names."""
    path = written(tmp_path, "parquet")
    converted = ["main/train/0000.parquet", "main/test/0000.parquet", "main/test/0001.parquet", "other/test/0.parquet"]
    hub = Hub(path, converted=converted, v1=["data/train.parquet", "README.md"])
    table = open_hub_table("hf://datasets/a/b:test:main", order(), hub)
    assert table.name == "hf://datasets/a/b@commit-of-converted:test:main"
    assert len(list(table.rows())) == 14
    assert hub.asked == [f"commit-of-converted/main/test/000{shard}.parquet" for shard in (0, 1)]
    assert len(list(open_hub_table("hf://datasets/a/b@v1", order(), hub).rows())) == 7
    for address, said in (
        ("hf://datasets/a/b", "several configurations (main, other)"),
        ("hf://datasets/a/b:tst:main", "did you mean 'test'"),
        ("hf://datasets/a/b@v9", "no revision v9"),
        ("hf://models/a", "an address is hf://datasets/NAME"),
    ):
        with pytest.raises(RefusedError) as caught:
            open_hub_table(address, order(), hub)
        assert said in str(caught.value)


def test_times_that_python_has_not_are_refused_by_name(tmp_path: Path) -> None:
    """A date after the year 9999: the column, and how to leave it out."""
    import pyarrow.parquet as pq

    far = pa.array([10_000_000], pa.int32()).cast(pa.date32())
    pq.write_table(pa.table({"q": ["a"], "far": far}), tmp_path / "far.parquet")
    with pytest.raises(RefusedError, match=r"'far' holds a time outside the years 1 to 9999.*--keep-columns"):
        lines(tmp_path / "far.parquet", order())
    assert lines(tmp_path / "far.parquet", order(keep="q"))[0][1]["prompt"] == "a"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([[("k", Decimal("1.10"))], None], pa.map_(pa.string(), pa.decimal128(5, 2))),
        ([[(date(2020, 1, 2), None)]], pa.map_(pa.date32(), pa.string())),
        ([[("k", float("inf"))]], pa.map_(pa.string(), pa.float64())),
        ([[[("k", 1)]]], pa.list_(pa.map_(pa.string(), pa.int64()))),
        ([date(2020, 1, 2), None], pa.dictionary(pa.int8(), pa.date32())),
        (["a", None, "b"], pa.dictionary(pa.int32(), pa.string())),
    ],
)
def test_columns_come_back_as_they_were(values: list[Any], kind: pa.DataType) -> None:
    """Through lines of JSON and back: maps and dictionaries of what JSON has no type for, too."""
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    before = pa.array(values, inner)
    table = pa.table({"q": before if inner is kind else before.dictionary_encode().cast(kind)})
    with open_any(table, order()) as prompts:
        cells = [orjson.loads(raw)["metadata"]["q"] for _, raw in prompts if isinstance(raw, bytes)]
    assert array_of(cells, kind).equals(table["q"].combine_chunks())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"where": 5}, "where must be a text, not 5"),
        ({"sample": 2, "sample_seed": "x"}, "sample_seed must be an integer"),
        ({"user": 5}, "user must be a text, not 5"),
    ],
)
def test_arguments_of_a_wrong_kind(given: dict[str, Any], said: str) -> None:
    """What Python gives is refused by its name."""
    with pytest.raises(RefusedError, match=said):
        order_of(given)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (pa.array([[1, 2]], pa.list_view(pa.int64())), [1, 2]),
        (pa.RunEndEncodedArray.from_arrays(pa.array([1], pa.int32()), pa.array(["x"])), "x"),
        (pa.array([{}], pa.struct([])), "{}"),
        (pa.array([[{}]], pa.list_(pa.struct([]))), "[{}]"),
    ],
)
def test_types_that_readers_of_parquet_lack(column: Any, value: Any) -> None:
    """Come back as plain lists, values and JSON texts: what ran can be written."""
    import io

    import pyarrow.parquet as pq

    with open_any(pa.table({"q": column}), order()) as prompts:
        ((_, raw),) = prompts
        types: Any = prompts
        kind = pa.ipc.read_schema(pa.py_buffer(types.table.types)).field("q").type
    assert isinstance(raw, bytes)
    file = io.BytesIO()
    pq.write_table(pa.table({"q": array_of([orjson.loads(raw)["metadata"]["q"]], kind)}), file)
    assert pq.read_table(file).to_pylist() == [{"q": value}]


def test_objects_that_are_no_tables() -> None:
    """A frame of unlike values, a series and rows with odd names are said to be so."""
    pd = pytest.importorskip("pandas")
    with pytest.raises(RefusedError, match="no table of Arrow can be made"), open_any(pd.DataFrame({"q": ["a", 1]})):
        pass
    for given in (pd.Series(["a"]), [{"q": "a", 5: 1}]):
        with open_any(given, order()) as prompts:
            ((_, error),) = prompts
        assert isinstance(error, LineError)
    assert order_of({"user": "x", "keep_columns": ["a", "b"]}).keep == "a,b"


def test_a_condition_on_an_empty_cell(tmp_path: Path) -> None:
    """Names no field of the line, and says how to ask."""
    (tmp_path / "t.jsonl").write_bytes(b'{"q": "a", "n": null}')
    ((_, error),) = lines(tmp_path / "t.jsonl", order(where="n > 1"))
    assert (error.field, error.message.rpartition("; ")[2]) == (None, "of empty cells ask first: x is not none and ...")


def test_a_glob_of_nothing(tmp_path: Path) -> None:
    """Says that there are no files, not what their formats are."""
    with pytest.raises(RefusedError, match="there are no such files"):
        lines(tmp_path / "*.csv", order())


@pytest.mark.parametrize(
    ("out", "fmt"), [("a.pq", "parquet"), ("a.CSV", "csv"), ("a.jsonl", "native"), ("a.tsv", None), ("a.xlsx", None)]
)
def test_formats_by_suffix(out: str, fmt: str | None) -> None:
    """A table that is not written is refused, and not filled with lines of JSON."""
    if fmt is not None:
        assert format_for(Path(out), None) == fmt
        return
    assert format_for(Path(out), "csv") == "csv"
    with pytest.raises(RefusedError, match=r"written as \.parquet or \.csv"):
        format_for(Path(out), None)
