"""`promptmill serve` as tools use it: the official client, against a running server and a worker without a model."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import orjson
import pytest
from openai import OpenAI
from openai.types import Batch

from jobs.redis.connect import connect
from jobs.store.store import Store
from tests.commands import promptmill
from tests.pool import make_batch, prompts
from tests.programs import needs
from tests.servers import running_server
from tests.serving import MODEL, Served, quick_worker, serving
from tests.waiting import until

CHAT = "/v1/chat/completions"
MESSAGES: Any = [{"role": "user", "content": "Say hello"}]


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    """A Redis of this module's own."""
    with running_server() as url:
        yield url


@pytest.fixture(scope="module")
def served(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server, and a worker for MODEL."""
    with (
        quick_worker(redis_url),
        serving(redis_url, tmp_path_factory.mktemp("files"), "--request-timeout", "20s") as server,
    ):
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[OpenAI]:
    """The official client, which refuses answers that are not what it expects."""
    with OpenAI(
        base_url=served.url, api_key="none", max_retries=0, timeout=30, _strict_response_validation=True
    ) as made:
        yield made


def line(name: str, **body: Any) -> dict[str, Any]:
    fields = {"model": MODEL, "messages": MESSAGES, **body}
    return {"custom_id": name, "method": "POST", "url": CHAT, "body": fields}


def upload(client: OpenAI, *lines: Any, name: str = "in.jsonl") -> str:
    text = "\n".join(item if isinstance(item, str) else json.dumps(item) for item in lines)
    return client.files.create(file=(name, text.encode()), purpose="batch").id


def create(client: OpenAI, file_id: str, **fields: Any) -> Batch:
    return client.batches.create(**{"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", **fields})


def ended(client: OpenAI, batch: Batch) -> Batch:
    done = ("completed", "failed", "cancelled", "expired")
    return until(lambda: ((now := client.batches.retrieve(batch.id)).status in done and now) or None, "it ends")


# --- files ---


def test_a_file_is_kept_as_it_was_sent(client: OpenAI) -> None:
    """What is uploaded can be listed, fetched whole and in part, and deleted."""
    data = b'{"a": 1}\n{"b": "\xc3\xa4"}\n'
    file = client.files.create(
        file=("../../etc/x y.jsonl", data),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (file.bytes, file.filename, file.purpose, file.status) == (len(data), "x y.jsonl", "batch", "processed")
    assert file.expires_at == file.created_at + 3600
    assert client.files.retrieve(file.id) == file
    assert file.id in [other.id for other in client.files.list(purpose="batch", limit=1)]
    assert client.files.content(file.id).content == data
    part = client.files.with_raw_response.content(file.id, extra_headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, data[2:6])
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_files_are_listed_a_page_at_a_time(client: OpenAI) -> None:
    """Pages follow each other by the last id, in either order, without a gap."""
    made = [upload(client, {"n": number}) for number in range(5)]
    oldest = [file.id for file in client.files.list(limit=2, order="asc", purpose="batch")]
    newest = [file.id for file in client.files.list(limit=2, order="desc", purpose="batch")]
    assert [file for file in oldest if file in made] == made
    assert [file for file in newest if file in made] == made[::-1]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "anything"}, "purpose"),
        ({"purpose": "batch", "file": ("x.jsonl", b"")}, "file"),
        ({"purpose": "batch", "expires_after": {"anchor": "created_at", "seconds": 5}}, "expires_after.seconds"),
    ],
)
def test_a_bad_upload_is_refused(client: OpenAI, fields: dict[str, Any], param: str) -> None:
    """The error names the field."""
    with pytest.raises(openai.BadRequestError) as error:
        client.files.create(**{"file": ("x.jsonl", b"{}"), **fields})
    assert error.value.param == param
    assert error.value.request_id


# --- batches ---


def test_a_batch_runs_and_its_output_is_fetched(client: OpenAI) -> None:
    """From a file to answers, with OpenAI's states, counts, times and usage; metadata comes back."""
    lines = [line(f"row-{number}") for number in range(120)]
    batch = create(client, upload(client, *lines), metadata={"team": "a"})
    assert (batch.status, batch.metadata) == ("validating", {"team": "a"})
    batch = ended(client, batch)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed) == (120, 120)
    assert batch.created_at <= (batch.in_progress_at or 0) <= (batch.completed_at or 0)
    assert batch.usage is not None
    assert batch.usage.input_tokens == 1200
    assert batch.output_file_id is not None
    assert batch.error_file_id is None
    output = client.files.retrieve(batch.output_file_id)
    content = client.files.content(batch.output_file_id).content
    assert (output.purpose, output.bytes) == ("batch_output", len(content))
    records = [json.loads(text) for text in content.splitlines()]
    assert sorted(record["custom_id"] for record in records) == sorted(item["custom_id"] for item in lines)
    assert all(record["response"]["body"]["choices"][0]["message"]["content"] for record in records)
    part = client.files.with_raw_response.content(output.id, extra_headers={"Range": "bytes=100-299"})
    assert (part.status_code, part.content) == (206, content[100:300])
    assert batch.id in [other.id for other in client.batches.list(limit=3)]
    with pytest.raises(openai.ConflictError, match="Cannot cancel"):
        client.batches.cancel(batch.id)
    client.files.delete(output.id)
    with pytest.raises(openai.NotFoundError):
        client.files.content(output.id)


