"""Claimed files without an update go back to the drop folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from edged.signing.verification import signature_of
from service.intake.claim import claim
from service.intake.orphans import give_back
from service.storage.claim_origin import Origin, write_origin

CONTENT = b"a checkpoint" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Folders in which best.pt of the model m was claimed, and its update was lost."""
    (tmp_path / "drop" / "m").mkdir(parents=True)
    (tmp_path / "drop" / "m" / "best.pt").write_bytes(CONTENT)
    claim(tmp_path / "drop" / "m" / "best.pt", tmp_path / "claimed", origin=Origin("m", "best.pt"))
    return tmp_path


def give(state: Path, *, known: bool = False, models: tuple[str, ...] = ("m",)) -> list[str]:
    paths = give_back(state / "claimed", state / "drop", models, lambda sha256: known)
    return [path.relative_to(state).as_posix() for path in paths]


def left(state: Path) -> list[str]:
    return sorted(path.relative_to(state).as_posix() for path in state.rglob("*") if path.is_file())


def test_a_file_without_an_update_goes_back(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert left(state) == [f"claimed/{DIGEST}/file", f"claimed/{DIGEST}/origin.json"]
    assert give(state) == ["drop/m/best.pt"]
    assert left(state) == ["drop/m/best.pt"]
    assert (state / "drop/m/best.pt").read_bytes() == CONTENT
    assert not list((state / "claimed").iterdir())
    assert "no update knows of it: moved back to the drop folder" in caplog.text


def test_its_signature_goes_back_with_it(state: Path) -> None:
    write_origin(state / "claimed" / DIGEST, Origin("m", "best.pt", '{"envelope": 1}'))
    assert give(state) == ["drop/m/best.pt"]
    signature = signature_of(state / "drop/m/best.pt")
    assert left(state) == ["drop/m/best.pt", f"drop/m/{signature.name}"]
    assert signature.read_text() == '{"envelope": 1}'


def test_a_file_with_an_update_stays(state: Path) -> None:
    assert give(state, known=True) == []
    assert left(state) == [f"claimed/{DIGEST}/file", f"claimed/{DIGEST}/origin.json"]


def test_a_file_that_is_in_the_drop_folder_still_is_not_there_twice(state: Path) -> None:
    (state / "drop/m/best.pt").write_bytes(CONTENT)
    assert give(state) == ["drop/m/best.pt"]
    assert left(state) == ["drop/m/best.pt"]


def test_another_file_of_its_name_stays(state: Path) -> None:
    (state / "drop/m/best.pt").write_bytes(b"another")
    assert give(state) == [f"drop/m/best-{DIGEST[:12]}.pt"]
    assert left(state) == [f"drop/m/best-{DIGEST[:12]}.pt", "drop/m/best.pt"]
    assert (state / "drop/m/best.pt").read_bytes() == b"another"


@pytest.mark.parametrize("why", ["another model", "no origin", "hidden name", "damaged", "no folder"])
def test_what_cannot_be_given_back_stays_and_is_logged(why: str, state: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = state / "claimed" / DIGEST
    if why == "no origin":
        (folder / "origin.json").unlink()
    if why == "hidden name":
        write_origin(folder, Origin("m", ".best.pt"))
    if why == "damaged":
        (folder / "file").write_bytes(b"damaged")
    if why == "no folder":
        (state / "drop" / "m").rmdir()
    assert give(state, models=("n",) if why == "another model" else ("m",)) == []
    assert (folder / "file").exists()
    assert DIGEST in caplog.text


def test_a_drop_folder_on_another_filesystem(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cross_device(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", cross_device)
    assert give(state) == ["drop/m/best.pt"]
    assert (state / "drop/m/best.pt").read_bytes() == CONTENT


def test_a_claim_makes_no_state_folder(state: Path) -> None:
    (state / "drop/m/new.pt").write_bytes(CONTENT)
    with pytest.raises(Exception, match="cannot write"):
        claim(state / "drop/m/new.pt", state / "gone" / "claimed")
    assert (state / "drop/m/new.pt").exists()
    assert not (state / "gone").exists()
