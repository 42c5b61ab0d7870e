"""Damage in the state folder: the newest whole generation serves after a restart, and somebody is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.sick_device.daemon import Traffic
from tests.support.bits import flip_bit
from tests.support.daemon import Daemon, children, eventually, running, tracebacks
from tests.support.tasks import Task


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace(link: Path, by: Callable[[Path], object]) -> None:
    link.unlink()
    by(link)


# By the name of the model that is damaged: what is done to its folder, and the generation that serves then.
DAMAGE: dict[str, tuple[Callable[[Path], object], int]] = {
    "weights": (lambda model: flip_bit(model / "gen/2/weights.safetensors"), 1),
    "warmup": (lambda model: flip_bit(model / "gen/2/warmup.safetensors"), 1),
    "manifest": (lambda model: cut(model / "gen/2/manifest.json"), 1),
    "bit_of_manifest": (lambda model: flip_bit(model / "gen/2/manifest.json"), 1),
    "no_folder": (lambda model: shutil.rmtree(model / "gen/2"), 1),
    "dangling": (lambda model: replace(model / "current", lambda link: link.symlink_to("gen/9")), 2),
    "plain_file": (lambda model: replace(model / "current", lambda link: link.write_text("gen/2")), 2),
    "elsewhere": (lambda model: replace(model / "current", lambda link: link.symlink_to("/etc")), 2),
    "no_link": (lambda model: (model / "current").unlink(), 2),
    "report": (lambda model: cut(model / "gen/2/report.json"), 2),
}
ALL_LOST = "all_lost"
DAMAGED_GENERATIONS = 'edged_damaged_generations{model="digits"}'


@pytest.fixture(scope="module")
def daemon(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that was restarted after each of its models was damaged in another way."""
    with running(tmp_path_factory.mktemp("damage"), task.calibration) as daemon:
        daemon.put_live(task.first)
        daemon.put_live(task.second)
        model = daemon.config["models"][0]
        daemon.config["models"] += [{**model, "name": name} for name in (*DAMAGE, ALL_LOST)]
        assert daemon.stop() == 0
        models = daemon.state / "models"
        for name, (damage, _) in DAMAGE.items():
            shutil.copytree(models / "digits", models / name, symlinks=True)
            damage(models / name)
        shutil.copytree(models / "digits", models / ALL_LOST, symlinks=True)
        for number in (1, 2):
            flip_bit(models / ALL_LOST / f"gen/{number}/weights.safetensors")
        flip_bit(models / "digits/gen/2/weights.safetensors")  # the one that the journal knows
        daemon.spawn()
        configured = len(DAMAGE) + 2

        def settled() -> bool:
            listed = daemon.status()["models"]
            return len(listed) == configured and sum(model["ready"] for model in listed) == configured - 1

        eventually(settled, "all but the lost model serve")
        eventually(lambda: " ready\n" in daemon.log.read_text().rpartition("listening on")[2], "started")
        yield daemon


def model_of(daemon: Daemon, name: str) -> dict[str, object]:
    return next(model for model in daemon.status()["models"] if model["name"] == name)


@pytest.mark.parametrize("name", list(DAMAGE))
def test_the_newest_whole_generation_serves(daemon: Daemon, task: Task, name: str) -> None:
    expected = DAMAGE[name][1]
    answer = daemon.infer(next(task.test.rglob("*.png")), model=name)
    assert (answer.status_code, answer.json()["model_version"]) == (200, str(expected))
    model, folder = model_of(daemon, name), daemon.state / "models" / name
    assert str((folder / "current").readlink()) == f"gen/{expected}"
    if expected == 2:
        return
    assert "generation 2 is damaged" in str(model["problem"])
    assert model["damaged"][0]["generation"] == 2  # type: ignore[index]
    record = json.loads((folder / "damaged/2/damage.json").read_text())
    assert (record["replaced_by"], record["remedy"]) == (1, "drop its checkpoint again")
    assert (folder / "damaged/2/artifact").is_dir() == (name != "no_folder")
    assert daemon.metric(f'edged_damaged_generations{{model="{name}"}}') == 1
    assert f"model {name}: generation 2 is damaged and quarantined" in daemon.log.read_text()


def test_a_model_without_a_whole_generation_is_not_ready_and_says_so(daemon: Daemon, task: Task) -> None:
    answer = daemon.infer(next(task.test.rglob("*.png")), model=ALL_LOST)
    assert answer.status_code == 503
    assert "has no whole generation" in answer.json()["error"]
    ready = daemon.get("/v2/health/ready")
    assert (ready.status_code, ALL_LOST in ready.json()["error"]) == (503, True)


