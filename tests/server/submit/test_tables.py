"""Tables through a batch and back: rows become lines, and results come back beside the rows, with their types."""

from __future__ import annotations

import csv
import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.errors import InputError, LineError, RefusedError
from jobs.lines.line import Defaults, Job
from jobs.record import Choice
from jobs.store.store import Store
from submit import Client
from submit.data.order import TableOrder
from submit.results.destination import Destination
from submit.results.follow import follow_results, write_results
from submit.run.run import RunRequest, run
from submit.status.progress import Progress
from tests.pool import MODEL, echo, work

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("jinja2")

STUB = (sys.executable, "-P", "-m", "tests.stub_worker")
USER = {"messages": [{"role": "user", "content": "{{ question }}"}]}


@pytest.fixture
def client(server_url: str) -> Iterator[Client]:
    with Client(server_url) as opened:
        yield opened


def typed() -> Any:
    """A table with a column of each kind."""
    count = 4
    at = datetime(2024, 5, 6, 7, 8, 9, 123456, UTC)
    return pa.table(
        {
            "question": [f"what is {number}?" for number in range(count)],
            "n": pa.array(range(count), pa.int64()),
            "small": pa.array(range(count), pa.uint8()),
            "half": pa.array([0.5, None, 1.5, 2.0], pa.float32()),
            "ends": pa.array([float("inf"), None, 1.5, float("-inf")]),
            "yes": [True, False, None, True],
            "day": [date(2024, 1, 2)] * count,
            "at": pa.array([at] * count, pa.timestamp("us", "UTC")),
            "price": [Decimal("1.50")] * count,
            "tags": [["a"], [], None, ["b", "c"]],
            "nested": [{"x": 1, "days": [date(2024, 1, 3)]}] * count,
            "kind": pa.array(["u", "v", "u", "v"]).dictionary_encode(),
            "picture": [b"\0\1"] * count,
        }
    )


def test_columns_come_back_with_their_types(client: Client, store: Store, tmp_path: Path) -> None:
    """Every kind but binary columns, which are named; and what came of each row stands beside it."""
    table = typed()
    pq.write_table(table, tmp_path / "in.parquet")
    batch = client.submit(tmp_path / "in.parquet", user="{{ question }} {{ day }} {{ nested.x }}", model=MODEL)
    work(store, batch.id)
    write_results(store, batch.id, Destination(tmp_path / "out.parquet", fmt="parquet"))
    found = pq.read_table(tmp_path / "out.parquet")
    own = [name for name in table.column_names if name != "picture"]
    assert found.column_names[: len(own)] == own
    assert [found.schema.field(name).type for name in own] == [table.schema.field(name).type for name in own]
    for name in own:
        assert found.column(name).to_pylist() == table.column(name).to_pylist(), name
    assert found.column_names[len(own) :] == [
        "completion", "reasoning", "stop_reason", "prompt_tokens", "completion_tokens", "seed", "model", "valid",
        "tool_calls", "score", "error", "id",
    ]  # fmt: skip
    assert found.column("completion").to_pylist() == [record["text"] for record in batch.results()]
    assert batch.to_arrow().equals(found)
    if importlib.util.find_spec("pandas") is not None:
        frame = batch.to_pandas()
        assert (frame["n"].tolist(), str(frame["n"].dtype)) == ([0, 1, 2, 3], str(table.schema.field("n").type))
    if importlib.util.find_spec("polars") is not None:
        assert batch.to_polars()["tags"].to_list() == [["a"], [], None, ["b", "c"]]


def test_numbers_that_are_none_come_back(client: Client, store: Store, tmp_path: Path) -> None:
    """NaN is NaN where the column has its type, also within lists; flat lines, which have no NaN, have null."""
    nan = float("nan")
    table = pa.table({"q": ["a", "b"], "x": [nan, 1.0], "many": [[1.0, nan], None], "in": [{"y": nan, "z": "NaN"}] * 2})
    batch = client.submit(table, user="{{ q }}{{ x }}", model=MODEL)
    work(store, batch.id)
    rows = batch.to_arrow().select(["x", "many", "in"]).to_pylist()
    assert repr(rows) == repr(table.select(["x", "many", "in"]).to_pylist())
    write_results(store, batch.id, Destination(tmp_path / "flat.jsonl", fmt="flat"))
    first = orjson.loads((tmp_path / "flat.jsonl").read_bytes().splitlines()[0])
    assert (first["x"], first["many"]) == (None, [1.0, None])


