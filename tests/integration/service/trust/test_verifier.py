"""The process that verifies signatures, and what happens where it cannot."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.signing.envelope import Envelope
from service.trust.verifier import VerifierError, verified_by
from tests.support.signing import Signer


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    verified_by.cache_clear()
    yield
    verified_by.cache_clear()


def test_it_tells_which_key_has_signed(tmp_path: Path) -> None:
    old, new = Signer(tmp_path, "old"), Signer(tmp_path, "new")
    envelope = Envelope.from_json(new.signature(b"weights", "shelf", 7))
    signatures = tuple(each.value for each in envelope.signatures)
    assert verified_by(envelope.signed_bytes, signatures, (old.key.raw, new.key.raw)) == 1
    assert verified_by(envelope.signed_bytes, signatures, (old.key.raw,)) is None
    assert verified_by(envelope.signed_bytes + b" ", signatures, (new.key.raw,)) is None
    assert verified_by(envelope.signed_bytes, (b"", b"\xff" * 1000), (new.key.raw,)) is None


def test_an_answer_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signer = Signer(tmp_path, "release")
    assert verified_by(b"message", (b"signature",), (signer.key.raw,)) is None
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    assert verified_by(b"message", (b"signature",), (signer.key.raw,)) is None


def test_without_a_process_nothing_is_said_of_the_signature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signer = Signer(tmp_path, "release")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    for _ in range(2):  # and that is not remembered
        with pytest.raises(VerifierError, match=r"cannot be verified now: .*No such file"):
            verified_by(b"message", (b"signature",), (signer.key.raw,))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ImportError('cannot load libssl')", "exit code 1: ImportError: cannot load libssl"),
        ("raise ModuleNotFoundError(\"No module named 'cryptography'\")", "`pip install cryptography`"),
    ],
)
def test_a_missing_or_broken_library_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, reason: str
) -> None:
    (tmp_path / "cryptography").mkdir()
    (tmp_path / "cryptography" / "__init__.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(VerifierError, match=reason) as raised:
        verified_by(b"message", (b"signature",), (bytes(32),))
    assert "\n" not in str(raised.value)


def test_the_supervisor_does_not_load_the_library() -> None:
    code = "import sys, service.app, service.daemon.supervisor; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
