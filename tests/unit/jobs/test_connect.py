"""URLs of Redis as they are shown: whatever is secret in them, and however odd they are, it is not."""

from __future__ import annotations

import contextlib
import socket
import threading
from urllib.parse import quote

import pytest
from hypothesis import given, settings, strategies as st
from redis.exceptions import ConnectionError

from jobs.errors import RedisError, RefusedError
from jobs.redis.connect import connect, redacted, translated

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:s3cr3t@host", "redis://:***@host"),
        ("rediss://user:s3cr3t@host:1/2?ssl_ca_certs=/a.crt", "rediss://user:***@host:1/2?ssl_ca_certs=/a.crt"),
        ("redis://s3cr3t@host", "redis://***@host"),
        ("redis://user:s3%40cr3t@[::1]:6379", "redis://user:***@[::1]:6379"),
        ("redis://host?username=me&password=s3cr3t", "redis://host?username=me&password=***"),
        ("redis://host?p%61ssword=s3cr3t", "redis://host?p%61ssword=***"),
        ("rediss://host?ssl_password=s3cr3t&db=1", "rediss://host?ssl_password=***&db=1"),
        ("unix:///tmp/a@b.sock", "unix:///tmp/a@b.sock"),
        ("unix://me:s3cr3t@/tmp/a.sock?db=1", "unix://me:***@/tmp/a.sock?db=1"),
        ("redis://:s3/cr3t@host", "(an invalid URL)"),
        ("redis://:s3#cr3t@host", "(an invalid URL)"),
        ("redis://me:s3@cr3t@host", "redis://me:***@host"),
        ("redis:/me:s3cr3t@host", "(an invalid URL)"),
        ("redis://[::1", "(an invalid URL)"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    """Address and settings stay readable."""
    assert redacted(url) == shown


@given(
    before=st.text(st.characters(codec="utf-8"), max_size=8),
    after=st.text(st.characters(codec="utf-8"), max_size=8),
    encoded=st.booleans(),
    form=st.sampled_from(
        ["redis://:{}@host", "rediss://me:{}@[::1]:1/2", "redis://{}@host", "unix://a:{}@/tmp/x", "redis:///?password={}",
         "redis://host/1?db=1&password={}", "rediss://host?ssl_password={}&db=1", "redis://host?%70assword={}"]
    ),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_no_password_is_ever_shown(before: str, after: str, encoded: bool, form: str) -> None:
    """Wherever a password stands and whatever it is made of, neither the URL shown nor an error has it."""
    password = f"{before}{SECRET}{after}"
    url = form.format(quote(password, safe="") if encoded else password)
    # What is not encoded ends where the URL says so; before a colon it is a user's name.
    if encoded or not set(password) & set("?#&/:" if form == "redis://{}@host" else "?#&/"):
        assert SECRET not in redacted(url)


@pytest.mark.parametrize(
    "url", ["redis://:s3cr3t/x@host", "redis://a:s3cr3t#b@host", "http://a:s3cr3t@host", "redis://h:s3cr3t", "s3cr3t@h"]
)
def test_errors_of_odd_urls_do_not_quote_them(url: str) -> None:
    """What redis-py says of a URL may have a part of the password in it."""
    with pytest.raises(RefusedError) as raised:
        connect(url)
    assert SECRET not in str(raised.value)


def test_what_is_not_redis_is_named() -> None:
    """A web server at the port: no traceback, and the remedy."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(1000)
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(RedisError, match="is not Redis; give its address with --redis"):
            connect(f"redis://127.0.0.1:{listener.getsockname()[1]}")
        listener.shutdown(socket.SHUT_RDWR)


def test_settings_of_tls_want_its_scheme() -> None:
    """One letter is missing; a setting that does not exist is named too."""
    with pytest.raises(RefusedError, match=r"ssl_ca_certs is for rediss://, which speaks TLS"):
        connect("redis://localhost:1?ssl_ca_certs=/x")
    with pytest.raises(RefusedError, match=r"colour is not known: remove it"):
        connect("redis://localhost:1?colour=red")


def test_an_error_is_one_sentence_with_its_remedy() -> None:
    """The stop that redis-py puts behind some of its errors does not come between them."""
    with pytest.raises(RedisError, match=r"closed by server; start it, or if it wants TLS"), translated("redis://h"):
        raise ConnectionError("Connection closed by server.")