BAD_LINES = [
    ("{bad json", "invalid_json_line", None),
    ({"method": "POST", "url": CHAT, "body": line("x")["body"]}, "missing_required_parameter", "custom_id"),
    ({"custom_id": "x", "url": CHAT, "body": line("x")["body"]}, "missing_required_parameter", "method"),
    ({"custom_id": "x", "method": "POST", "body": line("x")["body"]}, "missing_required_parameter", "url"),
    ({"custom_id": "x", "method": "POST", "url": CHAT}, "missing_required_parameter", "body"),
    (line("x", stream=True), "streaming_unsupported", "body.stream"),
    (line("x") | {"url": "/v1/embeddings"}, "invalid_url", "url"),
    (line("x") | {"url": "/v1/completions"}, "invalid_url", "url"),
    (line("x", model="nobody/has-it"), "model_not_found", "body.model"),
    (line("x", model=None), "invalid_request", "body.model"),
    (line("x", messages=None), "invalid_request", "body.messages"),
    (line("good"), "duplicate_custom_id", "custom_id"),
]


@pytest.mark.parametrize(("bad", "code", "param"), BAD_LINES)
def test_a_bad_line_fails_the_batch(client: OpenAI, bad: Any, code: str, param: str | None) -> None:
    """With OpenAI's code, the line's number and the field; the batch stays to be looked at."""
    batch = ended(client, create(client, upload(client, line("good"), bad)))
    assert batch.status == "failed"
    assert batch.failed_at is not None
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(error.code, error.line, error.param) for error in batch.errors.data] == [(code, 2, param)]


def test_a_bad_value_fails_its_line_alone(client: OpenAI) -> None:
    """The others run; the line has an error with the status of a refused request."""
    batch = ended(client, create(client, upload(client, line("good"), line("hot", temperature=-1))))
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 1)
    (failed,) = map(json.loads, client.files.content(batch.error_file_id or "").text.splitlines())
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("hot", 400)
    assert "temperature" in failed["error"]["message"]


def test_a_batch_is_made_of_files_for_batches(client: OpenAI) -> None:
    """Files of other purposes are kept and listed by theirs; as a batch's input they are refused."""
    file = client.files.create(file=("x.jsonl", b"{}"), purpose="fine-tune")
    assert file.purpose == "fine-tune"
    assert file.id in [other.id for other in client.files.list(purpose="fine-tune")]
    assert file.id not in [other.id for other in client.files.list(purpose="batch")]
    batch = ended(client, create(client, file.id))
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert "fine-tune" in (batch.errors.data[0].message or "")


def test_a_file_that_is_not_there_fails_the_batch(client: OpenAI) -> None:
    """As with OpenAI, after its creation."""
    batch = ended(client, create(client, "file-nonexistent-xyz"))
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(error.code, error.line) for error in batch.errors.data] == [("invalid_request", None)]
    assert "cannot find file" in (batch.errors.data[0].message or "").lower()


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, "invalid_value", "endpoint"),
        ({"completion_window": "soon"}, "invalid_value", "completion_window"),
        ({"completion_window": ""}, "invalid_value", "completion_window"),
        ({"metadata": {"tags": ["a"]}}, "invalid_type", "metadata.tags"),
        ({"extra_body": {"input_file": "x"}}, "unknown_parameter", "input_file"),
    ],
)
def test_a_bad_batch_is_refused(client: OpenAI, fields: dict[str, Any], code: str, param: str) -> None:
    """At once, with the field."""
    with pytest.raises(openai.BadRequestError) as error:
        create(client, "file-x", **fields)
    assert (error.value.code, error.value.param) == (code, param)


