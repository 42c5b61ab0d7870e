"""What quantize, evaluate and calib reject: called in this process, because each start of torch takes a second."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from edged.models.resnet import CifarResNet
from tests.support import scenes
from tests.support.artifacts import write_untrained
from tests.support.commands import execute
from tests.support.signing import Signer
from tests.support.tasks import DetectionTask, Task

SIZE = ["--input-size", "8"]


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Return the exit code, stdout and stderr."""
    try:
        code = execute(*arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    written = capsys.readouterr()
    return code, written.out, written.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["quantize", "FIRST", "--calib", "CALIB", "--out", "OUT", "--iou", "2"], "iou has value 2.0; choose 0 to 1"),
        (["quantize", "FIRST", "--calib", "CALIB", "--out", "OUT", "--resize", "80"], "input resize has value 80"),
        (["evaluate", "FIRST", "--data", "BARE"], "has no label files; give images with YOLO labels"),
    ],
    ids=["iou", "resize", "labels"],
)
def test_what_is_wrong_with_a_detectors_command(
    detection_task: DetectionTask, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    names = {
        "FIRST": detection_task.first,
        "CALIB": detection_task.calibration,
        "OUT": tmp_path / "out",
        "BARE": scenes.write_scenes(tmp_path / "bare", range(40), labels=False),
    }
    code, _, err = call(capsys, *(names.get(argument, argument) for argument in arguments), "--input-size", "64")
    assert (code, err.count("\n")) == (2, 1)
    assert reason in err


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["quantize"], 2, "required: CHECKPOINT"),
        (["quantize", "FIRST", "--calib", "CALIB", "--out", "OUT", "--bits", "9"], 2, "--bits"),
        (["quantize", "FIRST", "--calib", "CALIB", "--out", "OUT", "--beam", "65"], 2, "beam has value 65"),
        (["quantize", "FIRST", "--calib", "CALIB", "--out", "CALIB"], 2, "already exists"),
        (["quantize", "MISSING", "--calib", "CALIB", "--out", "OUT"], 3, "missing.pt"),
        (["quantize", "FIRST", "--calib", "MISSING", "--out", "OUT"], 3, "missing.pt"),
        (["quantize", "FIRST", "--calib", "CALIB", "--out", "OUT", "--arch", "vgg"], 3, "'vgg'"),
        (["quantize", "FIRST", "--calib", "CALIB", "--out", "OUT", "--memory-limit", "1MiB"], 75, "1 MiB"),
        (["quantize", "FIRST", "--calib", "CALIB", "--out", "OUT", "--memory-limit", "lots"], 2, "lots"),
        (["evaluate", "FIRST", "--data", "FLAT"], 2, "0 class folders, the model has 10"),
        (["evaluate", "CALIB", "--data", "CALIB"], 3, "is not an artifact"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_wrong_is_said_in_one_line(
    task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, reason: str
) -> None:
    flat = tmp_path / "flat"
    for index in range(40):
        task.digits.png(index, flat / f"{index}.png")
    names = {
        "FIRST": task.first,
        "CALIB": task.calibration,
        "MISSING": tmp_path / "missing.pt",
        "OUT": tmp_path / "out",
        "FLAT": flat,
    }
    found, out, err = call(capsys, *(names.get(argument, argument) for argument in arguments), *SIZE, "--json")
    assert found == code, err
    assert reason in err
    assert err.count("\n") == 1
    if code != 2:
        assert reason in json.loads(out)["error"]
    assert not (tmp_path / "out").exists()


def test_inspect_shows_what_a_checkpoint_holds(tmp_path, capsys):
    torch.save({"net": CifarResNet(3).state_dict(), "acc": 91.0}, tmp_path / "ckpt.pth")
    code, out, _ = call(capsys, "inspect", str(tmp_path / "ckpt.pth"))
    assert code == 0
    assert "architecture  cifar_resnet20" in out
    assert "key 'net'" in out
    code, out, _ = call(capsys, "inspect", str(tmp_path / "ckpt.pth"), "--json")
    assert (code, json.loads(out)["key"]) == (0, "net")


def test_inspect_shows_what_a_signature_claims(tmp_path, capsys):
    path, signer = tmp_path / "ckpt.pth", Signer(tmp_path, "release")
    torch.save(CifarResNet(3).state_dict(), path)
    assert json.loads(call(capsys, "inspect", str(path), "--json")[1])["signature"] is None
    signature = signer.write(path, "shelf", 7)
    code, out, _ = call(capsys, "inspect", str(path))
    assert code == 0
    assert (
        f"version 7 of shelf, by {signer.key.id[:16]}; not verified: `edged verify FILE --key PUBLIC_KEY` does" in out
    )
    shown = json.loads(call(capsys, "inspect", str(path), "--json")[1])["signature"]
    claims = {"model": "shelf", "version": 7, "key_ids": [signer.key.id], "matches": True}
    assert shown == {"file": str(signature), **claims}
    torch.save(CifarResNet(3).state_dict() | {"linear.bias": torch.ones(10)}, path)
    assert "ckpt.pth.sig is of another file" in call(capsys, "inspect", str(path))[1]
    signature.write_text("{}")
    assert "ckpt.pth.sig cannot be used: its payloadType" in call(capsys, "inspect", str(path))[1]


def test_inspect_takes_what_the_tensors_do_not_tell(tmp_path, capsys):
    model = CifarResNet(3)
    model.linear = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 5))
    torch.save(model.state_dict(), tmp_path / "ckpt.pth")
    code, _, err = call(capsys, "inspect", str(tmp_path / "ckpt.pth"))
    assert code == 3
    assert "head: [linear, relu, linear]" in err
    code, out, _ = call(capsys, "inspect", str(tmp_path / "ckpt.pth"), "--head", "linear, relu, linear", "--json")
    assert code == 0
    assert (json.loads(out)["classes"], json.loads(out)["head"]) == (5, ["linear:32", "relu", "linear:5"])
    code, _, err = call(capsys, "inspect", str(tmp_path / "ckpt.pth"), "--head", "linear,softmax")
    assert code == 2
    assert "edged knows linear, batchnorm" in err


