"""Signed checkpoints: what is delivered in which order, who signed it, and which version it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.hostile.spelling import PROTO, call
from tests.support.daemon import Daemon, edged, eventually, put, running
from tests.support.signing import Signer
from tests.support.tasks import Task

AUDITED = Path(__file__).parents[1] / "support" / "audited"
HOSTILE = PROTO + call("posix.system", "touch canary") + b"."


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Signer, Signer]:
    folder = tmp_path_factory.mktemp("keys")
    return Signer(folder, "old"), Signer(folder, "new")


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit") / "events"


@pytest.fixture(scope="module")
def daemon(
    task: Task, signers: tuple[Signer, Signer], audit: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """Two models that need signatures, and one that does not. Files of `hasty` do not wait for a late signature."""
    trust = {"keys": [str(signers[0].public)], "refuse_downgrade": True}
    models = [
        {"name": name, "calibration": {"dir": str(task.calibration)}, "input": {"size": 8, "resize": 8}, **more}
        for name, more in (("digits", {"trust": trust}), ("hasty", {"trust": {**trust, "wait_s": 0}}), ("open", {}))
    ]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", os.pathsep.join([str(AUDITED), *filter(None, [os.environ.get("PYTHONPATH")])]))
        environment.setenv("EDGED_AUDIT", str(audit))
        folder = tmp_path_factory.mktemp("signed")
        with running(folder, task.calibration, models=models, watch={"settle_s": 0.1, "rescan_s": 0.5}) as started:
            yield started


def folder_of(daemon: Daemon, model: str) -> Path:
    return daemon.state / "drop" / model


def rejected(daemon: Daemon, name: str, code: str) -> str:
    """Wait until a file is rejected, check that it and its signature stay, and return the reason."""
    update = daemon.update_of(name, "REJECTED")
    assert (update["code"], update["sha256"], update["signature"]) == (code, None, None)
    assert "\n" not in update["reason"]
    reason: str = update["reason"]
    return reason


def test_a_file_goes_live_with_the_signature_that_came_first(
    daemon: Daemon, task: Task, signers: tuple[Signer, Signer], tmp_path: Path
) -> None:
    shutil.copy(task.first, tmp_path / "first.pt")
    signature = signers[0].write(tmp_path / "first.pt", "digits", 7)
    put(signature, folder_of(daemon, "digits") / "first.pt.sig")
    daemon.drop(tmp_path / "first.pt")
    update = daemon.update_of("first.pt")
    assert update["state"] == "COMMITTED", update
    key = signers[0].key
    assert update["signature"] == {"version": 7, "key": "old.pub", "key_id": key.id}
    assert list(folder_of(daemon, "digits").iterdir()) == []
    assert f"(first.pt) is signed as version 7 with {key.shown}" in daemon.log.read_text()
    (listed,) = daemon.get("/edged/v1/models/digits/history").json()["updates"]
    assert listed["signature"] == update["signature"]
    assert daemon.get(f"/edged/v1/updates/{update['id']}").json()["signature"] == update["signature"]
    page = daemon.get(f"/edged/v1/updates/{update['id']}/report").text
    assert f"version 7, {key.shown}" in page
    assert next(m for m in daemon.status()["models"] if m["name"] == "digits")["highest_version"] == 7


def test_a_file_waits_for_the_signature_that_comes_later(
    daemon: Daemon, task: Task, signers: tuple[Signer, Signer], tmp_path: Path
) -> None:
    shutil.copy(task.second, tmp_path / "second.pt")
    signature = signers[0].write(tmp_path / "second.pt", "digits", 8)
    daemon.drop(tmp_path / "second.pt")
    waiting = eventually(lambda: daemon.status()["unclaimed"], "it is listed")
    assert [entry["path"] for entry in waiting] == ["drop/digits/second.pt"]
    assert waiting[0]["reason"] == "it waits up to 600 s for second.pt.sig: digits has trust.keys"
    # Not renamed into place: what is there for a moment is no whole signature.
    with (folder_of(daemon, "digits") / "second.pt.sig").open("wb") as file:
        for byte in signature.read_bytes():
            file.write(bytes([byte]))
            file.flush()
    update = daemon.update_of("second.pt")
    assert (update["state"], update["signature"]["version"]) == ("COMMITTED", 8), update
    assert [u["state"] for u in daemon.updates() if u["file_name"] == "second.pt"] == ["COMMITTED"]


def test_nothing_of_a_refused_file_is_parsed(
    daemon: Daemon, signers: tuple[Signer, Signer], audit: Path, tmp_path: Path
) -> None:
    """A file that would run code is refused for its signature, before a worker starts; signed, it reaches one."""
    (tmp_path / "unsigned.pt").write_bytes(HOSTILE)
    before = len(audit.read_text())
    daemon.drop(tmp_path / "unsigned.pt", model="hasty")
    assert "edged sign unsigned.pt --model hasty --version N" in rejected(daemon, "unsigned.pt", "unsigned")
    shutil.copy(tmp_path / "unsigned.pt", tmp_path / "forged.pt")
    forged = signers[1].write(tmp_path / "forged.pt", "hasty", 1)
    put(forged, folder_of(daemon, "hasty") / "forged.pt.sig")
    daemon.drop(tmp_path / "forged.pt", model="hasty")
    assert "signed by no accepted key" in rejected(daemon, "forged.pt", "signature")
    events = audit.read_text()[before:]
    assert "service.trust.main" in events
    assert "service.worker.main" not in events
    assert "pickle.find_class" not in events

    shutil.copy(tmp_path / "unsigned.pt", tmp_path / "signed.pt")
    put(signers[0].write(tmp_path / "signed.pt", "hasty", 1), folder_of(daemon, "hasty") / "signed.pt.sig")
    daemon.drop(tmp_path / "signed.pt", model="hasty")
    update = daemon.update_of("signed.pt")
    assert (update["state"], update["code"]) == ("REJECTED", "unsafe_checkpoint")
    assert "service.worker.main" in audit.read_text()[before:]
    assert not list(daemon.folder.rglob("canary"))


def test_a_signature_of_something_else_is_refused(
    daemon: Daemon, task: Task, signers: tuple[Signer, Signer], tmp_path: Path
) -> None:
    old, drop = signers[0], folder_of(daemon, "hasty")
    data = task.first.read_bytes()
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    for name, content, signature in (
        ("model.pt", data, old.signature(data, "digits", 9)),
        ("bit.pt", bytes(changed), old.signature(data, "hasty", 9)),
        ("size.pt", data + b"\0", old.signature(data, "hasty", 9)),
        ("cut.pt", data, old.signature(data, "hasty", 9)[:-20]),
    ):
        (tmp_path / name).write_bytes(content)
        (drop / f"{name}.sig").write_bytes(signature)
        daemon.drop(tmp_path / name, model="hasty")
    assert "signed for model digits" in rejected(daemon, "model.pt", "signature")
    assert "bit.pt.sig is of" in rejected(daemon, "bit.pt", "checksum")
    assert f"the file has {len(data) + 1} bytes" in rejected(daemon, "size.pt", "checksum")
    assert "is no signature of a checkpoint" in rejected(daemon, "cut.pt", "signature")
    assert {path.name for path in drop.iterdir()} >= {"model.pt", "model.pt.sig", "bit.pt", "size.pt", "cut.pt"}
    assert daemon.generation("hasty") is None

    # The file was not lost: with its own signature it is taken, without being dropped again.
    (drop / "cut.pt.sig").write_bytes(old.signature(data, "hasty", 9))
    assert daemon.update_of("cut.pt", "COMMITTED")["signature"]["version"] == 9
    for path in drop.iterdir():
        path.unlink()


def test_an_older_version_is_refused_also_after_a_restart_and_a_rollback_works(
    daemon: Daemon, task: Task, signers: tuple[Signer, Signer], tmp_path: Path
) -> None:
    old, drop = signers[0], folder_of(daemon, "digits")

    def deliver(name: str, version: int) -> None:
        shutil.copy(task.first, tmp_path / name)
        put(old.write(tmp_path / name, "digits", version), drop / f"{name}.sig")
        daemon.drop(tmp_path / name)

    deliver("replayed.pt", 7)  # it was live, and would be again without being quantized
    reason = rejected(daemon, "replayed.pt", "downgrade")
    assert "says version 7, and version 8 of digits was committed" in reason
    assert daemon.stop() == 0
    daemon.start()
    deliver("again.pt", 7)
    rejected(daemon, "again.pt", "downgrade")
    current = daemon.generation("digits")
    assert edged(daemon, "rollback", "digits")[0] == 0
    assert daemon.generation("digits") != current
    deliver("rolled-back.pt", 7)
    rejected(daemon, "rolled-back.pt", "downgrade")
    for path in drop.iterdir():
        path.unlink()


def test_keys_rotate_with_a_reload(daemon: Daemon, task: Task, signers: tuple[Signer, Signer], tmp_path: Path) -> None:
    """What the new key has signed waits where it is until that is accepted; then the old key is not, any more."""
    old, new = signers
    drop = folder_of(daemon, "hasty")
    trust = next(model["trust"] for model in daemon.config["models"] if model["name"] == "hasty")
    shutil.copy(task.second, tmp_path / "next.pt")
    put(new.write(tmp_path / "next.pt", "hasty", 10), drop / "next.pt.sig")
    daemon.drop(tmp_path / "next.pt", model="hasty")
    reason = rejected(daemon, "next.pt", "signature")
    assert new.key.id[:16] in reason
    assert old.key.shown in reason

    trust["keys"] = [str(old.public), str(new.public)]
    daemon.reload()
    update = daemon.update_of("next.pt", "COMMITTED")
    assert update["signature"] == {"version": 10, "key": "new.pub", "key_id": new.key.id}

    trust["keys"] = [str(new.public)]
    daemon.reload()
    shutil.copy(task.first, tmp_path / "late.pt")
    put(old.write(tmp_path / "late.pt", "hasty", 11), drop / "late.pt.sig")
    daemon.drop(tmp_path / "late.pt", model="hasty")
    assert old.key.id[:16] in rejected(daemon, "late.pt", "signature")


def test_an_update_that_waits_is_checked_with_the_keys_of_its_turn(
    daemon: Daemon, task: Task, signers: tuple[Signer, Signer], tmp_path: Path
) -> None:
    """A file that was claimed and kept without a signature is refused once its model has keys."""
    daemon.config["models"][2]["gates"] = {"max_memory": 1}
    daemon.reload()
    daemon.drop(task.first, "kept.pt", model="open")
    failed = daemon.update_of("kept.pt")
    assert (failed["state"], failed["code"]) == ("REJECTED", "gate")
    daemon.config["models"][2] |= {"gates": {}, "trust": {"keys": [str(signers[0].public)]}}
    daemon.reload()
    assert edged(daemon, "retry", failed["id"])[0] == 0
    update = daemon.update_of("kept.pt")
    assert (update["state"], update["code"]) == ("REJECTED", "unsigned")
    # The same file, signed, is taken: that it was refused without a signature is not held against it.
    shutil.copy(task.first, tmp_path / "kept.pt")
    signature = signers[0].write(tmp_path / "kept.pt", "open", 1)
    assert edged(daemon, "submit", tmp_path / "kept.pt", "--model", "open", "--wait")[0] == 0
    signature.unlink()
    code, answer = edged(daemon, "submit", tmp_path / "kept.pt", "--model", "open")
    assert (code, answer["code"]) == (3, "unsigned")


def test_a_model_without_keys_ignores_signatures(
    daemon: Daemon, task: Task, signers: tuple[Signer, Signer], tmp_path: Path
) -> None:
    del daemon.config["models"][2]["trust"]
    daemon.reload()
    shutil.copy(task.second, tmp_path / "free.pt")
    put(signers[1].write(tmp_path / "free.pt", "other", 3), folder_of(daemon, "open") / "free.pt.sig")
    eventually(lambda: "free.pt.sig is ignored: model open has no trust.keys" in daemon.log.read_text(), "a line")
    daemon.drop(tmp_path / "free.pt", model="open")
    update = daemon.update_of("free.pt")
    assert (update["state"], update["signature"]) == ("COMMITTED", None)
    assert list(folder_of(daemon, "open").iterdir()) == []
    assert daemon.status()["unclaimed"] == []
