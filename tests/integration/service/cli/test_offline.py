"""quantize, evaluate and calib as a user runs them, without a daemon."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch

from edged.artifacts.weights import load_weights
from edged.quant.grid import QuantizedWeight
from tests.support import scenes, trained
from tests.support.commands import execute
from tests.support.tasks import DetectionTask, Task

SIZE = ["--input-size", "8"]


def edged(cache: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.cli.main", *map(str, arguments)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_quantize_then_evaluate(task: Task, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = edged(tmp_path, "quantize", task.first, "--calib", task.calibration, "--out", out, *SIZE, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert result["out"] == str(out)
    assert result["totals"]["bits"] == 4
    assert len(result["layers"]) == 20
    assert result == {"out": str(out), **json.loads((out / "report.json").read_text())}

    scores = {}
    for model, options in ((task.first, SIZE), (out, [])):
        done = edged(tmp_path, "evaluate", model, "--data", task.test, *options, "--json")
        assert done.returncode == 0, done.stderr
        scores[model] = json.loads(done.stdout)
        assert (scores[model]["images"], scores[model]["input"]["size"]) == (297, 8)
    assert scores[task.first]["comparison_key"] == scores[out]["comparison_key"]
    done = edged(tmp_path, "evaluate", task.first, "--data", task.test, "--preprocessing-of", out, "--json")
    result = json.loads(done.stdout)
    assert (result["top1"], result["warnings"]) == (scores[task.first]["top1"], [])
    assert scores[task.first]["top1"] > 95
    assert abs(scores[task.first]["top1"] - scores[out]["top1"]) < 5


def test_folders_that_the_user_names_are_made(task: Task, tmp_path: Path) -> None:
    """Those of the cache, too: a fresh machine has no ~/.cache."""
    out, cache = tmp_path / "some" / "new" / "out", tmp_path / "home" / ".cache"
    done = edged(cache, "quantize", task.first, "--calib", task.calibration, "--out", out, *SIZE, "--json")
    assert done.returncode == 0, done.stderr
    assert (out / "manifest.json").exists()
    for number, command in enumerate(
        (["evaluate", task.first, "--data", task.test, *SIZE], ["calib", task.calibration])
    ):
        done = edged(tmp_path, *command, "--cache", tmp_path / f"cache-{number}" / "a" / "b" / "c")
        assert done.returncode == 0, done.stderr


def codes(cache: Path, checkpoint: Path, images: Path, out: Path, *options: str) -> dict[str, QuantizedWeight]:
    """The codes by parameter name, in the order of the network, of a checkpoint that was quantized with options."""
    done = edged(cache, "quantize", checkpoint, "--calib", images, "--out", out, *options, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    quantized, _ = load_weights(out / "weights.safetensors")
    names = [f"{layer['name']}.weight" for layer in report["layers"]]
    assert [quantized[name].bits for name in names] == [layer["bits"] for layer in report["layers"]]
    return {name: quantized[name] for name in names}


def same(one: QuantizedWeight, other: QuantizedWeight) -> bool:
    return one.bits == other.bits and torch.equal(one.codes, other.codes) and torch.equal(one.scale, other.scale)


def check_bits_of_the_ends(checkpoint: Path, images: Path, folder: Path, *options: str) -> None:
    """Other bits change the codes of their own layer and of the layers after it, and none before it."""
    widths = ((), ("--bits", "8", "--small-bits", "8"), ("--first-bits", "8"), ("--last-bits", "6"))
    options = (*options, "--small-bits", "4")
    plain, wide, first, last = (
        codes(folder, checkpoint, images, folder / str(index), *options, *width) for index, width in enumerate(widths)
    )
    names = list(plain)
    assert [first[name].bits for name in names] == [8, *[4] * (len(names) - 1)]
    assert [last[name].bits for name in names] == [*[4] * (len(names) - 1), 6]
    assert all(same(plain[name], last[name]) for name in names[:-1])
    assert same(first[names[0]], wide[names[0]])
    assert not same(plain[names[1]], first[names[1]])  # it corrects what the first layer has changed, which is less now
    manifest = json.loads((folder / "3" / "manifest.json").read_text())
    assert (manifest["quantization"]["first_bits"], manifest["quantization"]["last_bits"]) == (None, 6)
    totals = json.loads((folder / "3" / "report.json").read_text())["totals"]
    assert (totals["bits"], totals["first_bits"], totals["last_bits"]) == (4, 4, 6)


def test_the_first_and_the_last_layer_can_have_their_own_bits(task: Task, tmp_path: Path) -> None:
    check_bits_of_the_ends(task.first, task.calibration, tmp_path, *SIZE, "--images", "64")


def test_each_layer_gets_bits_within_a_size(task: Task, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--calib", task.calibration, "--out", out, *SIZE, "--images", "64", "--recipe", "fast"]
    auto = ["quantize", task.first, *options, "--bits", "auto"]
    done = edged(tmp_path, *auto, "--size-limit", "1KiB")
    assert (done.returncode, done.stdout) == (2, "")
    least = re.search(r"size_limit is 1024 bytes, and with the fewest bits the weights take (\d+) bytes", done.stderr)
    assert least is not None, done.stderr
    limit = int(least[1]) * 3 // 2
    done = edged(tmp_path, *auto, "--size-limit", str(limit))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^bits +auto: [2-8] to [2-8], [2-8]\.\d\d on average", done.stdout, re.M)
    assert re.search(r"^  conv1 +[2-8] bits: error .*with one bit less", done.stdout, re.M)
    assert (out / "weights.safetensors").stat().st_size <= limit
    report = json.loads((out / "report.json").read_text())
    assert len({layer["bits"] for layer in report["layers"]}) > 1
    done = edged(tmp_path, "evaluate", out, "--data", task.test, "--json")
    assert json.loads(done.stdout)["top1"] > 85, done.stderr
    done = edged(tmp_path, "export", out, "--format", "onnx", "--target", "onnxruntime", "--out", tmp_path / "m.onnx")
    assert done.returncode == 0, done.stderr
    onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bits", "auto"], "bits is auto without a limit; give size_limit or max_drop, too"),
        (["--size-limit", "3MiB"], "size_limit is for bits auto, and bits has value 4"),
        (["--bits", "auto", "--size-limit", "3 parsecs"], "argument --size-limit"),
        (["--bits", "most"], "argument --bits: 'most'; write 2 to 8 or auto"),
    ],
)
def test_limits_of_size_that_mean_nothing_are_named(
    task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    try:
        code = execute("quantize", task.first, "--calib", task.calibration, "--out", tmp_path / "out", *options)
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert (code, message in capsys.readouterr().err) == (2, True)


@pytest.mark.slow
def test_the_ends_of_a_genuine_resnet20_can_have_their_own_bits(real_data: Path, tmp_path: Path) -> None:
    checkpoint = real_data / "weights" / "resnet20-12fca82f.th"
    check_bits_of_the_ends(checkpoint, real_data / "cifar10" / "calib", tmp_path, "--images", "128")


def test_a_model_in_integers_is_exported_and_run(task: Task, tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "digits.onnx"
    options = ["--activation-bits", "8", "--method", "requant", "--search", "golden", "--bits", "7", "--images", "64"]
    options += ["--runtime", "onnxruntime"]
    done = edged(tmp_path, "quantize", task.first, "--calib", task.calibration, "--out", out, *SIZE, *options)
    assert done.returncode == 0, done.stderr
    assert re.search(r"bits +7, activations 8\n", done.stdout)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["activations"]["bits"] == 8
    assert (manifest["quantization"]["method"], manifest["quantization"]["search"]) == ("requant", "golden")
    assert json.loads((out / "report.json").read_text())["totals"]["activation_bits"] == 8

    done = edged(tmp_path, "export", out, "--out", file, "--dynamic-batch", "--json")
    assert done.returncode == 0, done.stderr
    size = file.stat().st_size
    described = {"out": str(file), "bytes": size, "integer": True, "output": "logits", "output_shape": [10]}
    assert json.loads(done.stdout) == described
    images, labels = task.digits.tensors(trained.TEST)
    (logits,) = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(
        None, {"input": images.numpy()}
    )
    served = json.loads(edged(tmp_path, "evaluate", out, "--data", task.test, "--json").stdout)
    assert (served["engine"], served["precision"]) == ("onnxruntime", "integer")
    assert abs(float((logits.argmax(1) == labels.numpy()).mean()) * 100 - served["top1"]) < 1
    assert served["top1"] > 95

    done = edged(tmp_path, "export", out, "--format", "triton", "--target", "openvino", "--out", tmp_path / "digits")
    assert done.returncode == 0, done.stderr
    for expected in ("computes on  integers", "logits [10] for each image"):
        assert expected in done.stdout
    assert (tmp_path / "digits" / "labels.txt").read_text().split() == list("0123456789")
    done = edged(tmp_path, "export", out, "--out", file)
    assert done.returncode == 73
    assert "it already exists" in done.stderr


def test_tables_for_people(task: Task, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--bits", "8", "--last-bits", "6", "--method", "rtn", "--images", "64"]
    done = edged(tmp_path, "quantize", task.first, "--calib", task.calibration, "--out", out, *SIZE, *options)
    assert done.returncode == 0, done.stderr
    for expected in ("artifact", "8, last layer 6", "top-1", "agreement", "peak memory", "largest relative loss"):
        assert expected in done.stdout
    for expected in ("served by", "candidates to serve\n  onnxruntime, integer  ", ": serves\n"):
        assert expected in done.stdout
    assert re.fullmatch(r"plan: 56 images .* MiB in all\n", done.stderr)  # and no bar without a terminal
    done = edged(tmp_path, "calib", task.calibration, *SIZE)
    assert "200: 180 calibrate, 20 are held out\n" in done.stdout
    done = edged(tmp_path, "evaluate", out, "--data", task.test)
    assert "top-5" in done.stdout
    assert re.search(r"computed by +[a-z]+, (integer|float)\n", done.stdout)
    assert re.search(
        r"prepared +shorter side to 8, then the central 8 pixels; mean .*; from the artifact\n", done.stdout
    )
    assert re.search(r"comparable +with results of the key [0-9a-f]{16}\nwarning +the artifact prepares", done.stdout)


def test_calib_lists_what_it_skips(task: Task, tmp_path: Path) -> None:
    folder = task.digits.write_folders(tmp_path / "images", slice(0, 60))
    (folder / "0" / "broken.png").write_bytes(b"\x89PNG broken")
    result = json.loads(edged(tmp_path, "calib", folder, *SIZE, "--json").stdout)
    assert (result["images"], result["calibration"], result["held_out"]) == (60, 52, 8)
    assert result["classes"] == list("0123456789")
    assert [entry["path"] for entry in result["skipped"]] == ["0/broken.png"]
    assert Path(result["cache"]).is_relative_to(tmp_path)


def test_a_detector_is_quantized_and_its_map_measured(detection_task: DetectionTask, tmp_path: Path) -> None:
    out = tmp_path / "out"
    size, images = ["--input-size", str(scenes.SIDE)], detection_task.calibration
    options = ["--bits", "8", "--confidence", "0.1", "--max-drop", "20"]
    done = edged(tmp_path, "quantize", detection_task.first, "--calib", images, "--out", out, *size, *options)
    assert done.returncode == 0, done.stderr
    for expected in ("mAP50 ", "mAP50-95 ", "agreement", "held-out images"):
        assert expected in done.stdout
    report = json.loads((out / "report.json").read_text())
    assert json.loads((out / "manifest.json").read_text())["detection"]["confidence"] == 0.1

    scores = {}
    for model, options in ((detection_task.first, size), (out, [])):
        done = edged(tmp_path, "evaluate", model, "--data", detection_task.test, *options, "--json")
        assert done.returncode == 0, done.stderr
        scores[model] = json.loads(done.stdout)
        assert (scores[model]["task"], scores[model]["images"]) == ("detection", 40)
        assert scores[model]["input"] == scenes.INPUT.to_dict()
    assert scores[detection_task.first]["map50"] > 50
    assert abs(scores[detection_task.first]["map50_95"] - scores[out]["map50_95"]) < 5
    assert report["totals"]["drop"]["map50_95"] < 20
    done = edged(tmp_path, "evaluate", out, "--data", detection_task.test)
    assert re.search(r"mAP50 +\d+\.\d\d %\nmAP50-95 +\d+\.\d\d %\nimages +40 \(0 skipped\), \d+ lab", done.stdout)


def test_calib_prepares_images_as_for_a_detector(detection_task: DetectionTask, tmp_path: Path) -> None:
    done = edged(tmp_path, "calib", detection_task.calibration, "--letterbox", "--input-size", "64", "--json")
    result = json.loads(done.stdout)
    assert result["input"] == scenes.INPUT.to_dict()
    assert (Path(result["cache"]) / "images.u8").stat().st_size == 80 * 3 * 64 * 64


def test_nonsense_is_written_only_without_the_default_gates(task: Task, tmp_path: Path) -> None:
    state = torch.load(task.first, weights_only=True)
    zeros = tmp_path / "zeros.pt"
    torch.save({name: torch.zeros_like(tensor) for name, tensor in state.items()}, zeros)
    quick = ["--method", "rtn", "--images", "40", *SIZE]
    command = ["quantize", zeros, "--calib", task.calibration, "--out", tmp_path / "out", *quick]
    done = edged(tmp_path, *command)
    assert (done.returncode, (tmp_path / "out").exists()) == (3, False)
    assert "are the same for all of" in done.stderr
    done = edged(tmp_path, *command, "--no-default-gates")
    assert (done.returncode, (tmp_path / "out").exists()) == (0, True), done.stderr


def test_a_top_1_at_chance_is_a_warning(task: Task, tmp_path: Path) -> None:
    state = torch.load(task.first, weights_only=True)
    moved = tmp_path / "moved.pt"
    torch.save(state | {name: state[name].roll(1, 0) for name in ("linear.weight", "linear.bias")}, moved)
    quick = ["--method", "rtn", *SIZE]
    done = edged(tmp_path, "quantize", moved, "--calib", task.calibration, "--out", tmp_path / "out", *quick)
    assert done.returncode == 0, done.stderr
    assert re.search(r"the full-precision network is right on \d+ of \d+ .*, drop a better", done.stderr)
