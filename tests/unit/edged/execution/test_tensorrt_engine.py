"""Engines are built in a child, found again while they fit, and rebuilt once they do not; TensorRT is a fake."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

from edged.errors import EngineError, MemoryLimitError, StateError
from edged.execution import tensorrt_engine
from edged.execution.tensorrt_engine import BuildLimits, Sidecar, build_engine, check_engine, find_engine
from edged.version import __version__
from tests.support.fake_gpu import FakeTensorRt
from tests.support.tensorrt import float_model, header_of, integer_model


def left(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_an_engine_is_a_raw_plan_with_a_sidecar(fake_tensorrt: FakeTensorRt, tmp_path: Path) -> None:
    model = integer_model()
    built = build_engine(model, tmp_path / "engines", BuildLimits(memory_bytes=600 << 20, max_batch=4))
    assert not built.reused
    name = built.plan.parent.name
    assert left(tmp_path / "engines") == [f"{name}/engine.json", f"{name}/engine.plan", "timing.cache"]
    assert name.startswith(f"{hashlib.sha256(model).hexdigest()[:16]}-tensorrt_plan-")
    plan = built.plan.read_bytes()
    assert plan.endswith(model)  # nothing of ours is in it
    assert json.loads(built.plan.with_suffix(".json").read_text()) == {
        "key": name,
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "plan_sha256": hashlib.sha256(plan).hexdigest(),
        "tensorrt": "10.3.0",
        "gpu": "Orin (8.7)",
        "integer": True,
        "max_batch": 4,
        "workspace_bytes": 300 << 20,
        "edged": __version__,
    }
    assert header_of(built.plan) == {
        "version": "10.3.0",
        "gpu": "Orin",
        "flags": ["FP16", "INT8"],
        "pools": {"WORKSPACE": 300 << 20},
        "profile": [[1, 3, 32, 32], [1, 3, 32, 32], [4, 3, 32, 32]],
        "timings": "timings 10.3.0 1",
    }


@pytest.mark.parametrize(("version", "integer", "flags"), [
    ("10.3.0", True, ["FP16", "INT8"]),
    ("10.3.0", False, ["FP16"]),
    ("11.0.0", True, []),
    ("11.0.0", False, []),
])  # fmt: skip
def test_types_follow_from_the_model_where_there_are_no_flags(
    fake_tensorrt: FakeTensorRt, tmp_path: Path, version: str, integer: bool, flags: list[str]
) -> None:
    fake_tensorrt.use(tensorrt=version)
    built = build_engine(integer_model(1) if integer else float_model(), tmp_path)
    header = header_of(built.plan)
    assert (header["flags"], header["profile"]) == (flags, None)
    assert (built.sidecar.tensorrt, built.sidecar.integer) == (version, integer)


@pytest.mark.parametrize(
    ("memory", "workspace"), [(None, 1 << 30), (8 << 30, 1 << 30), (1 << 30, 512 << 20), (1 << 20, 64 << 20)]
)
def test_the_workspace_follows_from_the_memory_limit(memory: int | None, workspace: int) -> None:
    assert BuildLimits(memory).workspace_bytes == workspace


def test_an_engine_that_fits_is_not_built_again(
    fake_tensorrt: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = integer_model()
    first = build_engine(model, tmp_path, BuildLimits(max_batch=4))
    monkeypatch.setattr(tensorrt_engine, "_run_child", None)
    for most in (1, 4):
        again = build_engine(model, tmp_path, BuildLimits(max_batch=most))
        assert (again.plan, again.sidecar, again.reused) == (first.plan, first.sidecar, True)
    assert find_engine("0" * 64, tmp_path) is None
    assert find_engine(first.sidecar.model_sha256, tmp_path, 5) is None


def test_timings_are_kept_for_the_next_build(fake_tensorrt: FakeTensorRt, tmp_path: Path) -> None:
    build_engine(integer_model(), tmp_path)
    assert header_of(build_engine(integer_model(1), tmp_path).plan)["timings"] == "timings 10.3.0 2"
    fake_tensorrt.use(tensorrt="10.7.0")
    assert header_of(build_engine(integer_model(1), tmp_path).plan)["timings"] == "timings 10.7.0 1"
    (tmp_path / "timing.cache").write_bytes(b"damaged")
    assert header_of(build_engine(float_model(), tmp_path).plan)["timings"] == "timings 10.7.0 1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensorrt": "10.7.0"}, r"was built for TensorRT 10\.3\.0, and here is 10\.7\.0; the engine is built anew"),
        ({"gpu": "Thor"}, r"was built for the GPU Orin \(8\.7\), and here is Thor \(8\.7\); the engine is built anew"),
    ],
)
def test_an_engine_of_another_version_or_gpu_is_built_anew(
    fake_tensorrt: FakeTensorRt, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    before = build_engine(integer_model(), tmp_path)
    fake_tensorrt.use(**change)
    with pytest.raises(EngineError, match=message):
        check_engine(before.plan, before.sidecar)
    assert find_engine(before.sidecar.model_sha256, tmp_path) is None
    after = build_engine(integer_model(), tmp_path)
    assert (after.reused, after.plan == before.plan) == (False, False)
    assert find_engine(before.sidecar.model_sha256, tmp_path) is not None


def test_a_damaged_or_missing_plan_is_built_anew(fake_tensorrt: FakeTensorRt, tmp_path: Path) -> None:
    built = build_engine(integer_model(), tmp_path)
    whole = built.plan.read_bytes()
    built.plan.write_bytes(whole[:-1])
    with pytest.raises(EngineError, match="is damaged: its digest is not that of its sidecar; the engine is built ane"):
        check_engine(built.plan, built.sidecar)
    assert not build_engine(integer_model(), tmp_path).reused
    assert built.plan.read_bytes()[-100:] == whole[-100:]
    built.plan.unlink()
    with pytest.raises(EngineError, match="cannot be read: No such file"):
        check_engine(built.plan, built.sidecar)
    assert not build_engine(integer_model(), tmp_path).reused


def test_a_damaged_sidecar_is_no_engine(fake_tensorrt: FakeTensorRt, tmp_path: Path) -> None:
    built = build_engine(integer_model(), tmp_path)
    path = built.plan.with_suffix(".json")
    whole = path.read_text()
    for text in ("", "[]", "{}", '{"key": 1}', "null", json.dumps(json.loads(whole) | {"max_batch": "4"})):
        path.write_text(text)
        with pytest.raises(EngineError, match="cannot be read"):
            Sidecar.read(path)
        assert find_engine(built.sidecar.model_sha256, tmp_path) is None
    assert not build_engine(integer_model(), tmp_path).reused
    assert find_engine(built.sidecar.model_sha256, tmp_path) is not None


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ("memory", "TensorRT cannot build the engine: .*OutOfMemory.*; free memory, or choose another runtime"),
        ("memory_error", "the memory of the process is exhausted; free memory"),
        ("kill", "the process that builds was killed, most likely for lack of memory; free memory"),
    ],
)
def test_lack_of_memory_defers(fake_tensorrt: FakeTensorRt, tmp_path: Path, fails: str, message: str) -> None:
    fake_tensorrt.use(tensorrt_fails=fails)
    with pytest.raises(MemoryLimitError, match=message) as raised:
        build_engine(integer_model(), tmp_path)
    assert raised.value.exit_code == 75
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (
            "nothing",
            "cannot build the engine: .*Could not find any implementation for node conv1.*; another engine ser",
        ),
        ("crash", "the process that builds ended with signal 11; another engine serves"),
        ("exit", "the process that builds ended with exit code 3; another engine serves"),
    ],
)
def test_a_failed_build_is_an_error_with_its_reason(
    fake_tensorrt: FakeTensorRt, tmp_path: Path, fails: str, message: str
) -> None:
    fake_tensorrt.use(tensorrt_fails=fails)
    with pytest.raises(EngineError, match=message):
        build_engine(integer_model(), tmp_path)
    assert left(tmp_path) == []


def test_a_build_ends_at_its_deadline(fake_tensorrt: FakeTensorRt, tmp_path: Path) -> None:
    fake_tensorrt.use(tensorrt_fails="hang")
    with pytest.raises(EngineError, match="did not build the engine within 2 s; another engine serves"):
        build_engine(integer_model(), tmp_path, BuildLimits(deadline_s=2))
    assert left(tmp_path) == []
    fake_tensorrt.use()
    assert not build_engine(integer_model(), tmp_path).reused


def test_what_is_no_model_is_named(fake_tensorrt: FakeTensorRt, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="TensorRT cannot read the model: failed to parse"):
        build_engine(b"no model", tmp_path)


def test_a_missing_tensorrt_names_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'modules'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(
        EngineError, match=r"cannot be imported: libnvinfer\.so\.10: .*; install python3-libnvinfer on a"
    ):
        build_engine(integer_model(), tmp_path)


def test_an_old_tensorrt_is_refused(fake_tensorrt: FakeTensorRt, tmp_path: Path) -> None:
    fake_tensorrt.use(tensorrt="8.6.1")
    with pytest.raises(EngineError, match=r"TensorRT 8\.6\.1 is too old; install 10 or newer"):
        build_engine(integer_model(), tmp_path)


def test_a_folder_that_cannot_be_written(fake_tensorrt: FakeTensorRt, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot write"):
        build_engine(integer_model(), tmp_path / "file" / "engines")
