import json
from pathlib import Path

import pytest
import torch

from edged.errors import ArchitectureError, CheckpointError
from edged.models.inspection import inspect_checkpoint
from edged.models.loading import load_checkpoint
from edged.models.resnet import BLOCKS, CifarResNet, ResNet
from edged.spec import Choice
from tests.support.yolov5_samples import save_tiny


def save(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def test_a_classifier_is_described(tmp_path):
    state = {name: tensor.half() for name, tensor in prefixed("net.", CifarResNet(3).state_dict()).items()}
    path = save(
        tmp_path / "m.ckpt",
        {"state_dict": {**state, "criterion.weight": torch.ones(10)}, "meta": {"classes": [*"abcdefghij"]}},
    )
    found = inspect_checkpoint(path).to_dict()
    expected = {
        "format": "torch-zip",
        "bytes": path.stat().st_size,
        "key": "state_dict",
        "prefix": "net.",
        "weights": "last",
        "dtypes": ["float16"],
        "architecture": "cifar_resnet20",
        "task": "classification",
        "classes": 10,
        "class_names": [*"abcdefghij"],
        "stem": "cifar",
        "in_channels": 3,
        "parameters": sum(parameter.numel() for parameter in CifarResNet(3).parameters()),
        "left_out": ["criterion.weight"],
    }
    assert {key: found[key] for key in expected} == expected
    assert found["input"]["size"] == 32
    assert json.loads(json.dumps(found)) == found


def test_a_detector_is_described(tmp_path):
    inspection = inspect_checkpoint(save_tiny(tmp_path / "best.pt"))
    found, lines = inspection.to_dict(), dict(inspection.lines())
    assert (found["architecture"], found["task"], found["class_names"]) == (
        "yolov5",
        "detection",
        ["cat", "dog", "cow"],
    )
    assert (found["key"], found["activation"], found["input"]["size"]) == ("model", "nn.SiLU()", 640)
    assert lines["input"] == "640 pixels, 3 channels, mean [0.0, 0.0, 0.0], std [1.0, 1.0, 1.0]"
    assert "stem" not in lines  # its yaml says all of its layers


def test_averaged_weights_are_marked_as_averaged(tmp_path):
    state = CifarResNet(3).state_dict()
    path = save(tmp_path / "m.pth", {"model": state, "model_ema": {name: 2 * tensor for name, tensor in state.items()}})
    assert inspect_checkpoint(path).to_dict()["weights"] == "averaged"
    assert inspect_checkpoint(path, choice=Choice(weights="last")).to_dict()["weights"] == "last"


def test_where_the_statistics_of_averaged_parameters_come_from_is_said(tmp_path):
    network = CifarResNet(3)
    average = {name: 2 * parameter.detach() for name, parameter in network.named_parameters()}
    path = save(tmp_path / "m.pth", {"model": network.state_dict(), "ema": {"decay": 0.9, "shadow": average}})
    found = inspect_checkpoint(path)
    assert found.to_dict()["weights"] == "averaged"
    assert "the running statistics of BatchNorm are those of key 'model'" in found.assumptions[1]
    loaded = load_checkpoint(path)
    torch.testing.assert_close(loaded.model.conv1.weight, average["conv1.weight"])
    torch.testing.assert_close(loaded.model.bn1.running_var, network.bn1.running_var)
    assert loaded.selection.assumptions[-1] == found.assumptions[1]


@pytest.mark.parametrize(
    ("model", "assumption"),
    [
        (lambda: ResNet(BLOCKS["basic"], (2, 2, 2, 2), 10, stem="small"), "no max-pooling after the 3x3 stem"),
        (
            lambda: ResNet(BLOCKS["bottleneck"], (3, 4, 6, 3), 10),
            "the stride in the 3x3 convolution of a block (v1.5); the tensors do not tell",
        ),
        (lambda: CifarResNet(3), "pad half of the new channels on each side"),
    ],
)
def test_assumptions_are_listed(tmp_path, model, assumption):
    found = inspect_checkpoint(save(tmp_path / "m.pth", model().state_dict()))
    assert any(assumption in text for text in found.assumptions)


@pytest.mark.parametrize(
    ("choice", "key", "value"),
    [(Choice(stem_pooling="true"), "stem_pooling", True), (Choice(stride_in="1x1"), "stride_in", "1x1")],
)
def test_an_answer_of_the_user_is_no_assumption(tmp_path, choice, key, value):
    with torch.device("meta"):
        model = ResNet(BLOCKS["bottleneck"], (3, 4, 6, 3), 10, stem="small")
    state = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in model.state_dict().items()}
    path = save(tmp_path / "m.pth", state)
    assert any(f"{key} sets it" in text for text in inspect_checkpoint(path).assumptions)
    found = inspect_checkpoint(path, choice=choice)
    assert not any(f"{key} sets it" in text for text in found.assumptions)
    assert found.to_dict()[key] == value


