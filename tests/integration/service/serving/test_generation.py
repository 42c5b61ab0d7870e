"""A generation gets traffic only if it gives for real images what was evaluated. Real artifacts, real processes."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from edged.artifacts.writer import sha256_file
from edged.errors import GateError
from edged.progress import SilentListener
from edged.spec import Method, QuantSpec, Scheme
from service.ipc.shared_memory import BodyMemory
from service.serving.generation import Generation, StartError
from service.serving.limits import GenerationOptions
from service.system.processes import child_environment
from service.worker.job import Job
from service.worker.pipeline import run_job
from tests.support import generations, scenes
from tests.support.fake_gpu import FakeTensorRt
from tests.support.tasks import DetectionTask, Task

FAST = QuantSpec(method=Method.RTN, bits=8)


@pytest.fixture(scope="module")
def published(task: Task, detection_task: DetectionTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    digits = Job(
        checkpoint=task.first,
        out=folder / "digits",
        calibration_dir=task.calibration,
        cache_root=folder / "cache",
        spec=FAST,
        input={"size": 8, "resize": 8},
        runtime="onnxruntime",  # the fastest one would depend on chance
    )
    shapes = replace(
        digits,
        checkpoint=detection_task.first,
        out=folder / "shapes",
        calibration_dir=detection_task.calibration,
        input={"size": scenes.SIDE},
    )
    for job in (digits, shapes):
        run_job(job, SilentListener())
    return folder


def started(artifact: Path, threads: int = 1, **options: object) -> Generation:
    """A generation that has come up, and is gone again."""

    async def main() -> Generation:
        async with generations.shared_fork_server() as fork_server:
            generation = Generation("m", 7, artifact, fork_server, GenerationOptions(threads=threads, **options))  # type: ignore[arg-type]  # any
            try:
                await generation.start(120)
            finally:
                await generation.stop()
            return generation

    return generations.run(main())


def test_names_of_the_config_reach_it_however_many_there_are(published: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = tuple(f"digit {number}" for number in range(10))
    (logits, *_) = started(published / "digits", labels=names).metadata["outputs"]
    assert logits["parameters"]["classes"] == list(names)
    caplog.set_level(logging.INFO)
    many = tuple(f"class {number}" for number in range(100_000))  # more than fits into a socket at once
    (logits, *_) = started(published / "digits", labels=many).metadata["outputs"]
    assert logits["parameters"]["classes"] == list("0123456789")
    assert "labels of the model has 100000 names, and this generation has 10 classes" in caplog.text


@pytest.mark.parametrize("kind", ["digits", "shapes"])
def test_it_is_what_was_evaluated_whatever_the_threads(published: Path, kind: str) -> None:
    recorded = json.loads((published / kind / "manifest.json").read_text())["warmup"]
    for threads in {1, 2, torch.get_num_threads()}:
        warmup = started(published / kind, threads).warmup
        assert warmup is not None
        assert warmup["relative_error"] < 1e-5
        assert warmup["recorded_sha256"] == recorded["outputs_sha256"]
        if threads == recorded["threads"]:
            assert warmup["identical"]
            assert warmup["outputs_sha256"] == recorded["outputs_sha256"]


@pytest.mark.parametrize("kind", ["digits", "shapes"])
def test_weights_that_were_changed_consistently_are_refused(published: Path, tmp_path: Path, kind: str) -> None:
    artifact = copied(published / kind, tmp_path, without=())
    weights = artifact / "weights.safetensors"
    with safe_open(weights, framework="pt") as file:
        about, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    scale = next(name for name in tensors if name.endswith(".scale"))
    tensors[scale] = tensors[scale] * 1.01
    save_file(tensors, weights, metadata=about)
    change_manifest(artifact, lambda said: said["weights"].update(sha256=sha256_file(weights)))
    change_manifest(artifact, lambda said: said.update(onnx=None))  # torch computes what the weights say
    with pytest.raises(GateError, match=r"gives other outputs for its warm-up images than .* recorded \w{16}") as told:
        started(artifact)
    recorded = json.loads((artifact / "manifest.json").read_text())["warmup"]["outputs_sha256"]
    assert f"recorded {recorded[:16]}..." in str(told.value)
    assert "0.0001 is allowed" in str(told.value)


@pytest.mark.parametrize("kind", ["digits", "shapes"])
def test_a_damaged_model_is_refused_before_it_computes(published: Path, tmp_path: Path, kind: str) -> None:
    artifact = copied(published / kind, tmp_path, without=())
    path = artifact / "model.onnx"
    model = bytearray(path.read_bytes())
    model[len(model) // 2] ^= 1
    path.write_bytes(model)
    change_manifest(artifact, lambda said: said["onnx"].update(sha256="ab" * 32))  # which cannot be made again
    with pytest.raises(StartError, match=r"model\.onnx has sha256 .*, its manifest says .*; quantize the checkpoint"):
        started(artifact)
    path.write_bytes(b"no model")
    change_manifest(artifact, lambda said: said["onnx"].update(sha256=sha256_file(path)))
    with pytest.raises(StartError, match=r"ONNX Runtime cannot load .*model\.onnx: .*; quantize the checkpoint"):
        started(artifact)
    path.unlink()
    with pytest.raises(StartError, match=r"cannot read .*: No such file .* from the codes: its codes give other bytes"):
        started(artifact)


def test_a_damaged_model_is_written_again_from_its_codes(published: Path, tmp_path: Path) -> None:
    artifact = copied(published / "digits", tmp_path, without=())
    judged = (artifact / "model.onnx").read_bytes()
    (artifact / "model.onnx").write_bytes(judged[:-1])
    generation = started(artifact, threads=1)
    assert generation.engine == "onnxruntime"
    assert generation.warmup is not None
    assert generation.warmup["relative_error"] < 1e-5
    assert (artifact / "model.onnx").read_bytes() == judged


def test_artifacts_without_images_still_come_up(published: Path, tmp_path: Path) -> None:
    artifact = copied(published / "digits", tmp_path, without=("warmup.safetensors",))
    change_manifest(artifact, lambda said: said.pop("warmup"))
    assert started(artifact).warmup is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_device_is_that_of_the_options(published: Path) -> None:
    assert started(published / "digits", runtime="torch", device="auto").engine == "torch"
    with pytest.raises(StartError, match="device has value 'cuda', and torch"):
        started(published / "digits", runtime="torch", device="cuda")


def test_an_engine_of_tensorrt_serves_and_is_built_anew_after_an_upgrade(
    task: Task, tmp_path: Path, fake_tensorrt: FakeTensorRt
) -> None:
    """The worker builds it, a generation builds it anew before it is ready, and ONNX Runtime is there if that fails."""
    job = Job(
        checkpoint=task.first,
        out=tmp_path / "digits",
        calibration_dir=task.calibration,
        cache_root=tmp_path / "cache",
        spec=QuantSpec(method=Method.RTN, bits=6, activation_bits=8, scheme=Scheme.SYMMETRIC),
        input={"size": 8, "resize": 8},
        runtime="tensorrt",
        engine_folder=tmp_path / "engines",
    )
    totals = run_job(job, SilentListener()).report["totals"]
    assert [(each["engine"], each["chosen"]) for each in totals["candidates"]] == [("tensorrt", True)]
    built = set((tmp_path / "engines").glob("*/engine.plan"))
    for settings, engine, new in (
        ({}, "tensorrt", 0),
        ({"tensorrt": "10.7.0"}, "tensorrt", 1),
        ({"tensorrt": "10.9.0", "tensorrt_fails": "kill"}, "onnxruntime", 0),
    ):
        fake_tensorrt.use(**settings)
        generations.close()  # another fork server has the settings
        try:
            generation = started(job.out, runtime="tensorrt", engine_cache=tmp_path / "engines")
        finally:
            generations.close()
        assert generation.engine == engine
        assert generation.warmup is not None
        assert generation.warmup["relative_error"] < 0.01
        before, built = built, set((tmp_path / "engines").glob("*/engine.plan"))
        assert len(built - before) == new


def copied(source: Path, folder: Path, without: tuple[str, ...]) -> Path:
    artifact = folder / "artifact"
    artifact.mkdir()
    for path in source.iterdir():
        if path.name not in without:
            (artifact / path.name).write_bytes(path.read_bytes())
    return artifact


def change_manifest(artifact: Path, change: Callable[[dict[str, dict[str, object]]], object]) -> None:
    path = artifact / "manifest.json"
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))


def test_a_supervisor_that_ends_while_a_model_loads_leaves_no_traceback(published: Path) -> None:
    """It was killed: nobody reads that the model is ready."""
    ours, theirs = socket.socketpair()
    code = "import sys; from service.inference.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "--generation", "1", "--model", "m"]
    command += ["--artifact", str(published / "digits"), "--threads", "1"]
    command += ["--parent", str(os.getpid()), "--socket-fd", str(theirs.fileno())]
    with ours, theirs:
        process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True, env=child_environment(1)
        )
        BodyMemory().send_to(ours)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
