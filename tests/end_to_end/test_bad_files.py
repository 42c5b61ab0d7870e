"""What is wrong with a file is said in one line, kept, counted, and never tried twice; the old model serves on."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from tests.support.daemon import Daemon, eventually, running
from tests.support.tasks import Task
from tests.support.yolov5_samples import save_tiny


class Malicious:
    """Unpickling it would leave a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.trace}",)


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def with_nan(good: bytes) -> bytes:
    state = torch.load(io.BytesIO(good), weights_only=True)
    state["layer2.0.conv1.weight"][3, 2, 1, 0] = float("nan")
    return saved(state)


def misshapen(good: bytes) -> bytes:
    state = torch.load(io.BytesIO(good), weights_only=True)
    return saved({**state, "layer2.0.conv1.weight": state["layer2.0.conv1.weight"][:-1]})


def other_network(_: bytes) -> bytes:
    return saved({"features.0.weight": torch.zeros(8, 3, 3, 3), "classifier.weight": torch.zeros(10, 8)})


def more_classes(good: bytes) -> bytes:
    state = torch.load(io.BytesIO(good), weights_only=True)
    head = {"linear.weight": torch.zeros(100, 64), "linear.bias": torch.zeros(100)}
    return saved({**state, **head})


def quantized(good: bytes) -> bytes:
    state = torch.load(io.BytesIO(good), weights_only=True)
    return saved({**state, "linear.weight_scale": torch.ones(10)})


def with_attention(good: bytes) -> bytes:
    state = torch.load(io.BytesIO(good), weights_only=True)
    return saved({"state_dict": {**state, "layer1.0.se.fc1.weight": torch.zeros(4, 16, 1, 1)}})


def with_long_head(good: bytes) -> bytes:
    state = torch.load(io.BytesIO(good), weights_only=True)
    state = {name: tensor for name, tensor in state.items() if not name.startswith("linear.")}
    return saved({**state, "linear.0.weight": torch.zeros(32, 64), "linear.2.weight": torch.zeros(10, 32)})


def detector_of_weights_only(_: bytes) -> bytes:
    return saved({"model.0.conv.weight": torch.zeros(16, 3, 6, 6), "model.1.conv.weight": torch.zeros(32, 16, 3, 3)})


def with_masks(good: bytes) -> bytes:
    state = torch.load(io.BytesIO(good), weights_only=True)
    weight = state.pop("conv1.weight")
    return saved({**state, "conv1.weight_orig": weight, "conv1.weight_mask": torch.ones_like(weight)})


def detector_with_absurd_names(_: bytes) -> bytes:
    with TemporaryDirectory() as folder:
        return save_tiny(Path(folder) / "m.pt", names={"9" * 5000: "cat"}).read_bytes()


def damaged(good: bytes) -> bytes:
    middle = len(good) // 2
    return good[:middle] + bytes(4096) + good[middle + 4096 :]