def test_inspect_says_why_a_file_would_be_rejected(tmp_path, capsys):
    torch.save({"net": CifarResNet(3).state_dict()}, tmp_path / "ckpt.pth")
    code, out, err = call(capsys, "inspect", str(tmp_path / "ckpt.pth"), "--arch", "resnet18", "--json")
    assert (code, json.loads(out)["code"]) == (3, "architecture")
    assert "holds a cifar_resnet20, not the resnet18" in err
    (tmp_path / "notes.txt").write_text("not a checkpoint at all")
    assert call(capsys, "inspect", str(tmp_path / "notes.txt"))[0] == 3


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["ARTIFACT"], 2, "required: --out"),
        (["ARTIFACT", "--out", "NEW", "--target", "coreml"], 2, "invalid choice: 'coreml'"),
        (["ARTIFACT", "--out", "NEW", "--format", "tflite"], 2, "invalid choice: 'tflite'"),
        (["EMPTY", "--out", "NEW"], 3, "manifest.json"),
        (["ARTIFACT", "--out", "EMPTY"], 73, "it already exists"),
        (["ARTIFACT", "--out", "NOWHERE"], 73, "cannot write"),
    ],
)
def test_what_is_wrong_with_an_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, reason: str
) -> None:
    names = {
        "ARTIFACT": tmp_path / "artifact",
        "EMPTY": tmp_path / "empty",
        "NEW": tmp_path / "m.onnx",
        "NOWHERE": tmp_path / "nowhere" / "m.onnx",
    }
    (tmp_path / "empty").mkdir()
    write_untrained(tmp_path / "artifact")
    found, _, err = call(capsys, "export", *(names.get(argument, argument) for argument in arguments))
    assert (found, err.count("\n")) == (code, 1), err
    assert reason in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "empty"]


def test_a_float_artifact_is_exported_with_a_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_untrained(tmp_path / "artifact")
    code, out, _ = call(capsys, "export", tmp_path / "artifact", "--out", tmp_path / "m.onnx")
    assert code == 0
    assert "float: quantize with --activation-bits 8 for integers" in out
    assert (tmp_path / "m.onnx").stat().st_size > 1_000_000


def test_other_bits_of_activations_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--calib", tmp_path, "--out", tmp_path / "out", "--activation-bits", "4")
    code, _, err = call(capsys, "quantize", tmp_path / "a.pt", *options)
    assert code == 2
    assert "--activation-bits: '4'; write auto, 8, none" in err
