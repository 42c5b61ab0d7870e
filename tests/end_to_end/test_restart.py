"""kill -9 at any moment: the last published generation serves again first, and the update ends exactly once."""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import pytest

from tests.support.daemon import Daemon, children, eventually, running, workers
from tests.support.tasks import Task

UNDER_WAY = ("CLAIMED", "VERIFIED", "LOADED", "CALIBRATED")


def states(daemon: Daemon, update: int) -> list[str]:
    return [event["state"] for event in daemon.get(f"/edged/v1/updates/{update}").json()["events"]]


def serves(daemon: Daemon, task: Task, generation: int) -> None:
    answer = daemon.infer(next(task.test.rglob("*.png")))
    assert (answer.status_code, answer.json()["model_version"]) == (200, str(generation))


def suspended_worker(daemon: Daemon) -> psutil.Process:
    """Suspend the worker of an update, which would be over in a moment; it is resumed before its parent ends."""
    (worker,) = eventually(lambda: workers(daemon), "a worker")
    worker.suspend()
    return worker


def since_start(daemon: Daemon) -> str:
    """What the log says since the daemon listens, for the last time."""
    return daemon.log.read_text().rpartition("listening on")[2]


@pytest.mark.parametrize(
    ("at", "tries"),
    [
        (UNDER_WAY, 2),  # the worker quantizes: it does so again
        (("PUBLISHED",), 1),  # the new generation loads, `current` is the old one: it is loaded again
    ],
    ids=["quantize", "publish"],
)
def test_kill_9(task: Task, tmp_path: Path, at: tuple[str, ...], tries: int) -> None:
    with running(tmp_path, task.calibration) as daemon:
        daemon.put_live(task.first)
        if "PUBLISHED" in at:  # it would be over in a moment
            children(daemon, "service.inference.fork_server")[0].suspend()
        daemon.drop(task.second)
        worker = suspended_worker(daemon) if at == UNDER_WAY else None
        killed = daemon.update_of("second.pt", *at)
        dropped_at = daemon.metric('edged_last_drop_timestamp_seconds{model="digits"}')
        if worker is not None:
            worker.resume()
        daemon.kill()

        daemon.start()
        eventually(lambda: "goes on" in since_start(daemon), "the update goes on")
        told = re.findall(r"generation (\d) is up|(goes on)", since_start(daemon))
        assert told[:2] == [("1", ""), ("", "goes on")]
        assert daemon.infer(next(task.test.rglob("*.png"))).status_code == 200
        assert daemon.metric('edged_last_drop_timestamp_seconds{model="digits"}') == dropped_at
        ended = daemon.update_of("second.pt")
        assert (ended["id"], ended["state"], ended["generation"]) == (killed["id"], "COMMITTED", 2)
        seen = states(daemon, ended["id"])
        assert seen.count("CLAIMED") == tries
        assert seen.count("QUANTIZED") == seen.count("COMMITTED") == 1
        assert len(daemon.updates()) == 2
        serves(daemon, task, 2)
        assert sorted(path.name for path in (daemon.state / "models/digits/gen").iterdir()) == ["1", "2"]
        daemon.await_no_claims()
        assert not list((daemon.state / "staging").iterdir())
        assert daemon.stop() == 0


@pytest.mark.slow
def test_kill_9_over_and_over(task: Task, tmp_path: Path) -> None:
    """One kill for every state that an update can be seen in, on the same update."""
    with running(tmp_path, task.calibration) as daemon:
        daemon.drop(task.first)
        for state in ("CLAIMED", "LOADED", "QUANTIZED", "PUBLISHED", "LIVE", "COMMITTED"):
            # Where it is missed, it has come further: that is killed then.
            daemon.update_of("first.pt", state, "PUBLISHED", "WARMED", "LIVE", "COMMITTED")
            daemon.kill()
            daemon.start()
        ended = daemon.update_of("first.pt")
        assert (ended["state"], ended["generation"]) == ("COMMITTED", daemon.generation())
        assert states(daemon, ended["id"]).count("COMMITTED") == 1
        daemon.await_no_claims()


def test_a_file_that_was_dropped_while_nobody_looked(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        assert daemon.stop() == 0
        daemon.drop(task.first)
        daemon.start()
        assert daemon.update_of("first.pt")["state"] == "COMMITTED"


def test_a_file_that_was_rejected_and_stays_is_not_rejected_again(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        folder = daemon.state / "drop" / "digits"
        (folder / "bad.pt.sha256").write_text("0" * 64)
        daemon.drop(task.second, name="bad.pt")
        assert daemon.update_of("bad.pt", "REJECTED")["code"] == "checksum"
        assert daemon.stop() == 0
        daemon.start()
        daemon.drop(task.first)
        assert daemon.update_of("first.pt")["state"] == "COMMITTED"
        assert (folder / "bad.pt").exists()
        assert sum(update["file_name"] == "bad.pt" for update in daemon.updates()) == 1
        (folder / "bad.pt.sha256").unlink()
        (folder / "bad.pt").rename(folder / "good.pt")
        assert daemon.update_of("good.pt")["state"] == "COMMITTED"


def test_stops_of_the_daemon_are_no_tries(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        daemon.drop(task.first)
        for _ in range(3):
            worker = suspended_worker(daemon)
            # Not yet right after a start: the daemon answers before it goes on.
            eventually(lambda: daemon.update_of("first.pt", *UNDER_WAY)["attempt"] == 1, "the attempt begins")
            worker.resume()
            assert daemon.stop() == 0
            daemon.start()
        ended = daemon.update_of("first.pt")
        assert (ended["state"], ended["attempt"]) == ("COMMITTED", 1)


def test_a_configured_model_is_known_from_the_first_answer_on(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        daemon.put_live(task.first)
        assert daemon.stop() == 0
        daemon.spawn()
        image = next(task.test.rglob("*.png"))
        first = eventually(lambda: daemon.infer(image), "an answer")
        assert first.status_code in (200, 503)  # not 404
        if first.status_code == 503:
            assert first.headers["retry-after"] == "1"
        eventually(lambda: daemon.infer(image).status_code == 200, "it serves")
        assert daemon.get("/v2/models/other/ready").status_code == 404


def test_sigterm_in_the_middle_of_an_update(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        daemon.drop(task.first)
        worker = suspended_worker(daemon)
        daemon.update_of("first.pt", *UNDER_WAY)
        worker.resume()
        assert daemon.stop() == 0
        daemon.start()
        assert daemon.update_of("first.pt")["state"] == "COMMITTED"


def test_a_reload_while_it_starts_waits_until_it_is_up(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        daemon.put_live(task.first)
        assert daemon.stop() == 0
        before = daemon.log.read_text().count("listening on")
        process = daemon.spawn()
        eventually(lambda: daemon.log.read_text().count("listening on") > before, "it starts")
        daemon.config["models"].append({**daemon.config["models"][0], "name": "more"})
        daemon.reload()
        assert [model["name"] for model in daemon.status()["models"]] == ["digits", "more"]
        assert process.poll() is None
        text = daemon.log.read_text()
        assert text.rindex(" config reloaded") > text.rindex(" ready\n")
        serves(daemon, task, 1)
