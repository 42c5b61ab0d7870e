"""Which of several files for one model is served: no dropped file is lost unread, and an operator can choose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon, edged, eventually, running, workers
from tests.support.tasks import Task


@pytest.fixture(scope="module")
def daemon(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(tmp_path_factory.mktemp("superseding"), task.calibration) as started:
        yield started


def suspended_worker(daemon: Daemon, source: Path, name: str) -> Any:
    """Drop a file, and suspend its worker: other files are dropped while it runs."""
    daemon.drop(source, name)
    (worker,) = eventually(lambda: workers(daemon), f"the worker of {name}")
    worker.suspend()
    return worker


def junk(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(f"no checkpoint: {name}".encode() * 100)
    return path


def test_a_newer_file_that_is_junk_supersedes_nothing(daemon: Daemon, task: Task, tmp_path: Path) -> None:
    worker = suspended_worker(daemon, task.first, "running.pt")
    daemon.drop(task.second, "waiting.pt")
    daemon.await_queued("waiting.pt")
    daemon.drop(junk(tmp_path, "junk.pt"))
    daemon.await_queued("junk.pt")
    worker.resume()
    waiting, rejected = daemon.update_of("waiting.pt"), daemon.update_of("junk.pt")
    assert (rejected["state"], rejected["code"]) == ("REJECTED", "checkpoint")
    assert waiting["state"] == "COMMITTED"
    assert rejected["id"] > waiting["id"]
    assert daemon.generation() == waiting["generation"]
    assert daemon.metric('edged_updates_total{model="digits",reason="superseded",result="superseded"}') == 0


def test_what_a_fit_file_supersedes_is_kept_and_taken_again(daemon: Daemon, task: Task, tmp_path: Path) -> None:
    older = variant(task.first, tmp_path / "older.pt")
    worker = suspended_worker(daemon, variant(task.first, tmp_path / "busy.pt"), "busy.pt")
    daemon.drop(older)
    daemon.await_queued("older.pt")
    daemon.drop(variant(task.second, tmp_path / "newer.pt"))
    daemon.await_queued("newer.pt")
    worker.resume()
    superseded, newer = daemon.update_of("older.pt"), daemon.update_of("newer.pt")
    assert (superseded["state"], superseded["code"]) == ("SUPERSEDED", "superseded")
    assert newer["state"] == "COMMITTED"
    retry = f"`edged retry {superseded['id']}` takes this one again"
    assert superseded["reason"] == f"update {newer['id']} brings a newer file, newer.pt; {retry}"
    kept = daemon.state / "superseded" / superseded["sha256"]
    assert (kept / "file").read_bytes() == older.read_bytes()
    assert json.loads((kept / "reason.json").read_text())["result"] == "superseded"

    code, answer = edged(daemon, "retry", str(superseded["id"]))
    assert (code, answer["retry_of"], answer["file_name"]) == (0, superseded["id"], "older.pt")
    again = daemon.update_of("older.pt")
    assert (again["id"], again["state"]) == (answer["update"], "COMMITTED")
    assert daemon.generation() == again["generation"]
    assert not kept.exists()
    daemon.await_no_claims()


def test_a_running_update_is_cancelled_and_taken_again(daemon: Daemon, task: Task, tmp_path: Path) -> None:
    live = daemon.generation()
    suspended_worker(daemon, variant(task.first, tmp_path / "unwanted.pt"), "unwanted.pt")
    update = daemon.update_of("unwanted.pt", "CLAIMED", "VERIFIED", "LOADED", "CALIBRATED", "QUANTIZED")
    code, answer = edged(daemon, "cancel", str(update["id"]))
    assert (code, answer["state"]) == (0, "CANCELLED")
    assert Path(answer["kept"], "file").read_bytes() == (tmp_path / "unwanted.pt").read_bytes()
    assert workers(daemon) == []
    update = daemon.update_of("unwanted.pt")
    assert (update["state"], update["code"]) == ("CANCELLED", "cancelled")
    assert daemon.generation() == live
    assert daemon.metric('edged_updates_total{model="digits",reason="cancelled",result="cancelled"}') == 1
    assert edged(daemon, "retry", str(update["id"]))[0] == 0
    assert daemon.update_of("unwanted.pt")["state"] == "COMMITTED"


def test_a_waiting_update_is_cancelled(daemon: Daemon, task: Task, tmp_path: Path) -> None:
    worker = suspended_worker(daemon, variant(task.first, tmp_path / "first_in.pt"), "first_in.pt")
    daemon.drop(variant(task.second, tmp_path / "second_in.pt"))
    update = daemon.update_of("second_in.pt", "CLAIMED")
    answer = daemon.post(f"/edged/v1/updates/{update['id']}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (200, "CANCELLED")
    worker.resume()
    assert daemon.update_of("first_in.pt")["state"] == "COMMITTED"


@pytest.mark.slow
def test_an_update_that_waits_at_a_pin_is_cancelled(daemon: Daemon, task: Task, tmp_path: Path) -> None:
    daemon.put_live(task.first)  # something to be pinned to
    live = daemon.generation()
    worker = suspended_worker(daemon, variant(task.second, tmp_path / "pinned.pt"), "pinned.pt")
    assert edged(daemon, "pin", "digits")[0] == 0
    worker.resume()
    waiting = eventually(lambda: next((u for u in daemon.updates() if u["code"] == "pinned"), None), "it waits")
    assert waiting["state"] == "PUBLISHED"
    code, answer = edged(daemon, "cancel", str(waiting["id"]))
    assert (code, answer["state"], Path(answer["kept"], "file").exists()) == (0, "CANCELLED", True)
    assert edged(daemon, "unpin", "digits")[0] == 0
    assert daemon.generation() == live


def test_a_rejected_file_is_retried_after_the_config_has_changed(daemon: Daemon, task: Task, tmp_path: Path) -> None:
    model = daemon.config["models"][0]
    daemon.config["models"][0] = {**model, "arch": "resnet18"}
    daemon.reload()
    live = variant(task.first, tmp_path / "other_arch.pt")
    daemon.drop(live)
    rejected = daemon.update_of("other_arch.pt")
    assert rejected["state"] == "REJECTED"
    code, answer = edged(daemon, "retry", str(rejected["id"]))  # nothing has changed: it is inspected, and rejected
    assert code == 0
    again = eventually(
        lambda: next((u for u in daemon.updates() if u["id"] == answer["update"] and u["state"] == "REJECTED"), None),
        "it is rejected again",
    )
    assert "the same file was rejected before" not in again["reason"]
    daemon.config["models"][0] = model
    daemon.reload()
    assert edged(daemon, "retry", str(rejected["id"]))[0] == 0
    assert daemon.update_of("other_arch.pt")["state"] == "COMMITTED"


def test_what_cannot_be_retried_or_cancelled_is_explained(daemon: Daemon, task: Task, tmp_path: Path) -> None:
    committed = daemon.put_live(variant(task.first, tmp_path / "served.pt"))
    for action, identity, code, reason in (
        ("retry", committed["id"], 4, "is COMMITTED: it was served, so there is nothing to retry"),
        ("cancel", committed["id"], 4, "has ended: it is COMMITTED"),
        ("retry", 999, 2, "no update 999"),
        ("cancel", 999, 2, "no update 999"),
    ):
        exit_code, answer = edged(daemon, action, str(identity))
        assert exit_code == code
        assert reason in answer["error"]
    with daemon.tcp() as client:  # over TCP nothing is administered without a token
        assert client.post(f"/edged/v1/updates/{committed['id']}/retry").status_code == 403


@pytest.mark.slow
def test_what_waits_survives_a_kill(daemon: Daemon, task: Task, tmp_path: Path) -> None:
    worker = suspended_worker(daemon, variant(task.first, tmp_path / "killed.pt"), "killed.pt")
    daemon.drop(variant(task.second, tmp_path / "waits.pt"))
    daemon.await_queued("waits.pt")
    daemon.drop(junk(tmp_path, "junk2.pt"))
    daemon.await_queued("junk2.pt")
    worker.resume()  # suspended, it would not notice that its parent has ended
    daemon.kill()
    daemon.start()
    assert daemon.update_of("junk2.pt")["state"] == "REJECTED"
    assert daemon.update_of("waits.pt")["state"] == "COMMITTED"
    interrupted = daemon.update_of("killed.pt")  # it goes on first
    assert (interrupted["state"], interrupted["attempt"]) == ("COMMITTED", 2)


def variant(source: Path, target: Path) -> Path:
    """Write the same network as another file, so that it is not recognized."""
    import torch

    state = torch.load(source, weights_only=True)
    torch.save({"state_dict": state, "note": target.name}, target)
    return target
