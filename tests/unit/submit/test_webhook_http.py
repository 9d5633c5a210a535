"""One POST to a webhook: what it may be sent to, how it is signed, and what is made of the other side's answers."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.delivery import Delivery, check_webhook, delivery_of, origin, webhook_id
from jobs.errors import RefusedError
from submit.webhooks.http import DEADLINE_S, TIMEOUT_S, HttpAnswer, post
from submit.webhooks.signature import Signer
from submit.webhooks.store import LEASE_S
from tests.programs import needs
from tests.receiver import receiving
from tests.waiting import until


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody trusts, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder / "cert.pem", folder / "key.pem"


def server_context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


@contextmanager
def trickling(first: bytes) -> Iterator[int]:
    """The port of a server that sends ``first``, and then for five seconds a byte now and then."""
    stopped = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(first)
                for _ in range(250):
                    if stopped.wait(0.02):
                        return
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            stopped.set()
            thread.join()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    """It is a failure like any other status: where it points might be anywhere."""
    with receiving() as elsewhere, receiving() as receiver:
        receiver.answers = [(status, {"Location": elsewhere.url})]
        assert post(receiver.url, b"{}", {}, local=True) == HttpAnswer(status, f"HTTP {status}")
        assert elsewhere.received == []


@needs("openssl")
def test_a_certificate_that_is_not_trusted_is_not_accepted(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent; with its authority in SSL_CERT_FILE it is."""
    with receiving(server_context(certificate)) as receiver:
        answer = post(receiver.url, b"{}", {}, local=True)
        assert answer.status is None
        assert "certificate not accepted: self-signed certificate" in answer.text
        assert receiver.received == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        assert post(receiver.url, b"{}", {}, local=True).status == 204


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_receiver_that_trickles_is_cut_off(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, and all of them never: in the head of an answer, or in the handshake of TLS."""
    monkeypatch.setattr("submit.webhooks.http.DEADLINE_S", 0.3)
    handshake = b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc\x03\x03"  # the beginning of a long hello
    with trickling(b"HTTP/1.1 200 OK\r\nX-Long: " if scheme == "http" else handshake) as port:
        begun = time.monotonic()
        answer = post(f"{scheme}://127.0.0.1:{port}/", b"{}", {}, local=True)
        assert time.monotonic() - begun < 4
    assert answer.status == (200 if scheme == "http" else None)


def test_what_hinders_is_said_in_our_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """No status, and nothing the other side wrote."""
    with socket.create_server(("127.0.0.1", 0)) as silent, monkeypatch.context() as patch:
        port = silent.getsockname()[1]
        patch.setattr("submit.webhooks.http.TIMEOUT_S", 0.2)
        assert post(f"http://127.0.0.1:{port}/", b"{}", {}, local=True) == HttpAnswer(None, "no answer in time")
    with socket.socket() as bound:  # and not listening: nobody else can take the port
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/"
        assert post(url, b"{}", {}, local=True) == HttpAnswer(None, "Connection refused")
    assert post("http://" + "a" * 70 + ".example/", b"{}", {}, local=True).status is None
    with trickling(b"SSH-2.0-hello \x1b[31m\r\n") as port:
        assert post(f"http://127.0.0.1:{port}/", b"{}", {}, local=True) == HttpAnswer(None, "no answer (BadStatusLine)")


@pytest.mark.parametrize(
    ("value", "seconds"), [("120", 120.0), ("-1", None), ("soon", None), ("9" * 30, None), ("", None)]
)
def test_only_a_pause_that_is_one_is_taken(value: str, seconds: float | None) -> None:
    """Seconds or a date."""
    with receiving() as receiver:
        receiver.answers = [(503, {"Retry-After": value})]
        assert post(receiver.url, b"{}", {}, local=True).retry_after_s == seconds


def test_no_connection_is_left_open() -> None:
    """Every watch over an answer ends with it."""
    before = threading.active_count()
    with receiving() as receiver:
        for _ in range(3):
            post(receiver.url, b"{}", {}, local=True)
        until(lambda: threading.active_count() <= before + 1, "no timer is left")


def test_a_receiver_that_keeps_the_connection_is_left() -> None:
    """It hears the end of it at once, and no watch is left behind."""
    before, ended = threading.active_count(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                while not connection.recv(4096).endswith(b"{}"):
                    pass
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n")
                connection.settimeout(20)
                if connection.recv(1) == b"":
                    ended.set()

        thread = threading.Thread(target=serve)
        thread.start()
        assert post(f"http://127.0.0.1:{server.getsockname()[1]}/", b"{}", {}, local=True).status == 200
        assert ended.wait(10)
        thread.join()
    until(lambda: threading.active_count() <= before, "no timer is left")


@contextmanager
def deaf() -> Iterator[int]:
    """The port of a server that takes no more connections: whoever calls waits."""
    with socket.socket() as server, contextlib.ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield server.getsockname()[1]


def test_the_deadline_is_over_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, and however long each may be waited for."""
    monkeypatch.setattr("submit.webhooks.http.DEADLINE_S", 0.6)
    begun = time.monotonic()
    with deaf() as port:
        entry = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))
        answer = post("http://a.example/", b"{}", {}, local=True, addresses=lambda *_, **__: [entry] * 50)
    assert answer == HttpAnswer(None, "no answer in time")
    assert 0.5 < time.monotonic() - begun < 5


