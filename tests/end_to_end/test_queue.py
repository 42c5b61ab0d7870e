"""What runs, what waits and for what; that the newest configuration counts; checksums that it requires."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.support.daemon import Daemon, edged, eventually, running, workers
from tests.support.tasks import Task


@pytest.fixture(scope="module")
def daemon(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    shared = {"calibration": {"dir": str(task.calibration)}, "input": {"size": 8, "resize": 8}}
    models = [{"name": name, **shared} for name in ("digits", "other")]
    with running(tmp_path_factory.mktemp("queue"), task.calibration, models=models) as daemon:
        yield daemon


def queue(daemon: Daemon) -> list[tuple[str, str, str | None]]:
    return [(row["file"], row["state"], row["waiting_for"]) for row in daemon.status()["queue"]]


def reload_with(daemon: Daemon, model: int, **settings: Any) -> None:
    daemon.config["models"][model].update(settings)
    daemon.write_config()
    daemon.reload()


def suspended_worker(daemon: Daemon) -> psutil.Process:
    (worker,) = eventually(lambda: workers(daemon), "a worker")
    worker.suspend()
    return worker


def test_the_queue_is_visible_and_the_newest_config_counts(daemon: Daemon, task: Task) -> None:
    assert daemon.status()["queue"] == []
    daemon.drop(task.first)
    worker = suspended_worker(daemon)
    daemon.drop(task.second, model="other")
    daemon.await_queued("second.pt")  # or both could be found at once
    daemon.drop(task.second, "later.pt")
    waits = "update 1 of digits (first.pt)"
    eventually(lambda: [file for file, *_ in queue(daemon)] == ["first.pt", "second.pt", "later.pt"], "the queue")
    eventually(lambda: {state for _, state, _ in queue(daemon)[1:]} == {"QUEUED"}, "both are claimed")
    daemon.await_queued("later.pt")
    assert [waiting_for for *_, waiting_for in queue(daemon)] == [None, waits, waits]
    rows = daemon.status()["queue"]
    assert rows[0]["since"] <= rows[1]["since"] <= rows[2]["since"]
    oldest = daemon.metric('edged_queue_oldest_timestamp_seconds{model="other"}')
    assert oldest == pytest.approx(rows[1]["since"], abs=0.001)
    assert daemon.metric('edged_queue_length{model="digits"}') == 2
    command = [sys.executable, "-m", "service.cli.main", "status", "--socket", str(daemon.state / "edged.sock")]
    text = subprocess.run([*command, "other"], capture_output=True, text=True, check=False).stdout
    assert f"waits for {waits}" in text
    assert "later.pt" not in text

    # The file is claimed already; what the config says when its turn comes decides.
    reload_with(daemon, 1, arch="resnet18")
    worker.resume()
    refused = daemon.update_of("second.pt")
    assert (refused["state"], refused["code"]) == ("REJECTED", "architecture")
    assert "the file holds a cifar_resnet20, not the resnet18" in refused["reason"]
    assert "queue" in refused["stages"]
    assert "load" not in refused["stages"]
    assert daemon.update_of("first.pt")["state"] == daemon.update_of("later.pt")["state"] == "COMMITTED"
    assert daemon.metric('edged_queue_oldest_timestamp_seconds{model="other"}') == 0
    assert daemon.metric('edged_update_stage_duration_seconds_count{model="other",stage="queue"}') == 1

    # The key is that of the config that refused it, so that the same file is tried again once the config is mended.
    del daemon.config["models"][1]["arch"]
    daemon.write_config()
    daemon.reload()
    assert daemon.put_live(task.second, "mended.pt", "other")["state"] == "COMMITTED"


def test_a_rollback_to_another_interface_is_chosen_by_its_number(daemon: Daemon, task: Task, tmp_path: Path) -> None:
    state = torch.load(task.first, weights_only=True)
    head = {name: state[name][:9].clone() for name in ("linear.weight", "linear.bias")}
    torch.save({**state, **head}, tmp_path / "nine.pt")
    daemon.drop(tmp_path / "nine.pt", "refused.pt")
    refused = daemon.update_of("refused.pt")
    assert (refused["state"], refused["code"]) == ("REJECTED", "gate")
    assert "has 9 classes, generation 2 in service has 10" in refused["reason"]
    reload_with(daemon, 0, gates={"same_interface": False})
    assert daemon.put_live(tmp_path / "nine.pt")["generation"] == 3
    reload_with(daemon, 0, gates={})

    code, answer = edged(daemon, "rollback", "digits")
    assert (code, answer["code"]) == (3, "gate")
    assert "generation 2 has 10 classes, generation 3 in service has 9; clients rely on it" in answer["error"]
    assert "`edged rollback digits --to 2`" in answer["error"]
    assert daemon.generation() == 3
    code, answer = edged(daemon, "rollback", "digits", "--to", "2")
    assert (code, answer["to"]) == (0, 2)
    assert answer["warnings"] == ["generation 2 has 10 classes, generation 3 in service has 9"]
    assert daemon.generation() == 2


def test_a_checksum_that_is_required(daemon: Daemon, task: Task, tmp_path: Path) -> None:
    daemon.config["drop"] = {"require_checksum": True}
    reload_with(daemon, 1)
    before, file = daemon.generation("other"), tmp_path / "legacy.pt"
    # Without a zip around it, torch does not notice a changed byte of the weights.
    torch.save(torch.load(task.first, weights_only=True), file, _use_new_zipfile_serialization=False)
    content, folder = file.read_bytes(), daemon.state / "drop" / "other"
    digest = hashlib.sha256(content).hexdigest()
    daemon.drop(file, model="other")

    def waits() -> bool:
        return any("legacy.pt.sha256" in entry["reason"] for entry in daemon.status()["unclaimed"])

    eventually(waits, "it waits for its checksum")
    refused = daemon.update_of("legacy.pt")
    assert (refused["state"], refused["code"], refused["sha256"]) == ("REJECTED", "no_checksum", None)
    assert "`sha256sum legacy.pt > legacy.pt.sha256`" in refused["reason"]
    counted = 'edged_updates_total{model="other",reason="no_checksum",result="rejected"}'
    eventually(lambda: daemon.metric(counted) == 1, "it is counted")
    (folder / "legacy.pt.sha256").write_text(f"{digest}  legacy.pt\n")  # better late than never
    eventually(lambda: daemon.generation("other") != before, "it is taken after all")
    taken = daemon.update_of("legacy.pt", "COMMITTED")
    assert list(folder.iterdir()) == []

    code, report = edged(daemon, "report", str(taken["id"]))
    assert (code, report["update"]["sha256"], report["report"]["source"]["sha256"]) == (0, digest, digest)
    assert digest in Path(report["path"]).read_text()
    (newest, *_) = daemon.get("/edged/v1/models/other/history").json()["updates"]
    assert newest["sha256"] == digest

    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    (folder / "flipped.pt.sha256").write_text(f"{digest}  flipped.pt\n")
    (tmp_path / "flipped.pt").write_bytes(flipped)
    daemon.drop(tmp_path / "flipped.pt", model="other")
    refused = daemon.update_of("flipped.pt")
    assert (refused["state"], refused["code"]) == ("REJECTED", "checksum")
    assert hashlib.sha256(flipped).hexdigest() in refused["reason"]
    assert digest in refused["reason"]
    code, update = edged(daemon, "submit", task.second, "--model", "other", "--wait")
    assert (code, update["state"]) == (0, "COMMITTED")