def test_errors_stand_beside_their_rows(client: Client, store: Store, tmp_path: Path) -> None:
    """A row whose line failed is in its place, with the error and no text; so is one that made no line."""
    rows: list[dict[str, Any]] = [{"question": "one", "n": 1}, {"question": "", "n": 2}, {"question": "three", "n": 3}]
    rows.append({"n": 4})

    def second_fails(job: Job) -> list[Choice]:
        if job.metadata["question"] == "three":
            raise LineError("context_length_exceeded", "prompt", "too long")
        return echo(job)

    batch = client.submit(rows, prompt="{{ question }}", model=MODEL, on_bad_line="skip")
    work(store, batch.id, answer=second_fails)
    write_results(store, batch.id, Destination(tmp_path / "out.csv", fmt="csv"))
    found = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert [(row["question"], row["n"]) for row in found] == [("one", "1"), ("", "2"), ("three", "3"), ("", "4")]
    assert [bool(row["completion"]) for row in found] == [True, False, False, False]
    assert [row["error"].partition(":")[0] for row in found] == [
        "", "out_of_range", "context_length_exceeded", "missing_field",
    ]  # fmt: skip


def test_flat_lines_have_the_row_and_the_result(client: Client, store: Store, tmp_path: Path) -> None:
    """Also while they are followed; a column that has the name of one of the result's keeps it."""
    batch = client.submit([{"q": "x", "model": "theirs", "deep": {"a": [1]}}], prompt="{{ q }}", model=MODEL)
    work(store, batch.id)
    out = tmp_path / "out.jsonl"
    follow_results(store, batch.id, Destination(out, fmt="flat"))
    row = orjson.loads(out.read_bytes())
    assert (row["q"], row["model"], row["deep"], row["result_model"]) == ("x", "theirs", {"a": [1]}, MODEL)
    assert row["stop_reason"] == "eos"


def test_types_are_found_where_rows_have_none(client: Client, store: Store) -> None:
    """Of JSON lines: integers, floats among integers, lists; a column of unlike values is JSON text."""
    rows: list[dict[str, Any]] = [
        {"q": "a", "n": 1, "x": 1, "tags": ["a"], "odd": 1},
        {"q": "b", "n": 2, "x": 0.5, "tags": [], "odd": "two", "late": True},
    ]
    batch = client.submit(rows, prompt="{{ q }}", model=MODEL)
    work(store, batch.id)
    found = batch.to_arrow()
    kinds = [str(found.schema.field(name).type) for name in ("q", "n", "x", "tags", "odd", "late")]
    assert [kind.replace("item", "element") for kind in kinds] == [
        "string", "int64", "double", "list<element: string>", "string", "bool",
    ]  # fmt: skip
    assert found.column("odd").to_pylist() == ["1", "two"]
    assert found.column("late").to_pylist() == [None, True]


def test_several_texts_are_several_rows(client: Client, store: Store) -> None:
    """Each with the number of the choice; the line's tokens stand with the first."""

    def two(job: Job) -> list[Choice]:
        return [Choice(0, "a", "eos"), Choice(1, "b", "eos")]

    batch = client.submit([{"q": "x"}], prompt="{{ q }}", model=MODEL, n=2)
    work(store, batch.id, answer=two)
    found = batch.to_arrow()
    assert found.column("completion").to_pylist() == ["a", "b"]
    assert found.column("choice").to_pylist() == [0, 1]
    assert found.column("completion_tokens").to_pylist()[1] is None


def scored_choice(job: Job) -> list[Choice]:
    """What a worker says of a line: of one with an echo, of one with a continuation."""
    token = {"token": "a", "id": 7, "logprob": -0.5, "bytes": [97]}
    if job.continuation is None:
        first = {**token, "logprob": None, "top_logprobs": None}
        return [Choice(0, "aa", "max_tokens", logprobs=[first, {**token, "top_logprobs": [token]}])]
    listed = [None, {"id": 7, "token": "a", "logprob": -0.5, "rank": 1, "top": [token]}]
    score = {"logprob": -0.5, "tokens": 1, "is_greedy": True}
    return [Choice(0, "", "scored", score=score, prompt_logprobs=listed)]