def test_a_name_that_is_looked_for_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline begins before it is looked for."""
    monkeypatch.setattr("submit.webhooks.http.DEADLINE_S", 0.2)
    found = threading.Event()
    answer = post("http://a.example/", b"{}", {}, addresses=lambda *_, **__: found.wait(20) and [])
    found.set()
    assert answer == HttpAnswer(None, "no answer in time")


def test_all_of_a_try_fits_in_its_lease() -> None:
    """Another makes the next try no sooner."""
    assert DEADLINE_S + TIMEOUT_S < LEASE_S


def test_three_addresses_are_tried() -> None:
    """The third answers; a fourth is not asked."""
    with socket.socket() as gone, receiving() as receiver:
        gone.bind(("127.0.0.1", 0))  # and not listening
        nobody = gone.getsockname()

        def led_to(nobodies: int) -> HttpAnswer:
            ends = [nobody] * nobodies + [("127.0.0.1", receiver.port)]
            entries = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", end) for end in ends]
            return post("http://a.example/", b"{}", {}, local=True, addresses=lambda *_, **__: entries)

        assert led_to(2).status == 204
        assert led_to(3) == HttpAnswer(None, "Connection refused")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.1.2.3",
        "::1",
        "::ffff:127.0.0.1",
        "0.0.0.0",
        "::",
        "169.254.169.254",
        "fe80::1%lo",
        "224.0.0.1",
    ],
)
def test_this_machine_is_not_called_whatever_its_name(address: str) -> None:
    """The address is looked at where it is called: a name that led elsewhere before is of no help."""
    with receiving() as receiver:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        entry = (family, socket.SOCK_STREAM, 0, "", (address, receiver.port))
        answer = post("http://rebound.example/", b"{}", {}, addresses=lambda *_, **__: [entry])
        assert answer == HttpAnswer(None, f"{address} is local: name the host in --webhook-hosts", refused=True)
        assert receiver.received == []


@pytest.mark.parametrize("address", ["10.1.2.3", "192.168.1.20", "172.16.0.9", "fd00::1", "8.8.8.8"])
def test_a_network_of_ones_own_is_called(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools are in such networks. (Nothing need answer there.)"""
    monkeypatch.setattr("submit.webhooks.http.DEADLINE_S", 0.1)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    entry = (family, socket.SOCK_STREAM, 0, "", (address, 9))
    assert not post("http://a.example/", b"{}", {}, addresses=lambda *_, **__: [entry]).refused


def test_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would call what is not to be called from here."""
    with receiving() as proxy, receiving() as receiver:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        assert post(receiver.url, b"{}", {}, local=True).status == 204
        assert proxy.received == []
        [request] = receiver.received
    assert request.path == "/hooks/token-in-path?key=in-query"
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/", "file:///etc/passwd", "//example.com/x", "example.com", "https://", "http:///x", "",
        "https://user:pw@example.com/", "https://user@example.com/", "https://example.com/#part",
        "https://example.com/a b", "https://exämple.com/", "https://example.com/\n", "https://example.com:99999/",
        "https://example.com:0/", "https://[::1/", "https://example.com/" + "a" * 2048, "http://a\\@b/",
        "http://127.0.0.1%c2%a0.example.com/", "http://a%2eb/", "http://a*b/", "http://a;b/", "http://[fe80::1%25eth0]/",
        "javascript:alert(1)", "HTTP//x", "https://example.com/\x00",
    ],
)  # fmt: skip
def test_a_url_that_is_no_webhooks_is_refused(url: str) -> None:
    """The message says what is wrong and repeats none of it."""
    with pytest.raises(RefusedError, match=r"^the webhook .*; give a URL such as https://") as refused:
        check_webhook(url)
    assert "pw" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://example.com/hooks/secret?token=x", "https://example.com"),
        ("HTTP://Example.com:8080", "http://example.com:8080"),
        ("http://[::1]:9000/x", "http://[::1]:9000"),
        ("http://127.0.0.1/", "http://127.0.0.1"),
    ],
)
def test_of_a_url_no_more_is_shown_than_its_host(url: str, shown: str) -> None:
    """Receivers keep secrets in paths and queries."""
    assert check_webhook(url) == url
    assert origin(url) == shown


def test_no_secret_is_repeated_or_shown() -> None:
    """Neither in a refusal nor in a representation."""
    for text in (
        "hunter2",
        "whsec_hunter2",
        "whsec_" + "A" * 12,
        "whsec_" + "A" * 200,
        "",
        "whsec_äääääääääääääääääääää",
    ):
        with pytest.raises(RefusedError, match="openssl rand") as refused:
            Signer(text)
        assert "hunter2" not in str(refused.value)
    assert "A" * 8 not in repr(Signer("whsec_" + "A" * 40))


def test_the_example_of_the_scheme_is_signed_as_it_says() -> None:
    """The signature of the official libraries' own test."""
    signer = Signer("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_delivery_is_of_the_present_end_alone() -> None:
    """What is stored of an earlier end says nothing."""
    name = webhook_id("b_01X", "1790000000.25")
    assert name == "msg_01X_179000000025"
    stored = {"status": "completed", "completed_at": "1790000000.25", "webhook_id": name, "webhook_tries": "3"}
    stored |= {"webhook_state": "delivered", "webhook_answer": "HTTP \x1b200", "webhook_next": ""}
    assert delivery_of("b_01X", stored) == Delivery("delivered", 3, "HTTP ?200", None)
    assert delivery_of("b_01X", {**stored, "completed_at": "1790000099.5"}) == Delivery()
    for wrong in ({"webhook_tries": "x"}, {"webhook_next": "nan"}, {"webhook_next": "1e99"}):
        with pytest.raises(ValueError, match=r".+"):
            delivery_of("b_01X", {**stored, **wrong})