def test_an_unknown_batch_is_not_found(client: OpenAI) -> None:
    """Neither to retrieve nor to cancel."""
    for act in (client.batches.retrieve, client.batches.cancel):
        with pytest.raises(openai.NotFoundError, match="No batch found"):
            act("batch_nonexistent")


def test_a_batch_is_cancelled(client: OpenAI, redis_url: str) -> None:
    """One that nobody works on ends at once, twice over; its lines are in the file of errors."""
    file_id = upload(client, line("a", model="late/one"))

    def begun() -> Batch | None:
        made = create(client, file_id, extra_body={"priority": "low"})
        found = until(
            lambda: ((now := client.batches.retrieve(made.id)).status != "validating" and now) or None, "it is checked"
        )
        return found if found.status == "in_progress" else None

    with connect(redis_url) as connection:
        connection.zadd("promptmill:models", {"late/one": 4e9})
        batch = until(begun, "the model is known")
        connection.zrem("promptmill:models", "late/one")
    assert client.batches.cancel(batch.id).status == "cancelled"
    batch = client.batches.cancel(batch.id)
    assert batch.cancelling_at == batch.cancelled_at is not None
    assert batch.error_file_id is not None
    failed = json.loads(client.files.content(batch.error_file_id).text)
    assert (failed["custom_id"], failed["error"]["code"]) == ("a", "batch_cancelled")


def test_the_same_creation_sent_twice_makes_one_batch(client: OpenAI) -> None:
    """By its Idempotency-Key, or the field some clients write; another body under the same key is refused."""
    file_id, headers = upload(client, line("a")), {"Idempotency-Key": "once"}
    first, second = (create(client, file_id, extra_headers=headers) for _ in range(2))
    assert first.id == second.id
    data = [{"a": "1", "b": "2"}, {"b": "2", "a": "1"}]
    first, second = (create(client, file_id, metadata=m, extra_body={"idempotency_key": "field"}) for m in data)
    assert first.id == second.id
    with pytest.raises(openai.ConflictError) as error:
        create(client, file_id, completion_window="1h", extra_headers=headers)
    assert error.value.code == "idempotency_conflict"


def test_the_command_line_and_http_see_the_same_batches(client: OpenAI, redis_url: str, tmp_path: Path) -> None:
    """One made over HTTP has a status and results there, and one made there is fetched here."""
    made = ended(client, create(client, upload(client, line("a")), extra_body={"name": "over-http"}))
    status = orjson.loads(promptmill("status", made.id, "--json", PROMPTMILL_REDIS_URL=redis_url).stdout)
    assert (status["name"], status["status"]) == ("over-http", "completed")
    promptmill("results", made.id, "-o", str(tmp_path / "out.jsonl"), PROMPTMILL_REDIS_URL=redis_url)
    assert orjson.loads((tmp_path / "out.jsonl").read_bytes())["id"] == "a"
    with connect(redis_url) as connection:
        other = make_batch(Store(connection), prompts(3), defaults={"model": MODEL})
    seen = until(lambda: ((now := client.batches.retrieve(other)).status == "completed" and now) or None, "it ends")
    assert client.files.content(seen.output_file_id or "").text.count("\n") == 3


# --- completions, models ---


def test_completions_are_answered(client: OpenAI) -> None:
    """Both endpoints, with fields of OpenAI and of ours."""
    chat = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, n=2, service_tier="flex", extra_body={"top_k": 3, "priority": "high"}
    )
    assert [choice.message.content is not None for choice in chat.choices] == [True, True]
    assert chat.usage is not None
    text = client.completions.create(model=MODEL, prompt="Once", max_tokens=3)
    assert text.object == "text_completion"
    assert text.choices[0].text


@pytest.mark.parametrize(
    ("fields", "kind", "code", "param"),
    [
        ({"stream": True}, openai.BadRequestError, "streaming_unsupported", "stream"),
        ({"temperature": -1}, openai.BadRequestError, "out_of_range", "temperature"),
        ({"nonsense": 1}, openai.BadRequestError, "unknown_field", "nonsense"),
        ({"model": "nobody/has-it"}, openai.NotFoundError, "model_not_found", "model"),
        ({"priority": "now"}, openai.BadRequestError, "invalid_value", "priority"),
    ],
)
def test_a_bad_request_is_refused(
    client: OpenAI, fields: dict[str, Any], kind: type[openai.APIStatusError], code: str, param: str
) -> None:
    """With the field and what to write."""
    with pytest.raises(kind) as error:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_body=fields)
    assert (error.value.code, error.value.param) == (code, param)


