"""Certificates that a server cannot use are refused before it serves."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from jobs.errors import RefusedError
from serve.http.certificate import check_certificate
from tests.programs import needs


def openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


@needs("openssl")
def test_a_certificate_comes_with_its_key(tmp_path: Path) -> None:
    """What is none, another's key and a locked one are named; nobody is asked for a password."""
    cert, key, other, locked = (tmp_path / name for name in ("cert.pem", "key.pem", "other.pem", "locked.pem"))
    curve = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    for made in (key, other):
        openssl("genpkey", *curve, "-out", str(made))
    openssl("req", "-x509", "-key", str(key), "-subj", "/CN=localhost", "-out", str(cert))
    openssl("pkey", "-in", str(key), "-aes256", "-passout", "pass:secret", "-out", str(locked))
    check_certificate(cert, key)
    for given, said in ((other, "is not the key of"), (locked, "a password locks it"), (cert, "no certificate")):
        with pytest.raises(RefusedError, match=said):
            check_certificate(cert, given)