def test_the_update_its_history_and_the_page_say_so_and_a_new_drop_makes_it_again(daemon: Daemon, task: Task) -> None:
    update = daemon.update_of("second.pt", "ROLLED_BACK")
    assert (update["code"], update["reason"].split(":")[0]) == ("damaged", "generation 1 serves again")
    history = daemon.get("/edged/v1/models/digits/history").json()
    assert (history["current"], history["generations"], history["damaged"][0]["generation"]) == (1, [1], 2)
    page = daemon.get("/").text
    assert "generation 2 is damaged" in page
    assert daemon.metric('edged_updates_total{model="digits",reason="damaged",result="rolled_back"}') == 1
    daemon.drop(task.second, name="again.pt")
    again = daemon.update_of("again.pt")
    assert (again["state"], again["generation"]) == ("COMMITTED", 3)
    assert model_of(daemon, "digits")["problem"] is None


def test_damage_under_the_running_daemon_is_found_when_the_process_dies(daemon: Daemon, task: Task) -> None:
    assert daemon.process is not None
    flip_bit(daemon.state / "models/digits/gen/3/weights.safetensors")
    (live,) = (child for child in children(daemon, "service.inference.main") if "digits" in child.cmdline())
    live.kill()
    eventually(lambda: daemon.generation() == 1, "the whole generation serves again")
    assert daemon.infer(next(task.test.rglob("*.png"))).status_code == 200
    update = daemon.update_of("again.pt", "ROLLED_BACK")
    assert update["code"] == "damaged"


def test_garbage_collection_names_and_removes_what_is_damaged(daemon: Daemon) -> None:
    found = daemon.post("/edged/v1/gc", params={"dry_run": "true"}).json()
    paths = [entry["path"] for entry in found["removed"] if entry["kind"] == "damaged"]
    assert "models/weights/damaged/2" in paths
    assert daemon.post("/edged/v1/gc").status_code == 200
    assert not list((daemon.state / "models/weights/damaged").iterdir())
    assert daemon.metric('edged_damaged_generations{model="weights"}') == 0


@pytest.mark.slow
def test_a_damaged_generation_is_made_again_where_its_checkpoint_is_kept(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        daemon.put_live(task.first)
        daemon.config["models"][0]["probation_s"] = 600
        daemon.reload()
        daemon.drop(task.second)
        daemon.update_of("second.pt", "LIVE")  # its file is kept until the probation is over
        daemon.kill()
        flip_bit(daemon.state / "models/digits/gen/2/weights.safetensors")
        daemon.config["models"][0]["probation_s"] = 0
        daemon.start()
        eventually(lambda: daemon.generation() == 3, "it is made again")
        made, lost = daemon.updates()[:2]
        assert (lost["state"], lost["code"], lost["generation"]) == ("ROLLED_BACK", "damaged", 2)
        made = daemon.update_of("second.pt", "COMMITTED")
        assert (made["generation"], made["sha256"]) == (3, lost["sha256"])
        daemon.await_no_claims()


@pytest.mark.slow
def test_the_daily_check_finds_damage_while_the_models_serve(task: Task, tmp_path: Path) -> None:
    """The check is due all the time here, so it is done whenever the daemon looks whether it is."""
    image = next(task.test.rglob("*.png"))
    with running(tmp_path, task.calibration, storage={"scrub_hours": 1e-6}) as daemon:
        daemon.put_live(task.first)
        daemon.put_live(task.second)
        folder, process = daemon.state / "models/digits", children(daemon, "service.inference.main")
        with Traffic(daemon, image) as traffic:
            flip_bit(folder / "gen/1/weights.safetensors")
            eventually(lambda: daemon.metric(DAMAGED_GENERATIONS) == 1, "the damage is found")
            eventually((folder / "damaged/1/damage.json").exists, "it is quarantined")
            record = json.loads((folder / "damaged/1/damage.json").read_text())
            assert (record["generation"], record["replaced_by"], record["file_name"]) == (1, None, "first.pt")
            assert "weights.safetensors" in record["reason"]
            assert "model digits: generation 1 is damaged and quarantined" in daemon.log.read_text()
            history = daemon.get("/edged/v1/models/digits/history").json()
            assert (history["generations"], history["damaged"][0]["generation"]) == ([2], 1)
            refused = daemon.post("/edged/v1/models/digits/rollback")
            assert refused.status_code == 409, refused.text

            flip_bit(folder / "gen/2/weights.safetensors")
            problem = eventually(lambda: model_of(daemon, "digits")["problem"], "the damage of the live one is found")
            assert str(problem).startswith("serves generation 2 from memory, which is damaged on the disk")
            assert daemon.metric(DAMAGED_GENERATIONS) == 2
            assert "generation 2 is damaged on the disk, and goes on serving from memory" in daemon.log.read_text()
            assert (folder / "gen/2").is_dir()

            flip_bit(folder / "gen/2/weights.safetensors")
            eventually(lambda: model_of(daemon, "digits")["problem"] is None, "it is found whole again")
            answers = traffic.answers
            eventually(lambda: traffic.answers > answers, "another answer")
        assert traffic.failures == []
        assert children(daemon, "service.inference.main") == process
        assert daemon.generation() == 2
        assert tracebacks(daemon.log.read_text()) == []
