"""A dropped checkpoint goes live; a second one takes its place; a rollback undoes that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from edged.artifacts.reader import read_artifact
from service.journal.states import STAGES
from tests.support import trained
from tests.support.daemon import Daemon, children, eventually, running
from tests.support.prometheus import needs_promtool, promtool
from tests.support.tasks import Task


@pytest.fixture(scope="module")
def daemon(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(tmp_path_factory.mktemp("daemon"), task.calibration) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def first(daemon: Daemon, task: Task) -> dict[str, object]:
    return daemon.put_live(task.first)


def test_the_first_update_goes_all_the_way(daemon: Daemon, first: dict[str, object]) -> None:
    events = daemon.get(f"/edged/v1/updates/{first['id']}").json()["events"]
    assert [event["state"] for event in events] == (
        [
            "DROPPED",
            "SETTLED",
            "CLAIMED",
            "VERIFIED",
            "LOADED",
            "CALIBRATED",
            "QUANTIZED",
            "EVALUATED",
            "PUBLISHED",
            "WARMED",
            "LIVE",
            "COMMITTED",
        ]
    )
    stages = first["stages"]
    assert isinstance(stages, dict)
    assert set(stages) == {"settle", "claim", "queue", "start", *STAGES, "write", "publish", "warm", "swap"}
    assert all(seconds >= 0 for seconds in stages.values())
    daemon.await_no_claims()
    assert not list((daemon.state / "staging").iterdir())
    assert not list((daemon.state / "drop" / "digits").iterdir())


def test_what_is_served_is_what_was_published(daemon: Daemon, first: dict[str, object], task: Task) -> None:
    images = sorted(task.test.rglob("*.png"))[:100]
    answer = daemon.infer(*images).json()
    assert answer["model_version"] == "1"
    (output,) = answer["outputs"]
    served = torch.tensor(output["data"]).reshape(output["shape"])
    artifact = read_artifact(daemon.state / "models" / "digits" / "current")
    indices = [int(path.stem) for path in images]
    inputs = torch.from_numpy(trained.normalize(task.digits.images[indices], artifact.input))
    expected = artifact.load_model()(inputs)
    torch.testing.assert_close(served, expected, rtol=1e-4, atol=1e-4)
    labels = torch.from_numpy(task.digits.labels[indices])
    assert (served.argmax(1) == labels).float().mean() > 0.9


def test_the_open_inference_protocol(daemon: Daemon, first: dict[str, object]) -> None:
    with daemon.tcp() as client:
        assert client.get("/v2").json()["name"] == "edged"
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/health/ready").status_code == 200
        described = client.get("/v2/models/digits").json()
        assert described["versions"] == ["1"]
        assert described["inputs"][0]["shape"] == [-1, 3, 8, 8]
        assert client.get("/v2/models/digits/versions/1/ready").json() == {"ready": True}
        tensor = {"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.0] * 192}
        body = {"id": "mine", "inputs": [tensor]}
        answer = client.post("/v2/models/digits/versions/1/infer", json=body).json()
        assert (answer["id"], answer["model_name"], answer["model_version"]) == ("mine", "digits", "1")
        assert answer["outputs"][0]["shape"] == [1, 10]


def test_wrong_requests_are_answered_with_a_reason(daemon: Daemon, first: dict[str, object]) -> None:
    with daemon.tcp() as client:
        for target, status, reason in (
            ("/v2/models/cats", 404, "no model 'cats'; configured: digits"),
            ("/v2/models/digits/versions/9", 404, "no version '9' in service; live: 1"),
            ("/edged/v1/updates/999", 404, "no update 999"),
            ("/edged/v1/updates?state=odd", 400, "choose one of DROPPED"),
            ("/edged/v1/updates?limit=0", 400, "limit has value '0'"),
            ("/edged/v1/models/cats/history", 404, "no model 'cats'"),
            ("/nothing", 404, "Not Found"),
        ):
            answer = client.get(target)
            assert answer.status_code == status, target
            assert reason in answer.json()["error"]
        answer = client.post("/v2/models/digits/infer", content=b"{")
        assert (answer.status_code, "not JSON" in answer.json()["error"]) == (400, True)
        answer = client.post("/v2/models/digits/infer", content=bytes(65 << 20))
        assert (answer.status_code, "max_body_bytes" in answer.json()["error"]) == (413, True)
        # Without a Content-Length the body counts as it comes.
        answer = client.post("/v2/models/digits/infer", content=(bytes(1 << 20) for _ in range(65)))
        assert answer.status_code == 413
        answer = client.post("/edged/v1/models/digits/rollback")
        assert (answer.status_code, "UNIX socket" in answer.json()["error"]) == (403, True)


def test_metrics_tell_of_the_update(daemon: Daemon, first: dict[str, object]) -> None:
    daemon.infer()
    counted = 'edged_updates_total{model="digits",reason="",result="committed"}'
    eventually(lambda: daemon.metric(counted) == 1, "it is counted")
    assert daemon.metric('edged_update_stage_duration_seconds_count{model="digits",stage="quantize"}') == 1
    assert daemon.metric('edged_swap_duration_seconds_count{model="digits"}') == 1
    assert daemon.metric('edged_worker_peak_memory_bytes{model="digits"}') > 100e6
    assert daemon.metric('edged_generation_memory_bytes{model="digits"}') > 30e6
    assert daemon.metric('edged_inference_requests_total{code="400",model="digits"}') >= 1
    assert daemon.metric('edged_model_ready{model="digits"}') == 1
    assert daemon.metric("edged_watch_up") == 1
    digest = str(first["sha256"])[:12]
    info = f'edged_model_info{{bits="4",digest="{digest}",generation="1",model="digits",runtime="onnxruntime"}}'
    assert daemon.metric(info) == 1


@needs_promtool
def test_promtool_finds_nothing_to_remark_in_the_metrics(daemon: Daemon, first: dict[str, object]) -> None:
    assert promtool("check", "metrics", stdin=daemon.get("/metrics").content) == ""


def test_nobody_can_make_the_metrics_grow(daemon: Daemon, first: dict[str, object]) -> None:
    def series() -> set[str]:
        lines = daemon.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}

    daemon.infer()
    before = series()
    with daemon.tcp() as client:
        for number in range(20):
            for target in (f"/v2/models/m{number}/infer", f"/v2/models/digits/versions/{number + 2}/infer"):
                assert client.post(target, content=b"{").status_code == 404
            client.get(f"/metrics/{number}?x={number}")
            client.request(f"ODD{number}", "/v2/models/digits/infer")
            client.post(
                "/v2/models/digits/infer", content=b"{", headers={"Inference-Header-Content-Length": str(number)}
            )
    assert series() == before


def test_the_artifact_says_where_it_comes_from(daemon: Daemon, first: dict[str, object]) -> None:
    artifact = read_artifact(daemon.state / "models" / "digits" / "gen" / "1")
    assert artifact.manifest.source["sha256"] == first["sha256"]
    assert artifact.manifest.source["name"] == "first.pt"
    assert artifact.manifest.classes == tuple("0123456789")
    totals = artifact.report["totals"]
    assert totals["fp32"]["top1"] - totals["quantized"]["top1"] < 20
    assert totals["compression"] > 5
    assert {"order", "relative_loss", "damp_ratio", "bits"} <= set(artifact.report["layers"][0])


def test_the_same_file_again_changes_nothing(daemon: Daemon, first: dict[str, object], task: Task) -> None:
    again = daemon.put_live(task.first, "again.pt")
    assert again["generation"] == 1
    assert "quantize" not in again["stages"]
    counted = 'edged_updates_total{model="digits",reason="unchanged",result="committed"}'
    eventually(lambda: daemon.metric(counted) == 1, "it is counted")


def test_the_second_update_takes_over_and_a_rollback_undoes_it(
    daemon: Daemon, first: dict[str, object], task: Task
) -> None:
    second = daemon.put_live(task.second)
    assert second["generation"] == daemon.generation() == 2
    image = next(task.test.rglob("*.png"))
    assert daemon.infer(image).json()["model_version"] == "2"

    answer = daemon.post("/edged/v1/models/digits/rollback")
    assert answer.json() == {"model": "digits", "from": 2, "to": 1}
    assert daemon.infer(image).json()["model_version"] == "1"
    history = daemon.get("/edged/v1/models/digits/history").json()
    assert (history["current"], history["previous"]) == (1, 2)
    assert next(u["state"] for u in history["updates"] if u["generation"] == 2) == "ROLLED_BACK"

    # What was rolled back does not come back by being dropped again ...
    daemon.drop(task.second, "once-more.pt")
    refused = daemon.update_of("once-more.pt")
    assert refused["state"] == "REJECTED"
    assert "rolled back" in refused["reason"]
    # ... only by undoing the rollback.
    assert daemon.post("/edged/v1/models/digits/rollback").json()["to"] == 2
    assert daemon.generation() == 2
    # What serves is not shown as rolled back, and is known again.
    history = daemon.get("/edged/v1/models/digits/history").json()
    assert {u["state"] for u in history["updates"] if u["generation"] == 2} == {"COMMITTED"}
    assert daemon.put_live(task.second, "and-again.pt")["generation"] == 2


def test_the_supervisor_stays_small(daemon: Daemon, first: dict[str, object]) -> None:
    rss = daemon.rss_bytes()
    print(f"supervisor: {rss / 2**20:.1f} MiB")
    assert rss < 60 * 2**20
    assert abs(daemon.status()["rss_bytes"] - rss) < 8 * 2**20


def test_a_generation_that_dies_comes_back(daemon: Daemon, first: dict[str, object], task: Task) -> None:
    assert daemon.process is not None
    (child,) = children(daemon, "service.inference.main")
    generation = daemon.generation()
    child.kill()
    eventually(lambda: daemon.status()["models"][0]["restarts"] == 1, "a restart")
    eventually(lambda: daemon.generation() == generation, "the same generation again")
    assert daemon.infer(next(task.test.rglob("*.png"))).status_code == 200
    assert daemon.metric('edged_generation_restarts_total{model="digits"}') == 1


def test_sigterm_ends_it_well(daemon: Daemon, first: dict[str, object]) -> None:
    log = json.dumps(daemon.log.read_text())
    assert "Traceback" not in log
    assert daemon.stop() == 0
    assert not (daemon.state / "edged.sock").exists()
    assert (daemon.state / "models" / "digits" / "current").readlink() == Path("gen/2")
