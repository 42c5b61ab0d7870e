"""Checkpoints as YOLOv5's training writes them, through read_checkpoint."""

import copy
import os
import subprocess
import sys
import textwrap
from pathlib import Path, PosixPath

import numpy as np
import pytest
import torch
from torch import nn

from edged.errors import ArchitectureError, CheckpointError, NonFiniteError, UnsafeCheckpointError
from edged.models.architecture import Architecture
from edged.models.checkpoint import read_checkpoint
from edged.models.registry import load_model, recognize
from edged.models.yolov5.blocks import Conv
from edged.models.yolov5.plan import Plan
from edged.spec import Choice
from tests.support.refusals import refused
from tests.support.repository import ROOT
from tests.support.yolov5_samples import (
    BACKBONE,
    HEAD,
    classes_of_yolov5,
    pickled,
    save_tiny,
    tiny_model,
    tiny_plan,
    yaml_of,
)


def architecture_of(path: Path) -> Architecture:
    checkpoint = read_checkpoint(path)
    return recognize(checkpoint.state, None, checkpoint.plan)


def save(path: Path, **entries: object) -> Path:
    torch.save(entries, path)
    return path


# ---- what must load


def test_a_trained_detector_loads_with_its_plan(tmp_path):
    model = tiny_model()
    checkpoint = read_checkpoint(save_tiny(tmp_path / "best.pt", model))
    assert checkpoint.plan == tiny_plan()
    state = model.state_dict()
    assert checkpoint.state.keys() == state.keys()
    for name, tensor in checkpoint.state.items():
        assert torch.equal(tensor, state[name].half().float() if tensor.is_floating_point() else state[name])
        assert tensor.dtype in (torch.float32, torch.int64)


def test_the_network_is_rebuilt(tmp_path):
    model = tiny_model().half().float()
    checkpoint = read_checkpoint(save_tiny(tmp_path / "best.pt", model))
    architecture = recognize(checkpoint.state, None, checkpoint.plan)
    assert architecture == Architecture("yolov5", 3, "plan", 3, "plan", tiny_plan())
    assert architecture.task == "detection"
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_model(checkpoint.state, architecture)(x), model(x))


@pytest.mark.parametrize("root", ["Model", "DetectionModel"])
@pytest.mark.parametrize("names", [["cat", "dog", "cow"], {0: "cat", 1: "dog", 2: "cow"}])
def test_classes_may_be_named_by_a_list_or_a_dict(tmp_path, root, names):
    with classes_of_yolov5() as classes:
        save(tmp_path / "m.pt", model=pickled(tiny_model(), tiny_plan(), classes, root, names=names))
    assert read_checkpoint(tmp_path / "m.pt").plan.names == ("cat", "dog", "cow")


def test_the_averaged_model_is_preferred(tmp_path):
    trained, averaged = tiny_model(seed=1), tiny_model(seed=2)
    with classes_of_yolov5() as classes:
        both = {"model": pickled(trained, tiny_plan(), classes), "ema": pickled(averaged, tiny_plan(), classes)}
        save(tmp_path / "last.pt", **both)
    key = "model.0.conv.weight"
    assert torch.equal(read_checkpoint(tmp_path / "last.pt").state[key], averaged.state_dict()[key].half().float())
    last = read_checkpoint(tmp_path / "last.pt", choice=Choice(weights="last"))
    assert torch.equal(last.state[key], trained.state_dict()[key].half().float())
    assert not last.averaged


def test_a_model_is_found_under_any_key(tmp_path):
    with classes_of_yolov5() as classes:
        save(tmp_path / "m.pt", epoch=3, net=pickled(tiny_model(), tiny_plan(), classes))
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    assert checkpoint.key == "net"
    assert checkpoint.plan == tiny_plan()


def test_objects_next_to_the_model_are_ignored(tmp_path):
    model = tiny_model()
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(5))], lr=0.1, momentum=0.9)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(5)
    optimizer.step()
    with classes_of_yolov5() as classes:
        save(
            tmp_path / "last.pt",
            epoch=np.int64(3),
            best_fitness=np.array([0.375]),
            model=pickled(model, tiny_plan(), classes),
            ema=pickled(model, tiny_plan(), classes),
            updates=17,
            optimizer=optimizer.state_dict(),
            wandb_id=None,
            opt={"save_dir": PosixPath("runs/train/exp"), "weights": "yolov5n.pt"},
            git={"remote": None},
            date="2022-02-08T18:24:20.515893",
        )
    assert read_checkpoint(tmp_path / "last.pt").plan == tiny_plan()