@pytest.mark.parametrize("table", [True, False])
def test_scores_are_columns(client: Client, store: Store, tmp_path: Path, table: bool) -> None:
    """Sums of continuations, and the log-probabilities of tokens where lines have them, in each format; a batch without
    any has no such columns."""
    prompts = [
        {"prompt": "a", "echo": True, "logprobs": True},
        {"prompt": "a", "continuation": "a", "prompt_logprobs": 0},
    ]
    if table:  # whose columns are known before the records are
        batch = client.submit(
            [{"q": "a"}, {"q": "a"}],
            template={"prompt": "{{ q }}", "continuation": "a", "prompt_logprobs": 0},
            model=MODEL,
        )
    else:
        batch = client.submit(prompts, model=MODEL)
    work(store, batch.id, answer=scored_choice)
    for suffix in ("parquet", "flat", "csv"):
        write_results(store, batch.id, Destination(tmp_path / suffix, fmt=suffix))
    rows = pq.read_table(tmp_path / "parquet").to_pylist()
    flat = [orjson.loads(line) for line in (tmp_path / "flat").read_bytes().splitlines()]
    shown = list(csv.DictReader(io.StringIO((tmp_path / "csv").read_text())))
    best = {"token": "a", "id": 7, "logprob": -0.5}
    assert rows[1]["score"] == flat[1]["score"] == {"logprob": -0.5, "tokens": 1, "is_greedy": True}
    assert rows[1]["prompt_logprobs"] == [None, {**best, "rank": 1, "top": [best]}]
    assert [entry and entry["rank"] for entry in flat[1]["prompt_logprobs"]] == [None, 1]
    assert orjson.loads(shown[1]["prompt_logprobs"]) == flat[1]["prompt_logprobs"]
    assert ("logprobs" in rows[0]) is not table
    if not table:
        first = {"token": "a", "id": 7, "logprob": None, "top_logprobs": None}
        assert rows[0]["logprobs"] == [first, {**best, "top_logprobs": [best]}]
        assert [entry["logprob"] for entry in flat[0]["logprobs"]] == [None, -0.5]
        assert (rows[0]["score"], rows[0]["prompt_logprobs"], rows[1]["logprobs"]) == (None, None, None)
        assert shown[0]["prompt_logprobs"] == ""


def test_shards_of_parquet(client: Client, store: Store, tmp_path: Path) -> None:
    """Files of about a size, numbered; those of an earlier time are gone, and all rows are there, in order."""
    rows = [{"q": f"{number} {'x' * 400}"} for number in range(300)]
    batch = client.submit(rows, prompt="{{ q }}", model=MODEL)
    work(store, batch.id)
    (tmp_path / "out-00000-of-00099.parquet").write_bytes(b"old")
    write_results(store, batch.id, Destination(tmp_path / "out.parquet", fmt="parquet", shard_bytes=1))
    found = sorted(tmp_path.glob("out-*"))
    assert not (tmp_path / "out-00000-of-00099.parquet").exists()
    assert [pq.read_table(path).num_rows for path in found]
    whole = pa.concat_tables([pq.read_table(path) for path in found])
    assert whole.column("q").to_pylist() == [row["q"] for row in rows]


def test_a_frame_of_each_library(client: Client, store: Store) -> None:
    """Data frames of pandas and polars, tables of Arrow and data sets are taken as they are."""
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    datasets = pytest.importorskip("datasets")
    columns = {"question": ["one", "two"], "n": [1, 2]}
    frames = [
        pandas.DataFrame(columns), polars.DataFrame(columns), pa.table(columns), datasets.Dataset.from_dict(columns),
    ]  # fmt: skip
    for frame in frames:
        batch = client.submit(frame, template=USER, where="n > 1", model=MODEL)
        work(store, batch.id)
        found = batch.to_arrow()
        assert found.column("n").to_pylist() == [2], type(frame)
        assert found.schema.field("n").type == pa.int64()