CASES: dict[str, tuple[Callable[[bytes], bytes], str, str]] = {
    "empty.pt": (lambda good: b"", "checkpoint", "empty"),
    "cut.pt": (lambda good: good[: len(good) // 2], "checkpoint", "cut off"),
    "zeroed.pt": (damaged, "checkpoint", "checksum"),
    "random.pt": (lambda good: random.Random(0).randbytes(5000), "checkpoint", "no checkpoint"),
    "text.pt": (lambda good: b"epoch,loss\n1,0.5\n", "checkpoint", "text file"),
    "model.onnx.pt": (
        lambda good: bytes.fromhex("080712077079746f726368") + bytes(99),
        "checkpoint",
        "ONNX.*training saved",
    ),
    "best.tar.gz.pt": (lambda good: gzip.compress(good), "checkpoint", "gzip-compressed; unpack it"),
    "lfs.pt": (
        lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "checkpoint",
        "git lfs pull",
    ),
    "quantized.pt": (quantized, "checkpoint", "quantized already.*full precision"),
    "se.pt": (with_attention, "architecture", "an SE-ResNet.*edged reads ResNet-18"),
    "head.pt": (with_long_head, "architecture", r"several layers.*head: \[linear, relu, linear\]"),
    "yolo.pt": (detector_of_weights_only, "architecture", "known by its yaml.*give the .pt that its training saved"),
    "pruned.pt": (with_masks, "architecture", r"pruned by torch\.nn\.utils\.prune.*call prune\.remove"),
    "names.pt": (detector_with_absurd_names, "architecture", "class names are a dict whose keys are not 0, 1, 2"),
    "other.pt": (other_network, "architecture", "no supported network.*features.0.weight"),
    "nan.pt": (with_nan, "non_finite", "layer2.0.conv1.weight"),
    "hundred.pt": (more_classes, "gate", "has 100 classes, generation 1 in service has 10; clients rely on it"),
    "shapes.pt": (misshapen, "architecture", "layer2.0.conv1.weight"),
}


@pytest.fixture(scope="module")
def daemon(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(tmp_path_factory.mktemp("bad"), task.calibration) as daemon:
        daemon.put_live(task.first)
        yield daemon


def check_rejected(daemon: Daemon, name: str, content: bytes, code: str, reason: str) -> None:
    source = daemon.folder / name
    source.write_bytes(content)
    counted = f'edged_updates_total{{model="digits",reason="{code}",result="rejected"}}'
    before = daemon.metric(counted) or 0
    daemon.drop(source)
    update = daemon.update_of(name)
    print(update["code"], "|", update["reason"])
    assert (update["state"], update["code"]) == ("REJECTED", code), update
    assert "\n" not in update["reason"]
    assert name in update["reason"]
    assert re.search(reason, update["reason"])
    folder = daemon.state / "rejected" / update["sha256"]
    assert (folder / "file").read_bytes() == content
    told = json.loads((folder / "reason.json").read_text())
    assert (told["file_name"], told["code"], told["reason"]) == (name, code, update["reason"])
    eventually(lambda: daemon.metric(counted) == before + 1, "it is counted")
    assert "load" not in update["stages"]  # before the long work
    daemon.await_no_claims()
    assert not list((daemon.state / "drop" / "digits").iterdir())
    assert daemon.generation() == 1


# One of each code; the others run slow, because the units of edged.models reject all of them without a daemon.
FAST = ("empty.pt", "zeroed.pt", "other.pt", "nan.pt", "hundred.pt", "quantized.pt", "head.pt", "yolo.pt")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_a_bad_file(daemon: Daemon, task: Task, name: str) -> None:
    make, code, reason = CASES[name]
    check_rejected(daemon, name, make(task.first.read_bytes()), code, reason)


def zeros(good: bytes) -> bytes:
    state = torch.load(io.BytesIO(good), weights_only=True)
    return saved({name: torch.zeros_like(tensor) for name, tensor in state.items()})


def with_flipped_bit(good: bytes) -> bytes:
    state = torch.load(io.BytesIO(good), weights_only=True)
    state["layer2.0.conv1.weight"].view(torch.int32)[3, 2, 1, 0] ^= 1 << 30  # of the exponent
    return saved(state)


def with_moved_classes(good: bytes) -> bytes:
    state = torch.load(io.BytesIO(good), weights_only=True)
    return saved(state | {name: state[name].roll(1, 0) for name in ("linear.weight", "linear.bias")})


NONSENSE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "zeros.pt": (zeros, "outputs of the full-precision network are the same for all of 8 .*varied_outputs: false"),
    "flipped.pt": (with_flipped_bit, r"'layer2\.0\.conv1\.weight' holds the value -?\d\.\d+e\+3\d.*plausible_weights"),
    "moved.pt": (
        with_moved_classes,
        r"right on \d+ of \d+ labeled images .* order of its classes.*above_chance: false",
    ),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_a_network_that_computes_nonsense(daemon: Daemon, task: Task, name: str) -> None:
    make, reason = NONSENSE[name]
    source = daemon.folder / name
    source.write_bytes(make(task.first.read_bytes()))
    daemon.drop(source)
    update = daemon.update_of(name)
    assert (update["state"], update["code"]) == ("REJECTED", "gate"), update
    assert re.search(reason, update["reason"])
    assert "quantize" not in update["stages"]  # before the long work
    assert daemon.generation() == 1


@pytest.mark.parametrize(
    "protocol", ["zip", *(pytest.param(name, marks=pytest.mark.slow) for name in ("legacy", "plain"))]
)
def test_a_malicious_pickle_runs_nothing(daemon: Daemon, protocol: str) -> None:
    trace = daemon.folder / f"trace-{protocol}"
    content = {"state_dict": {"conv1.weight": Malicious(trace)}}
    buffer = io.BytesIO()
    if protocol == "plain":
        pickle.dump(content, buffer)
    else:
        torch.save(content, buffer, _use_new_zipfile_serialization=protocol == "zip")
    code, reason = "unsafe_checkpoint", "posix.system"
    check_rejected(daemon, f"{protocol}.pt", buffer.getvalue(), code, reason)
    assert not trace.exists()


def test_a_bad_file_is_not_tried_twice(daemon: Daemon) -> None:
    source = daemon.folder / "twice.pt"
    source.write_bytes(b"not a checkpoint, twice")
    for name in ("twice-a.pt", "twice-b.pt"):
        daemon.drop(source, name)
        assert daemon.update_of(name)["state"] == "REJECTED"
    second = daemon.update_of("twice-b.pt")
    assert "the same file was rejected before" in second["reason"]
    assert "start" not in second["stages"]  # no worker was started


def test_a_link_is_refused_and_left_alone(daemon: Daemon) -> None:
    link = daemon.state / "drop" / "digits" / "link.pt"
    link.symlink_to("/etc/passwd")
    update = daemon.update_of("link.pt")
    assert (update["state"], update["code"]) == ("REJECTED", "not_a_file")
    assert link.is_symlink()
    link.unlink()


def test_the_old_model_serves_all_along(daemon: Daemon, task: Task) -> None:
    answer = daemon.infer(next(task.test.rglob("*.png")))
    assert (answer.status_code, answer.json()["model_version"]) == (200, "1")
    eventually(lambda: daemon.put_live(task.second)["generation"] == 2, "a good file after all the bad ones")