def test_a_bare_model_loads(tmp_path):
    with classes_of_yolov5() as classes:
        torch.save(pickled(tiny_model(), tiny_plan(), classes), tmp_path / "m.pt")
    assert read_checkpoint(tmp_path / "m.pt").plan == tiny_plan()


def test_anchors_are_those_of_the_tensors(tmp_path):
    """Training may have replaced the yaml's by others that fit its images better, and leaves the yaml as it was."""
    yaml = yaml_of(tiny_plan(), anchors=2)
    assert read_checkpoint(save_tiny(tmp_path / "m.pt", yaml=yaml)).plan.anchors == tiny_plan().anchors


# ---- what is something else


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("models.yolo.SegmentationModel", "it is a YOLOv5 segmentation model"),
        ("models.yolo.ClassificationModel", "it is a YOLOv5 classification model"),
        ("ultralytics.nn.tasks.DetectionModel", "it is a YOLOv8 or later model"),
    ],
)
def test_other_models_are_refused_by_name(tmp_path, name, reason):
    with classes_of_yolov5(name) as classes:
        save(tmp_path / "m.pt", model=classes[name]())
    message = refused(tmp_path / "m.pt")
    assert reason in message
    assert f"(it names '{name}')" in message


@pytest.mark.parametrize("name", ["models.common.C3x", "torch.nn.modules.activation.Mish"])
def test_unknown_blocks_are_refused_by_name(tmp_path, name):
    with classes_of_yolov5(*([] if name.startswith("torch") else [name])) as classes:
        whole = pickled(tiny_model(), tiny_plan(), classes)
        whole.model.add_module("10", classes[name]() if name in classes else nn.Mish())
        save(tmp_path / "m.pt", model=whole)
    message = refused(tmp_path / "m.pt")
    assert f"a block that edged does not know ('{name}')" in message
    assert "state_dict" not in message  # a YOLOv5's state dict is refused, too


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_the_format_before_torch_1_6_gives_the_same(tmp_path):
    with classes_of_yolov5() as classes:
        whole = {"model": pickled(tiny_model(), tiny_plan(), classes)}
        torch.save(whole, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
        torch.save(whole, tmp_path / "zip.pt")
    assert_the_same(tmp_path / "legacy.pt", tmp_path / "zip.pt")


def assert_the_same(path: Path, expected: Path) -> None:
    """Both give the same plan and the same tensors."""
    found, wanted = read_checkpoint(path), read_checkpoint(expected)
    assert found.plan == wanted.plan
    assert found.state.keys() == wanted.state.keys()
    assert all(torch.equal(found.state[name], tensor) for name, tensor in wanted.state.items())


@pytest.mark.parametrize("wrapper", ["models.common.AutoShape", "models.common.DetectMultiBackend"])
def test_wrappers_around_the_model_are_opened(tmp_path, wrapper):
    expected = save_tiny(tmp_path / "m.pt")
    with classes_of_yolov5(wrapper) as classes:
        outer = classes[wrapper]()
        outer.model = pickled(tiny_model(), tiny_plan(), classes)
        torch.save(outer, tmp_path / "wrapped.pt")
        torch.save({"model": nn.DataParallel(outer.model)}, tmp_path / "parallel.pt")
    assert_the_same(tmp_path / "wrapped.pt", expected)
    assert_the_same(tmp_path / "parallel.pt", expected)


def test_buffers_that_profiling_leaves_are_dropped(tmp_path):
    expected = save_tiny(tmp_path / "m.pt")
    with classes_of_yolov5() as classes:
        whole = pickled(tiny_model(), tiny_plan(), classes)
        for module in whole.modules():
            module.register_buffer("total_ops", torch.zeros(1, dtype=torch.float64))
        save(tmp_path / "profiled.pt", model=whole)
    assert_the_same(tmp_path / "profiled.pt", expected)


def test_a_fused_model_computes_what_it_did(tmp_path):
    model = tiny_model()
    image = torch.rand(1, 3, 16, 16)
    with classes_of_yolov5() as classes:
        whole = pickled(model, tiny_plan(), classes).float()
        for module in whole.modules():
            if type(module).__name__ == "Conv":
                module.conv = torch.nn.utils.fusion.fuse_conv_bn_eval(module.conv.eval(), module.bn.eval())
                del module.bn
        save(tmp_path / "fused.pt", model=whole)
    checkpoint = read_checkpoint(tmp_path / "fused.pt")
    loaded = load_model(checkpoint.state, recognize(checkpoint.state, None, checkpoint.plan))
    torch.testing.assert_close(loaded(image), half_and_back(model)(image), rtol=1e-4, atol=1e-4)


def half_and_back(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).half().float()


@pytest.mark.parametrize("names", [{"0": "cat", "1": "dog", "2": "cow"}, {0: "cat", 1: "dog", 2: "cow"}])
def test_names_may_be_a_dict_whose_keys_are_texts(tmp_path, names):
    assert read_checkpoint(save_tiny(tmp_path / "m.pt", names=names)).plan.names == ("cat", "dog", "cow")


@pytest.mark.parametrize(
    ("activation", "spelled"),
    [
        (nn.ReLU(), "nn.ReLU()"),
        (nn.LeakyReLU(0.1), "nn.LeakyReLU(0.1)"),
        (nn.Hardswish(), "nn.Hardswish()"),
        (nn.SiLU(), "nn.SiLU()"),
    ],
)
@pytest.mark.parametrize("in_the_yaml", [True, False])
def test_the_activation_is_that_of_the_modules(tmp_path, activation, spelled, in_the_yaml):
    model = tiny_model()
    for module in model.modules():
        if isinstance(module, Conv):
            module.act = activation
    yaml = yaml_of(tiny_plan(), **({"activation": spelled} if in_the_yaml else {}))
    checkpoint = read_checkpoint(save_tiny(tmp_path / "m.pt", model, yaml=yaml))
    assert checkpoint.plan.activation == spelled
    assert Plan.from_dict(checkpoint.plan.to_dict()) == checkpoint.plan
    loaded = load_model(checkpoint.state, recognize(checkpoint.state, None, checkpoint.plan))
    image = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(loaded(image), half_and_back(model)(image))


@pytest.mark.parametrize("depth", [10**400, -1, 0, float("nan"), float("inf"), "0.33", True])
def test_absurd_numbers_are_named(tmp_path, depth):
    path = save_tiny(tmp_path / "m.pt", yaml=yaml_of(tiny_plan(), depth_multiple=depth))
    with pytest.raises(ArchitectureError, match="depth_multiple"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ({"9" * 5000: "cat"}, "a dict whose keys are not 0, 1, 2"),
        ({"\u00b2": "cat"}, "a dict whose keys are not 0, 1, 2"),
        ([10**6000], "a class name is no text"),
        ([-(10**6000)], "a class name is no text"),
        (["x" * 300], "a class name is no text"),
    ],
    ids=["key of 5,000 digits", "superscript", "number of 6,000 digits", "negative", "long"],
)
def test_absurd_names_are_refused(tmp_path, names, reason):
    with pytest.raises(ArchitectureError, match=reason):
        read_checkpoint(save_tiny(tmp_path / "m.pt", names=names))