def test_a_table_that_is_no_lines_is_explained(client: Client) -> None:
    """With its columns, and the flag that would work."""
    with pytest.raises(RefusedError, match=r"columns question, n.*--user '\{\{ question \}\}'"):
        client.submit(pa.table({"question": ["x"], "n": [1]}), model=MODEL)


# --- run ---

Run = Callable[..., int]


@pytest.fixture
def start(server_url: str, tmp_path: Path) -> Run:
    """Run a table into out.parquet with the stub worker; options are the request's."""

    def go(**options: Any) -> int:
        request = RunRequest(
            source=str(tmp_path / "in.csv"),
            destination=Destination(tmp_path / "out.parquet", fmt="parquet"),
            defaults=Defaults({"model": "pocket"}),
            table=TableOrder(template=USER),
            redis_url=server_url,
            worker=STUB,
        )
        environ = {"PROMPTMILL_DATA_DIR": str(tmp_path / "data")}
        return run(replace(request, **options), environ=environ, progress=Progress(io.StringIO()))

    return go


def test_a_run_of_a_table_repeats_nothing(store: Store, start: Run, tmp_path: Path) -> None:
    """The same table and order are gone on with; a changed row, template or condition is refused by its name."""
    table = tmp_path / "in.csv"
    table.write_text("question,n\none,1\ntwo,2\n")
    assert start() == 0
    before = pq.read_table(tmp_path / "out.parquet")
    assert before.column("question").to_pylist() == ["one", "two"]
    assert start(worker=("false",)) == 0
    assert pq.read_table(tmp_path / "out.parquet").equals(before)
    for changed, said in (
        (TableOrder(template={"prompt": "{{ question }}"}), "the template"),
        (TableOrder(template=USER, where="n == '1'"), "where"),
        (TableOrder(template=USER, keep="none"), "keep"),
    ):
        with pytest.raises(RefusedError, match=f"have changed: {said}"):
            start(table=changed)
    table.write_text("question,n\none,1\nthree,2\n")
    with pytest.raises(RefusedError, match="the prompts in"):
        start()
    assert len(store.batches()) == 1


# --- lines that are equal ---


def test_equal_lines_run_once(client: Client, store: Store, tmp_path: Path) -> None:
    """Each gets the record of the first under its own id, index and metadata, over shards; lines that are drawn are run
    all."""
    rows = [{"q": f"question {number % 60}", "n": number} for number in range(200)]
    batch = client.submit(rows, prompt="{{ q }}", model=MODEL, dedupe=True)
    assert batch.submitted is not None
    assert (batch.submitted.total, batch.submitted.twins, batch.status().total) == (200, 140, 60)
    done: list[int] = []

    def count(job: Job) -> list[Choice]:
        done.append(job.index)
        return echo(job)

    work(store, batch.id, answer=count)
    assert sorted(done) == list(range(60))
    records = list(batch.results())
    assert [record["index"] for record in records] == list(range(200))
    assert [record["id"] for record in records] == [f"line-{number}" for number in range(1, 201)]
    assert [record["metadata"]["n"] for record in records] == list(range(200))
    assert all(record["text"] == records[at % 60]["text"] for at, record in enumerate(records))
    assert batch.to_arrow().column("n").to_pylist() == list(range(200))
    followed = list(batch.results(follow=True))
    assert sorted(record["index"] for record in followed) == list(range(200))
    for fmt in ("chat", "completions", "openai", "native"):
        write_results(store, batch.id, Destination(tmp_path / fmt, fmt=fmt))
        assert len((tmp_path / fmt).read_bytes().splitlines()) == 200, fmt
    drawn = client.submit(rows, prompt="{{ q }}", model=MODEL, dedupe=True, temperature=1.0)
    assert (drawn.submitted.twins if drawn.submitted else None, drawn.status().total) == (0, 200)
    seeded = client.submit(rows, prompt="{{ q }}", model=MODEL, dedupe=True, temperature=1.0, seed=1)
    assert seeded.status().twins == 140