def test_an_answer_to_no_question_is_rejected(tmp_path):
    path = save(tmp_path / "m.pth", CifarResNet(3).state_dict())
    for choice in (Choice(stem_pooling="true"), Choice(stride_in="1x1")):
        with pytest.raises(ArchitectureError, match="cifar_resnet20 takes"):
            inspect_checkpoint(path, choice=choice)


@pytest.mark.parametrize(("channels", "mode"), [(2, "LA"), (4, "RGBA")])
def test_mean_and_std_of_images_with_alpha_are_to_be_given(tmp_path, channels, mode):
    found = inspect_checkpoint(save(tmp_path / "m.pth", CifarResNet(3, 10, channels).state_dict()))
    assert found.to_dict()["input"] == {"size": 32, "resize": 32, "mean": None, "std": None}
    assert f"images have {mode} channels; input needs mean and std of {channels} values" in found.assumptions
    assert dict(found.lines())["input"] == f"32 pixels, {channels} channels, mean to be given, std to be given"


def test_images_of_more_channels_are_rejected_with_what_is_read(tmp_path):
    path = save(tmp_path / "m.pth", CifarResNet(3, 10, 6).state_dict())
    with pytest.raises(
        ArchitectureError, match=r"in_channels has value 6; .* takes 1, 2, 3, 4: gray, .* RGB with alpha"
    ):
        inspect_checkpoint(path)


def test_the_text_lists_every_fact(tmp_path):
    more = {f"criterion.w{index}": torch.ones(1) for index in range(25)}
    path = save(tmp_path / "m.pth", {"ema": {**CifarResNet(3).state_dict(), **more}})
    text = dict(inspect_checkpoint(path).lines())
    assert text["state dict"] == "key 'ema'"
    assert text["weights"] == "averaged, stored as float32"
    assert text["left out"].endswith("and 5 more")


def test_names_of_a_file_cannot_control_a_terminal(tmp_path):
    lines = dict(inspect_checkpoint(save_tiny(tmp_path / "m.pt", names=["a\n\x1b[2J", "b", "c"])).lines())
    assert lines["classes"] == r"3 (a\n\x1b[2J, b, c)"
    state = {**CifarResNet(3).state_dict(), "loss.\x1b[31m": torch.zeros(3)}
    assert dict(inspect_checkpoint(save(tmp_path / "m.pth", state)).lines())["left out"] == r"loss.\x1b[31m"


def test_inspection_rejects_the_same_files_as_loading(tmp_path):
    state = CifarResNet(3).state_dict()
    with pytest.raises(ArchitectureError, match="holds a cifar_resnet20, not the resnet18"):
        inspect_checkpoint(save(tmp_path / "m.pth", state), "resnet18")
    unknown = {**prefixed("model.encoder.", state), "model.decoder.0.weight": torch.ones(4, 4)}
    with pytest.raises(ArchitectureError, match=r"fit nothing: 'model\.decoder\.0\.weight'"):
        inspect_checkpoint(save(tmp_path / "m.pth", unknown))
    with pytest.raises(CheckpointError, match="holds 2 networks that fit"):
        inspect_checkpoint(save(tmp_path / "m.pth", {"a": state, "b": {k: v + 1 for k, v in state.items()}}))


@pytest.mark.parametrize(("path", "shown"), [("b\nad.pt", r"b\nad.pt"), ("\x1b[31m.pt", r"\x1b[31m.pt"), (".", ".")])
def test_a_file_is_named_once_and_on_one_line(path, shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        inspect_checkpoint(Path(path))
    problem = "it is a folder; give a file" if path == "." else "cannot be opened: No such file or directory"
    assert str(caught.value) == f"{shown}: {problem}"