def test_an_absurd_row_is_named_in_one_line(tmp_path):
    yaml = yaml_of(tiny_plan())
    yaml["backbone"][1][0] = -(10**6000)
    with pytest.raises(
        ArchitectureError, match=r"row 1 of the yaml \(Conv\) cannot read rows \[a number of 19932 bits\]"
    ):
        read_checkpoint(save_tiny(tmp_path / "m.pt", yaml=yaml))


def test_onnx_is_named(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\x08\x07\x12\x07pytorch\x1a\x061.12.0" + bytes(100))
    assert "it is an ONNX file" in refused(tmp_path / "m.onnx", CheckpointError)


def test_a_truncated_file_is_rejected(tmp_path):
    path = save_tiny(tmp_path / "m.pt")
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        assert "cut off or damaged; copy it again" in refused(path, CheckpointError)


def test_weights_without_their_yaml_are_refused():
    with pytest.raises(ArchitectureError, match="a YOLOv5 is known by its yaml, which the file does not hold"):
        recognize(tiny_model().state_dict())


def test_a_pinned_name_must_fit():
    state = tiny_model().state_dict()
    assert recognize(state, "yolov5", tiny_plan()).name == "yolov5"
    with pytest.raises(ArchitectureError, match="the file holds a yolov5, not the yolov5s that was asked for"):
        recognize(state, "yolov5s", tiny_plan())


# ---- what contradicts itself


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"yaml": yaml_of(tiny_plan(), nc=4)}, "the file has 3 names, 4 classes"),
        ({"yaml": yaml_of(tiny_plan(), nc="3")}, "its yaml has the nc '3'; give the number of classes"),
        ({"names": ["a", "b"]}, "the file has 2 names, 3 classes"),
        ({"names": None}, "the class names are a NoneType"),
        (
            {"yaml": yaml_of(tiny_plan(), head=[*HEAD[:-2], [[7, 4], 1, "Detect", []]])},
            "its yaml has 9 rows, but the file holds 10 modules",
        ),
        (
            {"yaml": yaml_of(tiny_plan(), backbone=[*BACKBONE[:2], [-1, 1, "Conv", [32]], *BACKBONE[3:]])},
            "row 2 of its yaml is Conv, but the file holds 'models.common.C3'",
        ),
        ({"yaml": yaml_of(tiny_plan(), head=[])}, "rows, but the file holds|must be the last"),
        ({"yaml": yaml_of(tiny_plan(), head=None)}, "its yaml has no list 'head'"),
        ({"yaml": yaml_of(tiny_plan(), depth_multiple="0.33")}, "its yaml has the depth_multiple '0.33'"),
        (
            {"yaml": yaml_of(tiny_plan(), activation="nn.ReLU()")},
            r"activations nn.SiLU\(\), and its yaml says nn.ReLU\(\)",
        ),
        (
            {"yaml": yaml_of(tiny_plan(), backbone=[[-1, 1, "Conv", [32, 6, 4, 2]], *BACKBONE[1:]])},
            r"its yaml makes strides \[8, 16\], but the file says \[4.0, 8.0\]",
        ),
        ({"yaml": yaml_of(tiny_plan(), head=[*HEAD[:-1], [[8], 1, "Detect", []]])}, "2 levels, Detect reads 1"),
    ],
)
def test_a_yaml_that_contradicts_the_file_is_refused(tmp_path, attributes, message):
    save_tiny(tmp_path / "m.pt", **attributes)
    with pytest.raises(ArchitectureError, match=message):
        read_checkpoint(tmp_path / "m.pt")