def test_equal_lines_fail_together_and_are_retried(client: Client, store: Store) -> None:
    """Twins of a line that failed have its error; once it is run again they have its result; a purge leaves nothing."""

    def failing(job: Job) -> list[Choice]:
        raise LineError("internal_error", None, "not today")

    rows = [{"q": "x", "n": number} for number in range(3)]
    batch = client.submit(rows, prompt="{{ q }}", model=MODEL, dedupe=True)
    work(store, batch.id, answer=failing)
    assert [record["metadata"]["n"] for record in batch.errors()] == [0, 1, 2]
    assert batch.retry() == 1
    work(store, batch.id)
    assert [record["metadata"]["n"] for record in batch.results()] == [0, 1, 2]
    cancelled = client.submit(rows, prompt="{{ q }}", model=MODEL, dedupe=True)
    cancelled.cancel()
    assert [record["error"]["code"] for record in cancelled.errors()] == ["cancelled"] * 3
    for one in (batch, cancelled):
        one.purge()
        assert not list(store.connection.scan_iter(f"*{one.id}*"))


# --- columns of JSON texts, and the card ---


def saying(*texts: str) -> Callable[[Job], list[Choice]]:
    """An answer of one of these texts, by the line's index."""
    return lambda job: [Choice(0, texts[job.index % len(texts)], "eos")]


def test_json_columns(client: Client, store: Store, tmp_path: Path) -> None:
    """Keys of texts that are objects, with their types, after the columns of the result; other texts have none."""
    batch = client.submit([{"q": "a", "n": 1}, {"q": "b", "n": 2}], prompt="{{ q }}", model=MODEL)
    work(store, batch.id, answer=saying('{"n": 7, "tags": ["x"]}', "no"))
    write_results(store, batch.id, Destination(tmp_path / "o.parquet", fmt="parquet", json_columns=True))
    found = pq.read_table(tmp_path / "o.parquet")
    assert found.column("n").to_pylist() == [1, 2]
    assert found.column_names[-2:] == ["json_n", "tags"]
    assert found.column("json_n").to_pylist() == [7, None]
    assert found.column("tags").to_pylist() == [["x"], None]
    write_results(store, batch.id, Destination(tmp_path / "o.csv", fmt="csv", json_columns=True))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "o.csv").read_text())))
    assert [(row["json_n"], row["tags"]) for row in rows] == [("7", '["x"]'), ("", "")]
    write_results(store, batch.id, Destination(tmp_path / "o.flat", fmt="flat", json_columns=True))
    first, second = map(orjson.loads, (tmp_path / "o.flat").read_bytes().splitlines())
    assert (first["n"], first["json_n"], "json_n" in second) == (1, 7, False)


def test_the_card_is_true(client: Client, store: Store, tmp_path: Path) -> None:
    """Its counts, columns, files, parameters and template are those of the batch; data sets read the folder by it."""
    datasets = pytest.importorskip("datasets")

    def last_fails(job: Job) -> list[Choice]:
        if job.metadata["n"] == 2:
            raise LineError("context_length_exceeded", "prompt", "too long")
        return echo(job)

    folder = tmp_path / "set"
    folder.mkdir()
    rows = pa.table({"q": ["a", "b", "c"], "n": [0, 1, 2]})
    batch = client.submit(rows, prompt="Say {{ q }}", model=MODEL, max_tokens=9, name="A | set")
    work(store, batch.id, answer=last_fails)
    out = folder / "out.parquet"
    write_results(store, batch.id, Destination(out, fmt="parquet", card=True, shard_bytes=1 << 20))
    card = (folder / "README.md").read_text()
    done = batch.status()
    for fact in (
        "3 rows of 3 lines, 1 of which failed", batch.id, f"| model (2 lines) | {MODEL}, revision ",
        f"| tokens of texts | {done.usage.completion_tokens:,} |", "| texts ended by | eos 2 |",
        "| failed lines | context_length_exceeded 1 |", "| n | int64 |", "| completion | string |",
        '"max_tokens": 9', "Say {{ q }}", "out-00000-of-00001.parquet",
    ):  # fmt: skip
        assert fact in card, fact
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["n"][:] == [0, 1, 2]
    write_results(store, batch.id, Destination(out, fmt="parquet", card=True))
    (folder / "README.md").write_text("mine")
    with pytest.raises(RefusedError, match="no card of ours"):
        write_results(store, batch.id, Destination(out, fmt="parquet", card=True))


