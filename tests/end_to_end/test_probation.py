"""A generation that does badly under traffic is taken out of service again, and the file is remembered."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.support.daemon import Daemon, children, eventually, running, time_out
from tests.support.requests import TENSOR, TOO_LARGE
from tests.support.tasks import Task


def on_probation(task: Task, daemon: Daemon, probation_s: float, **gates: Any) -> dict[str, Any]:
    """`first` committed, `second` live and on probation."""
    daemon.put_live(task.first)
    daemon.config["models"][0] |= {"probation_s": probation_s, "gates": gates}
    daemon.reload()
    daemon.drop(task.second)
    update = daemon.update_of("second.pt", "LIVE")
    eventually(lambda: daemon.metric('edged_model_probation{model="digits"}') == 1, "the probation")
    return update


def failed(daemon: Daemon) -> dict[str, Any]:
    """The update of `second` once its generation has been taken out of service."""
    update = daemon.update_of("second.pt")
    assert (update["state"], update["code"], update["generation"]) == ("ROLLED_BACK", "probation", 2)
    eventually(lambda: daemon.generation() == 1, "the generation before")
    counted = 'edged_updates_total{model="digits",reason="probation",result="rolled_back"}'
    eventually(lambda: daemon.metric(counted) == 1, "it is counted")
    eventually(lambda: daemon.metric('edged_model_probation{model="digits"}') == 0, "the end of the probation")
    return update


def remembered(daemon: Daemon, task: Task, update: dict[str, Any]) -> None:
    """The same file is not tried again, and lies where refused files lie."""
    daemon.drop(task.second, "again.pt")
    again = daemon.update_of("again.pt")
    assert (again["state"], again["code"]) == ("REJECTED", "probation")
    assert f"the same file was rolled back before, as update {update['id']}" in again["reason"]
    folder = daemon.state / "rejected" / update["sha256"]
    assert (folder / "file").read_bytes() == task.second.read_bytes()
    assert json.loads((folder / "reason.json").read_text())["code"] == "probation"
    daemon.await_no_claims()


def test_too_many_errors_bring_the_generation_before_back(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        daemon.config["serve"]["deadline_ms"] = 3000
        update = on_probation(task, daemon, 600.0)
        for _ in range(26):  # faults of the client: no evidence
            answer = daemon.post("/v2/models/digits/infer", json=TOO_LARGE)
            assert (answer.status_code, "data holds values as large as 3e+38" in answer.text) == (400, True)
        assert daemon.generation() == 2
        eventually(lambda: len(generations(daemon)) == 1, "the generation on probation, alone")
        time_out(daemon, TENSOR, 20)
        update = failed(daemon)
        assert "20 of 20 requests failed (100.0 %), gates.max_error_rate is 5 %" in update["reason"]
        assert daemon.infer(next(task.test.rglob("*.png"))).json()["model_version"] == "1"
        remembered(daemon, task, update)
        # ... nor after a restart.
        assert daemon.stop() == 0
        daemon.start()
        assert daemon.generation() == 1
        daemon.drop(task.second, "and-again.pt")
        assert daemon.update_of("and-again.pt")["state"] == "REJECTED"


def test_a_process_that_ends_twice_brings_the_generation_before_back(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        on_probation(task, daemon, 600.0)
        for crashes in (1, 2):
            eventually(lambda: daemon.status()["models"][0]["ready"], "the generation")
            kill_generation(daemon)
            eventually(lambda n=crashes: daemon.status()["models"][0]["restarts"] >= n, "the crash")  # type: ignore[misc]
        assert "its process exited unexpectedly 2 times" in failed(daemon)["reason"]


def kill_generation(daemon: Daemon) -> None:
    for generation in generations(daemon):
        with contextlib.suppress(psutil.NoSuchProcess):  # the one before may just be leaving
            generation.kill()


def test_a_probation_that_is_passed_and_one_that_a_restart_interrupts(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        update = on_probation(task, daemon, 600.0)
        assert daemon.stop() == 0
        daemon.config["models"][0]["probation_s"] = 3
        daemon.start()
        assert daemon.generation() == 2
        ended = daemon.update_of("second.pt")
        assert (ended["id"], ended["state"], ended["code"]) == (update["id"], "COMMITTED", None)


def test_an_operator_may_be_faster(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        update = on_probation(task, daemon, 600.0)
        assert daemon.post("/edged/v1/models/digits/rollback").json() == {"model": "digits", "from": 2, "to": 1}
        ended = daemon.update_of("second.pt")
        assert (ended["id"], ended["state"], ended["code"]) == (update["id"], "ROLLED_BACK", "rollback")
        daemon.await_no_claims()
        assert daemon.generation() == 1


def test_the_first_generation_has_none_and_keeps_no_other_waiting(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        daemon.config["models"][0]["probation_s"] = 600
        daemon.reload()
        daemon.drop(task.first)
        update = daemon.update_of("first.pt")
        assert (update["state"], update["code"]) == ("COMMITTED", None)
        assert "no probation, there is no generation to go back to" in daemon.log.read_text()
        daemon.drop(task.second)
        daemon.update_of("second.pt", "LIVE")


@pytest.mark.slow
def test_a_generation_that_fails_stays_where_the_one_before_does_not_come_up(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        daemon.config["serve"]["deadline_ms"] = 3000
        on_probation(task, daemon, 600.0)
        eventually(lambda: len(generations(daemon)) == 1, "the generation on probation, alone")
        (daemon.state / "models/digits/gen/1/weights.safetensors").unlink()
        time_out(daemon, TENSOR, 20)
        update = daemon.update_of("second.pt")
        assert (update["state"], update["code"]) == ("COMMITTED", "probation")
        assert "it stays in service: cannot read" in update["reason"]
        assert daemon.infer(next(task.test.rglob("*.png"))).json()["model_version"] == "2"


def test_a_gate_before_the_switch_rejects_with_the_figures(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        daemon.put_live(task.first)
        daemon.config["models"][0] |= {"gates": {"max_memory": "1MiB"}, "keep": 2}
        daemon.reload()
        daemon.drop(task.second)
        update = daemon.update_of("second.pt")
        assert (update["state"], update["code"]) == ("REJECTED", "gate")
        assert "gates.max_memory is 1.0 MiB" in update["reason"]
        assert daemon.generation() == 1
        daemon.drop(task.second, "again.pt")
        assert "the same file was rejected before" in daemon.update_of("again.pt")["reason"]

        # What is refused after it was published does not fill the disk.
        for name in ("third.pt", "fourth.pt"):
            torch.save(torch.load(task.second), tmp_path / name)  # the name is part of the file
            daemon.drop(tmp_path / name)
            assert daemon.update_of(name)["code"] == "gate"
        generations = daemon.state / "models" / "digits" / "gen"
        eventually(lambda: {path.name for path in generations.iterdir()} == {"1", "3", "4"}, "generation 2 is removed")


def renumbered(task: Task, folder: Path) -> Path:
    """The second network with its classes in another order: as sure as before, and never of one mind with the first."""
    state = torch.load(task.second)
    for name in ("linear.weight", "linear.bias"):
        state[name] = state[name].roll(1, 0)
    torch.save(state, folder / "renumbered.pt")
    return folder / "renumbered.pt"


SHADOW = 'edged_model_shadow_agreement_ratio{model="digits"}'


def test_answers_that_differ_from_those_before_bring_the_generation_before_back(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        daemon.put_live(task.first)
        # above_chance is what tells such a file before it goes live, where images have labels
        gates = {"min_shadow_agreement": 80, "shadow_percent": 100, "above_chance": False}
        daemon.config["models"][0] |= {"probation_s": 600, "gates": gates}
        daemon.reload()
        daemon.drop(renumbered(task, tmp_path))
        daemon.update_of("renumbered.pt", "LIVE")
        assert len(generations(daemon)) == 2  # the one before is still there
        images = itertools.cycle(sorted(task.test.rglob("*.png")))
        eventually(lambda: daemon.infer(next(images)).json().get("model_version") != "2", "too many differ")
        update = daemon.update_of("renumbered.pt")
        assert (update["state"], update["code"]) == ("ROLLED_BACK", "probation")
        assert re.search(r"agrees with generation 1 on \d+\.\d % of \d+ images in \d+ live requests", update["reason"])
        assert "gates.min_shadow_agreement is 80 %" in update["reason"]
        eventually(lambda: daemon.generation() == 1 and len(generations(daemon)) == 1, "the generation before, alone")
        daemon.drop(tmp_path / "renumbered.pt", "again.pt")
        assert daemon.update_of("again.pt")["code"] == "probation"  # the file is remembered


@pytest.mark.slow
def test_a_comparison_that_is_passed_and_one_that_a_restart_ends(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        on_probation(task, daemon, 600.0, min_shadow_agreement=80, shadow_percent=100)
        assert daemon.stop() == 0
        daemon.start()
        eventually(lambda: "no request is compared" in daemon.log.read_text(), "a line in the log")
        assert len(generations(daemon)) == 1
        daemon.config["models"][0]["probation_s"] = 20
        daemon.reload()
        assert daemon.post("/edged/v1/models/digits/rollback").status_code == 200

        torch.save(torch.load(task.second), tmp_path / "third.pt")  # the name is part of the file
        daemon.drop(tmp_path / "third.pt")
        daemon.update_of("third.pt", "LIVE")
        images = sorted(task.test.rglob("*.png"))
        eventually(lambda: daemon.infer(images[0]) and daemon.metric(SHADOW), "a comparison")
        update = daemon.update_of("third.pt")
        assert (update["state"], update["code"]) == ("COMMITTED", None)
        shadow = update["report"]["shadow"]
        assert shadow["requests"] == shadow["images"] > 0
        assert (shadow["with_generation"], shadow["agreement"]) == (1, 100.0)
        assert update["report"]["agreement"] > 50  # what the worker found is still there
        eventually(lambda: len(generations(daemon)) == 1, "the generation before has ended")


def generations(daemon: Daemon) -> list[psutil.Process]:
    return children(daemon, "service.inference.main")