def test_tensors_of_other_shapes_are_named(tmp_path):
    checkpoint = read_checkpoint(save_tiny(tmp_path / "m.pt", yaml=yaml_of(tiny_plan(), width_multiple=0.75)))
    with pytest.raises(ArchitectureError, match=r"needs tensor 'model.0.conv.weight' of shape \[24, 3, 6, 6\]; it has"):
        recognize(checkpoint.state, None, checkpoint.plan)


def test_non_finite_weights_are_named(tmp_path):
    model = tiny_model()
    model.model[0].conv.weight[0, 0, 0, 0] = float("nan")
    assert "'model.0.conv.weight' holds NaN" in refused(save_tiny(tmp_path / "m.pt", model), NonFiniteError)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: whole.__dict__.pop("yaml"), "its model has no yaml"),
        (lambda whole: whole.model[-1].__dict__.pop("stride"), "its Detect has no stride"),
        (lambda whole: whole.model[-1]._buffers.clear(), "its Detect has no anchors"),
        (lambda whole: whole.model[0]._modules.update(conv="conv"), "a block that edged does not know \\('str'\\)"),
        (lambda whole: whole.model[0]._modules.update(conv=whole.model[-1].m), "needs tensor|nest"),
        (lambda whole: whole.model[0].__dict__.pop("_parameters"), "has no _parameters; save the model again"),
        (lambda whole: whole.model[0]._parameters.update(weight=3), "'model.0.weight' of its model is no tensor"),
        (lambda whole: whole.model[0]._modules.update(loop=whole.model[0]), "its modules nest deeper than 16|shared"),
    ],
)
def test_odd_trees_are_refused(tmp_path, damage, message):
    with classes_of_yolov5() as classes:
        whole = pickled(tiny_model(), tiny_plan(), classes)
        damage(whole)
        save(tmp_path / "m.pt", model=whole)
    with pytest.raises((CheckpointError, ArchitectureError), match=message):
        architecture_of(tmp_path / "m.pt")