def test_every_library_reads_what_is_written(client: Client, store: Store, tmp_path: Path) -> None:
    """pandas, polars, DuckDB and datasets see the same rows."""
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    duckdb, datasets = pytest.importorskip("duckdb"), pytest.importorskip("datasets")
    batch = client.submit(pa.table({"q": ["a", "b"], "n": [1, 2]}), prompt="{{ q }}", model=MODEL)
    work(store, batch.id)
    path = str(tmp_path / "out.parquet")
    write_results(store, batch.id, Destination(Path(path), fmt="parquet"))
    assert pandas.read_parquet(path)["n"].tolist() == [1, 2]
    assert polars.read_parquet(path)["n"].to_list() == [1, 2]
    assert duckdb.sql(f"select n from '{path}' order by n").fetchall() == [(1,), (2,)]
    loaded = datasets.load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["n"][:] == [1, 2]


# --- schedules ---


def test_a_schedule_keeps_its_table(client: Client, store: Store) -> None:
    """Lines are made when it is added; what batches remember of the columns is kept with them."""
    client.add_schedule(
        "nightly", typed().select(["question", "n", "day"]), cron="0 2 * * *", template=USER, model=MODEL
    )
    batch = client.run_schedule("nightly")
    work(store, batch.id)
    found = batch.to_arrow()
    assert found.column("n").to_pylist() == [0, 1, 2, 3]
    assert str(found.schema.field("day").type) == "date32[day]"


def test_a_schedule_keeps_rows_as_they_are(client: Client, store: Store) -> None:
    """Lines have the numbers of their rows; a row that makes none is an error of each batch where such are skipped,
    with its columns, and else refuses the schedule by its number."""
    rows = [{"q": f"question {number}", "n": number} for number in range(1, 7)]
    rows[4] = {"n": 5}
    said: dict[str, Any] = {"cron": "0 2 * * *", "user": "{{ q }}", "where": "n > 3", "model": MODEL}
    client.add_schedule("nightly", rows, on_bad_line="skip", **said)
    batch = client.run_schedule("nightly")
    work(store, batch.id)
    assert [record["id"] for record in batch.results()] == ["line-4", "line-6"]
    (failed,) = batch.errors()
    assert (failed["id"], failed["error"]["code"], failed["metadata"]) == ("line-5", "missing_field", {"n": 5})
    with pytest.raises(InputError) as caught:
        client.add_schedule("other", rows, **said)
    assert [problem.line for problem in caught.value.problems] == [5]
    bad = [{"prompt": "a"}, {"prompt": float("nan")}]
    client.add_schedule("dicts", bad, cron="0 2 * * *", model=MODEL, on_bad_line="skip")
    batch = client.run_schedule("dicts")
    work(store, batch.id)
    assert [record["error"]["code"] for record in batch.errors()] == ["out_of_range"]


# --- the recipe ---

RECIPE = Path(__file__).parents[3] / "examples" / "synthetic"


def test_the_recipe_makes_data_of_seeds(client: Client, store: Store, tmp_path: Path) -> None:
    """The second command reads what the first wrote: instructions of topics, then answers, then training data."""
    first = client.submit(RECIPE / "seeds.csv", template=RECIPE / "instructions.toml", repeat=3, model=MODEL)
    assert first.status().total == 24
    work(store, first.id, answer=lambda job: [Choice(0, f'{{"instruction": "Explain {job.index} to me."}}', "eos")])
    table = tmp_path / "instructions.parquet"
    write_results(store, first.id, Destination(table, fmt="parquet", json_columns=True))
    found = pq.read_table(table)
    assert {"topic", "passed", "tries", "instruction"} <= set(found.column_names)
    second = client.submit(
        table, template=RECIPE / "answers.toml", where="instruction is not none",
        keep_columns="topic,kind,level,instruction", model=MODEL,
    )  # fmt: skip
    work(store, second.id, answer=saying("It is like this."))
    answers = second.to_arrow()
    assert answers.column_names[:5] == ["topic", "kind", "level", "instruction", "completion"]
    write_results(store, second.id, Destination(tmp_path / "train.jsonl", fmt="chat"))
    lines = (tmp_path / "train.jsonl").read_bytes().splitlines()
    assert orjson.loads(lines[0])["messages"] == [
        {"role": "user", "content": "Explain 0 to me."},
        {"role": "assistant", "content": "It is like this."},
    ]
    assert len(lines) == 24
