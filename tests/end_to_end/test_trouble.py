"""What goes wrong apart from the file: calibration images, gates, memory, time. The old model serves on."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import torch

from tests.support import trained
from tests.support.daemon import NO_CERTIFICATES, Daemon, children, eventually, running, workers
from tests.support.tasks import Task


def test_no_calibration_images(task: Task, tmp_path: Path) -> None:
    """Put off, tried again, live once there are images; given up after worker.tries."""
    empty = tmp_path / "images"
    empty.mkdir()
    with running(tmp_path, empty, worker={"retry_s": 0.1, "tries": 2}) as daemon:
        daemon.drop(task.first)
        failed = daemon.update_of("first.pt")
        assert (failed["state"], failed["code"], failed["attempt"]) == ("FAILED", "calibration", 2)
        assert f"calibration folder {empty} has 0 usable images" in failed["reason"]
        assert "tried 2 times" in failed["reason"]
        assert (daemon.state / "rejected" / failed["sha256"] / "reason.json").exists()
        counted = 'edged_updates_total{model="digits",reason="calibration",result="failed"}'
        eventually(lambda: daemon.metric(counted) == 1, "it is counted")

        shutil.copytree(task.calibration, empty, dirs_exist_ok=True)
        assert daemon.put_live(task.first, "again.pt")["generation"] == 1  # the file was not at fault


def test_a_newer_file_takes_the_place_of_one_that_waits(task: Task, tmp_path: Path) -> None:
    empty = tmp_path / "images"
    empty.mkdir()
    with running(tmp_path, empty, worker={"retry_s": 600}) as daemon:
        daemon.drop(task.first)
        waiting = daemon.update_of("first.pt", "DEFERRED")
        assert waiting["code"] == "calibration"
        shutil.copytree(task.calibration, empty, dirs_exist_ok=True)
        newer = daemon.put_live(task.second)
        older = daemon.update_of("first.pt")
        assert (older["state"], older["code"]) == ("SUPERSEDED", "superseded")
        assert f"update {newer['id']} brings a newer file" in older["reason"]
        daemon.await_no_claims()


def test_a_deferred_update_is_tried_again_after_a_restart(task: Task, tmp_path: Path) -> None:
    empty = tmp_path / "images"
    empty.mkdir()
    with running(tmp_path, empty, worker={"retry_s": 600}) as daemon:
        daemon.drop(task.first)
        daemon.update_of("first.pt", "DEFERRED")
        assert daemon.stop() == 0
        shutil.copytree(task.calibration, empty, dirs_exist_ok=True)
        daemon.start()
        assert daemon.update_of("first.pt")["state"] == "COMMITTED"


def test_a_gate_that_is_not_passed(task: Task, tmp_path: Path) -> None:
    untrained = tmp_path / "untrained.pt"  # its outputs are so close to each other that two bits mix them up
    torch.save(trained.train(task.digits, epochs=0, seed=0).state_dict(), untrained)
    with running(tmp_path, task.calibration) as daemon:
        daemon.put_live(task.first)
        daemon.config["models"][0] |= {
            "quantization": {"bits": 2, "method": "rtn", "propagation": 0.0, "statistics": "none"},
            "gates": {"min_agreement": 100.0, "above_chance": False},
        }
        daemon.reload()
        daemon.drop(untrained)
        update = daemon.update_of("untrained.pt")
        assert (update["state"], update["code"]) == ("REJECTED", "gate")
        assert "gates.min_agreement is 100 %" in update["reason"]
        assert serves(daemon, task) == "1"


def test_limits_of_the_worker(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        daemon.put_live(task.first)
        for limit, code, reason in (
            ({"memory_max": "60MiB"}, "memory", "worker.memory_max is 60 MiB"),
            ({"deadline_s": 0.1}, "timeout", "worker.deadline_s = 0.1 s"),
        ):
            daemon.config["worker"] |= {"tries": 1, "memory_max": "4GiB", "deadline_s": 600} | limit
            daemon.reload()
            daemon.drop(task.second, f"{code}.pt")
            update = daemon.update_of(f"{code}.pt")
            assert (update["state"], update["code"]) == ("FAILED", code)
            assert reason in update["reason"]
        assert serves(daemon, task) == "1"


def test_a_worker_that_is_killed_is_started_again(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        daemon.drop(task.first)
        (worker,) = eventually(lambda: workers(daemon), "a worker")
        worker.kill()
        update = daemon.update_of("first.pt")
        assert (update["state"], update["attempt"]) == ("COMMITTED", 2)
        events = daemon.get(f"/edged/v1/updates/{update['id']}").json()["events"]
        deferred = next(event for event in events if event["state"] == "DEFERRED")
        assert "was killed" in deferred["detail"]["reason"]


def test_reloading_the_config(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        daemon.put_live(task.first)
        pid = daemon_child(daemon)
        good = dict(daemon.config)

        daemon.config = {**good, "models": [{"name": "digits"}], "serve": {"port": -1}}
        daemon.reload("config not reloaded")
        log = daemon.log.read_text()
        assert "models[0].calibration" in log
        assert "serve.port" in log
        assert daemon.metric("edged_config_reload_success") == 0
        assert serves(daemon, task) == "1"

        other = {**good["models"][0], "name": "other"}
        daemon.config = {**good, "models": [*good["models"], other], "serve": {"port": 1}}
        daemon.reload()
        assert "serve.port only changes with a restart" in daemon.log.read_text()
        daemon.drop(task.second, model="other")
        assert daemon.update_of("second.pt")["state"] == "COMMITTED"
        names = [model["name"] for model in daemon.status()["models"]]
        assert names == ["digits", "other"]

        daemon.config = good
        daemon.reload()
        assert daemon.get("/v2/models/other").status_code == 404
        assert serves(daemon, task) == "1"
        assert daemon_child(daemon) == pid  # never restarted
        assert daemon.stop() == 0


def test_administration_over_tcp_needs_the_token(task: Task, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    with running(tmp_path, task.calibration, serve={"port": 0, "token_file": str(token)}) as daemon:
        url = f"{daemon.status()['address']}/edged/v1/models/digits/rollback"
        for headers, status in (
            ({}, 403),
            ({"Authorization": "Bearer wrong"}, 403),
            ({"Authorization": "Bearer s3cret"}, 409),  # allowed, but there is nothing to go back to
        ):
            answer = httpx.post(url, headers=headers, verify=NO_CERTIFICATES)
            assert answer.status_code == status, answer.text
        assert "no generation to go back to" in answer.json()["error"]


def test_asking_a_model_can_need_a_token(task: Task, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    with running(tmp_path, task.calibration, serve={"port": 0, "inference_token_file": str(token)}) as daemon:
        address = daemon.status()["address"]
        url = f"{address}/v2/models/digits/infer"
        for headers, status in (
            ({}, 403),
            ({"Authorization": "Bearer wrong"}, 403),
            ({"Authorization": "Bearer s3cret"}, 503),  # allowed, but there is no generation yet
        ):
            answer = httpx.post(url, headers=headers, json={}, verify=NO_CERTIFICATES)
            assert answer.status_code == status, answer.text
        assert httpx.get(f"{address}/v2/health/live").status_code == 200
        assert daemon.post("/v2/models/digits/infer", json={}).status_code == 503  # the UNIX socket
        assert daemon.metric('edged_inference_requests_total{code="403",model="digits"}') == 2
        # Whoever may ask may not administer.
        answer = httpx.post(f"{address}/edged/v1/models/digits/pause", headers={"Authorization": "Bearer s3cret"})
        assert answer.status_code == 403


def serves(daemon: Daemon, task: Task) -> str:
    answer = daemon.infer(next(task.test.rglob("*.png")))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["model_version"])


def daemon_child(daemon: Daemon) -> int:
    (child,) = children(daemon, "service.inference.main")
    return int(child.pid)
