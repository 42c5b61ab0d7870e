"""edged keygen, sign, verify, and what inspect shows of a signature."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from edged.signing.keys import read_public_key
from tests.support.commands import execute


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder with a file and two pairs of keys."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "best.pt").write_bytes(b"weights")
    assert [execute("keygen", name) for name in ("old", "new")] == [0, 0]
    capsys.readouterr()
    return tmp_path


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, object]]:
    code = execute(*arguments, "--json")
    return code, json.loads(capsys.readouterr().out)


def test_a_key_pair_is_written_and_the_private_key_not_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, made = answer(capsys, "keygen", "third")
    assert (code, made["private_key"], made["public_key"]) == (0, "third.key", "third.pub")
    assert made["key_id"] == read_public_key(folder / "third.pub").id
    assert stat.S_IMODE((folder / "third.key").stat().st_mode) == 0o600
    secret = (folder / "third.key").read_text().splitlines()[1]
    assert execute("keygen", "fourth") == 0
    shown = capsys.readouterr()
    assert "fourth.key signs: keep it" in shown.out
    assert secret not in json.dumps(made)
    assert (folder / "fourth.key").read_text().splitlines()[1] not in shown.out + shown.err


def test_a_key_pair_is_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert execute("keygen", "old") == 2
    assert "old.key already exists, and a key is never overwritten" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_is_signed_is_verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, signed = answer(capsys, "sign", "best.pt", "--model", "shelf", "--version", "7", "--key", "old.key")
    assert (code, signed["signature"], signed["version"], signed["bytes"]) == (0, "best.pt.sig", 7, 7)
    old = read_public_key(folder / "old.pub")
    assert signed["key_ids"] == [old.id]
    code, verified = answer(capsys, "verify", "best.pt", "--key", "new.pub", "--key", "old.pub", "--model", "shelf")
    assert (code, verified["key"], verified["key_id"], verified["version"]) == (0, "old.pub", old.id, 7)
    assert execute("verify", "best.pt", "--key", "old.pub") == 0
    assert capsys.readouterr().out == f"ok: version 7 of shelf, signed by {old.shown}\n"


def test_with_several_keys_devices_accept_any_of_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--model", "shelf", "--version", 7, "--key", "old.key", "--key", "new.key", "--out", "both.sig")
    assert execute("sign", "best.pt", *arguments) == 0
    for name in ("old", "new"):
        assert execute("verify", "best.pt", "--signature", "both.sig", "--key", f"{name}.pub") == 0


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--key", "new.pub"], "signature", "signed by no accepted key"),
        (["--key", "old.pub", "--model", "cart"], "signature", "is for model shelf, not cart"),
        (["--key", "old.pub", "--signature", "none.sig"], "unsigned", "has no none.sig next to it"),
        (["--key", "old.pub", "--signature", "old.pub"], "signature", "old.pub is no signature"),
        (["--key", "old.key"], "usage", "old.key is a private key"),
    ],
)
def test_what_is_not_accepted_exits_with_the_reason(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: str, reason: str
) -> None:
    execute("sign", "best.pt", "--model", "shelf", "--version", 7, "--key", "old.key")
    capsys.readouterr()
    exit_code, refused = answer(capsys, "verify", "best.pt", *arguments)
    assert (exit_code, refused["code"]) == (2 if code == "usage" else 3, code)
    assert reason in str(refused["error"])


def test_a_changed_file_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    execute("sign", "best.pt", "--model", "shelf", "--version", 7, "--key", "old.key")
    (folder / "best.pt").write_bytes(b"weightz")
    assert execute("verify", "best.pt", "--key", "old.pub") == 3
    assert "best.pt has sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["none.pt", "--model", "shelf", "--key", "old.key"], "none.pt cannot be read: No such file"),
        (["best.pt", "--model", "a/b", "--key", "old.key"], "--model has value 'a/b'"),
        (["best.pt", "--model", "shelf", "--key", "old.pub"], "old.pub is no private key"),
        (["best.pt", "--model", "shelf", "--key", "none.key"], "none.key cannot be read"),
    ],
)
def test_what_cannot_be_signed(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    assert execute("sign", *arguments, "--version", 7) == 2
    assert reason in capsys.readouterr().err
    assert not (folder / "best.pt.sig").exists()


@pytest.mark.parametrize("version", ["0", "-1", "7.0", "x", str(10**30)])
def test_a_version_is_a_whole_number(folder: Path, version: str) -> None:
    with pytest.raises(SystemExit) as ended:
        execute("sign", "best.pt", "--model", "shelf", f"--version={version}", "--key", "old.key")
    assert ended.value.code == 2


def test_a_private_key_that_others_may_read_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "old.key").chmod(0o644)
    assert execute("sign", "best.pt", "--model", "shelf", "--version", 7, "--key", "old.key") == 0
    assert "warning: others may read old.key; `chmod 600 old.key`" in capsys.readouterr().err