# ---- what is built to harm


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("place", ["next to it", "in the model", "in the yaml", "as a module"])
def test_a_malicious_reduce_is_named_and_not_run(tmp_path, place):
    path, canary = tmp_path / "best.pt", tmp_path / "canary"
    with classes_of_yolov5() as classes:
        whole = pickled(tiny_model(), tiny_plan(), classes)
        if place == "in the model":
            whole.hyp = Evil(canary)
        elif place == "in the yaml":
            whole.yaml["nc"] = Evil(canary)
        elif place == "as a module":
            whole.model._modules["3"] = Evil(canary)
        save(path, model=whole, **({"opt": Evil(canary)} if place == "next to it" else {}))
        assert "'posix.system'" in refused(path, UnsafeCheckpointError)
        assert not canary.exists()
        torch.load(path, weights_only=False)
    assert canary.exists()  # the file is as dangerous as it was meant to be


def test_no_class_of_the_file_is_left_behind(tmp_path):
    read_checkpoint(save_tiny(tmp_path / "m.pt"))
    assert "models.yolo" not in sys.modules


# ---- how much memory it takes

MEASURE = """
    import sys
    from pathlib import Path
    from edged.models.checkpoint import read_checkpoint
    from edged.models.registry import load_model, recognize
    import torch

    def peak():  # not ru_maxrss: a child starts with its parent's
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024

    before = peak()
    checkpoint = read_checkpoint(Path(sys.argv[1]))
    architecture = recognize(checkpoint.state, None, checkpoint.plan)
    model = load_model(checkpoint.state, architecture)
    weights = sum(tensor.nbytes for tensor in model.state_dict().values()) / 2**20
    print(architecture.name, round(weights), round(peak() - before))
"""


@pytest.mark.slow
def test_a_checkpoint_of_yolov5x_takes_its_weights_and_its_file(tmp_path):
    """Save 170 MB of half precision twice (trained and averaged), with a momentum next to them, as training does."""
    code = f"""
        import torch
        from edged.models.yolov5.network import YoloV5
        from edged.models.yolov5.standard import standard
        from edged.models.yolov5.standard import _rows
        from tests.support.yolov5_samples import classes_of_yolov5, pickled
        plan = standard("x", [str(i) for i in range(80)])
        anchors = [[side for pair in level for side in pair] for level in plan.anchors]
        rows = _rows([128, 256, 512, 1024], focus=False)
        yaml = dict(nc=80, depth_multiple=1.33, width_multiple=1.25, anchors=anchors)
        yaml |= dict(backbone=rows[:10], head=rows[10:])
        with classes_of_yolov5() as classes:
            one = pickled(YoloV5(plan), plan, classes, yaml=yaml)
            torch.save({{"model": one, "ema": pickled(YoloV5(plan), plan, classes, yaml=yaml),
                        "optimizer": {{"momentum": torch.zeros(86_000_000)}}}}, {str(tmp_path / "last.pt")!r})
    """
    run = {"check": True, "capture_output": True, "text": True, "cwd": ROOT}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], **run)
    size = (tmp_path / "last.pt").stat().st_size / 2**20
    assert size > 650
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(MEASURE), tmp_path / "last.pt"], **run)
    name, weights, peak = done.stdout.split()
    print(done.stdout)
    assert name == "yolov5x"
    assert int(weights) == 331
    assert int(peak) > 331  # the measure itself works
    # The weights in float32, the pages of their half precision, and nothing of the other two thirds of the file.
    assert int(peak) < 331 + 170 + 120