def test_many_requests_at_once_are_all_answered(client: OpenAI, redis_url: str) -> None:
    """Each gets its own answer, and nothing of them stays in Redis."""
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        answers[number] = client.completions.create(model=MODEL, prompt=str(number)).id

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(answers.values())) == 50
    with connect(redis_url) as connection:
        until(lambda: not connection.zcard("promptmill:requests"), "the batches of requests are removed")


def test_models_that_are_served_are_listed(client: OpenAI) -> None:
    """Also by an id with a slash in it."""
    until(lambda: MODEL in [model.id for model in client.models.list()], "the worker is seen")
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody/has-it")


def test_paths_need_no_version(served: Served) -> None:
    """And what is no path says so, as OpenAI's errors do."""
    base = served.url.removesuffix("/v1")
    assert httpx.get(f"{base}/models").json()["object"] == "list"
    for method, path, status in (("GET", "/v1/nothing", 404), ("PUT", "/v1/batches", 405), ("GET", CHAT, 405)):
        answer = httpx.request(method, base + path)
        assert (answer.status_code, list(answer.json())) == (status, ["error"])
        assert answer.headers["x-request-id"].startswith("req_")
    assert httpx.request("PUT", f"{base}/batches").headers["allow"] == "GET, HEAD, POST"
    assert httpx.request("PUT", f"{base}/files/x").headers["allow"] == "DELETE, GET, HEAD"


@needs("openssl")
def test_keys_and_tls_let_in_who_may(redis_url: str, tmp_path: Path) -> None:
    """With a key over https; the server may then be on any address."""
    names = {"cert": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem"), "keys": str(tmp_path / "keys.json")}
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-out", names["cert"], "-keyout", names["key"]],
        check=True, capture_output=True,
    )  # fmt: skip
    key = promptmill("key", "add", "ann", "--keys", names["keys"]).stdout.strip()
    flags = ("--host", "0.0.0.0", "--keys", names["keys"], "--tls-cert", names["cert"], "--tls-key", names["key"])
    with serving(redis_url, tmp_path / "files", *flags) as server:
        url = server.url.replace("0.0.0.0", "localhost")
        assert url.startswith("https://")
        with httpx.Client(base_url=url, verify=ssl.create_default_context(cafile=names["cert"])) as http:
            assert http.get("/models").status_code == 401
            assert http.get("/models", headers={"Authorization": f"Bearer {key}"}).json()["object"] == "list"


def test_a_server_that_is_stopped_answers_first(redis_url: str, tmp_path: Path) -> None:
    """Who waits gets the answer, a file that was uploaded is there for the next server, and the end is no failure."""
    with serving(redis_url, tmp_path) as server, OpenAI(base_url=server.url, api_key="x", max_retries=0) as client:
        file_id = upload(client, line("a"))
        with connect(redis_url) as connection:
            connection.zadd("promptmill:models", {"late/two": 4e9})
            until(lambda: known(client, "late/two"), "the model is known")
            answers: list[str] = []
            asking = threading.Thread(
                target=lambda: answers.append(client.completions.create(model="late/two", prompt="x").choices[0].text)
            )
            asking.start()
            until(lambda: connection.zcard("promptmill:requests") >= 2, "the request waits, beside that of `known`")
            server.process.terminate()
            with quick_worker(redis_url, "late/two"):
                asking.join(30)
            assert server.process.wait(30) == 0
            connection.zrem("promptmill:models", "late/two")
    assert len(answers) == 1
    with serving(redis_url, tmp_path) as server, OpenAI(base_url=server.url, api_key="x") as client:
        assert client.files.content(file_id).text == json.dumps(line("a"))


def known(client: OpenAI, model: str) -> bool:
    """Whether a server takes requests for a model: it does not wait for the answer."""
    try:
        client.with_options(timeout=0.5).completions.create(model=model, prompt="x")
    except openai.NotFoundError:
        return False
    except openai.APITimeoutError:
        return True
    return True
