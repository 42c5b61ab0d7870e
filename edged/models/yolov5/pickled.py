"""Read the plan and the tensors of a YOLOv5 checkpoint from the inert data that stands for its modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edged.errors import ArchitectureError, CheckpointError, UnsafeCheckpointError
from edged.models.allowlist import ACTIVATIONS, WRAPPERS, YOLOV5_BLOCKS, YOLOV5_MODELS, plain_name
from edged.models.inert_pickle import Inert, StoredTensor
from edged.models.pickle_scan import quoted
from edged.models.yolov5.blocks import BN_EPS
from edged.models.yolov5.plan import (
    DEFAULT_ACTIVATION,
    MAX_ANCHORS,
    MAX_LEVELS,
    MAX_MULTIPLE,
    Anchors,
    Plan,
    parse_activation,
    parse_anchors,
    parse_names,
    parse_rows,
)
from edged.models.zip_container import Contents
from edged.spec import Choice

MAX_MODULES = 20_000
MAX_DEPTH = 16
# The model averaged over training, then the last one. Ultralytics' own tools prefer them in this order.
_KEYS = ("ema", "model")
_PROFILED = ("total_ops", "total_params")  # buffers that profiling with thop leaves
_ONLY = "edged reads detectors of YOLOv5 v5.0 to v7.0"
_OTHER_MODELS = {
    "models.yolo.SegmentationModel": "segmentation model",
    "models.yolo.ClassificationModel": "classification model",
}


@dataclass(frozen=True)
class Pickled:
    """The module of a detector in a checkpoint.

    Attributes:
        module: Inert stand-in for the module.
        key: Key of the module in the file; "" for the top.
    """

    module: Inert
    key: str


def pickled_model(tree: Any, choice: Choice | None = None) -> Pickled | None:
    """Return the module of the YOLOv5 detector in a checkpoint, or None if it holds none.

    Args:
        tree: Contents of the file as inert data.
        choice: Choice between the averaged and the last model, and of the key; None prefers the averaged one.

    Raises:
        CheckpointError: The checkpoint holds another kind of model by the same authors.
    """
    choice = choice or Choice()
    for key, value in _candidates(tree, choice):
        module = _unwrapped(value)
        if module is None:
            continue
        name = plain_name(module.name)
        if name in YOLOV5_MODELS:
            return Pickled(module, key)
        if name in _OTHER_MODELS:
            raise UnsafeCheckpointError(
                f"it is a YOLOv5 {_OTHER_MODELS[name]} (it names {quoted(module.name)}); {_ONLY}"
            )
        if name.startswith("ultralytics."):
            raise UnsafeCheckpointError(f"it is a YOLOv8 or later model (it names {quoted(module.name)}); {_ONLY}")
    return None


def _candidates(tree: Any, choice: Choice) -> list[tuple[str, Any]]:
    """Return what may be the model, by key, the one to prefer first."""
    if not isinstance(tree, dict):
        return [("", tree)]
    first = _KEYS[::-1] if choice.weights == "last" else _KEYS
    others = [key for key in tree if isinstance(key, str) and key not in first]
    return [(key, tree.get(key)) for key in (*first, *others) if choice.key in (None, key)]


def _unwrapped(value: object) -> Inert | None:
    """Return the module inside DataParallel, AutoShape and the like."""
    for _ in range(MAX_DEPTH):
        if not isinstance(value, Inert):
            return None
        attribute = WRAPPERS.get(plain_name(value.name))
        if attribute is None:
            return value
        state = value.state if isinstance(value.state, dict) else {}
        modules = state.get("_modules")
        value = modules.get(attribute) if isinstance(modules, dict) else None
    return None


def read_model(pickled: Pickled, contents: Contents) -> tuple[dict[str, Tensor], Plan, bool]:
    """Return the tensors of a detector by their name in a state dict, its plan, and whether it is averaged.

    The anchors are part of the plan: training may have replaced those of the yaml. A convolution that was fused with
    its BatchNorm gets one that changes nothing.

    Args:
        pickled: Module that `pickled_model` returned.
        contents: The file, for the values of its tensors.

    Raises:
        CheckpointError: The modules lack a part that every module has.
        ArchitectureError: The yaml describes an unknown detector, or another one than was saved.
    """
    model = pickled.module
    stored = dict(_tensors(model, "", 0, [MAX_MODULES]))
    yaml = _attribute(model, "yaml", dict)
    rows = parse_rows([*_list(yaml, "backbone"), *_list(yaml, "head")])
    outer = _children(model)
    saved = _children(outer.get("model", model))
    _compare_blocks(saved, [row.block for row in rows])
    last = len(rows) - 1
    prefix = "model." if "model" in outer else ""
    detect = saved[str(last)]
    strides = [float(stride) for stride in _small_tensor(_state(detect).get("stride"), "stride", contents).flatten()]
    anchors = stored.pop(f"{prefix}{last}.anchors", None)
    stored.pop(f"{prefix}{last}.anchor_grid", None)
    plan = Plan(
        depth=_multiple(yaml, "depth_multiple"),
        width=_multiple(yaml, "width_multiple"),
        rows=rows,
        anchors=_anchors(anchors, strides, contents),
        names=_names(model, yaml),
        activation=_activation(model, yaml),
    )
    _compare_numbers(plan, strides)
    state = {name: contents.tensor(value) for name, value in stored.items()}
    return _with_batchnorm(state), plan, pickled.key == "ema"


def _names(model: Inert, yaml: Mapping[Any, Any]) -> tuple[str, ...]:
    names, classes = parse_names(_state(model).get("names")), yaml.get("nc")
    if type(classes) is not int:
        raise ArchitectureError(f"its yaml has the nc {quoted(classes)}; give the number of classes and save it again")
    if classes != len(names):
        raise ArchitectureError(
            f"the file has {len(names)} names, {quoted(classes, 20)[1:-1]} classes (nc of its yaml); give each class"
            " one name and save it again"
        )
    return names


def _activation(model: Inert, yaml: Mapping[Any, Any]) -> str:
    """Return the activation of all convolutions, after checking that the modules and the yaml agree on it."""
    declared = None if yaml.get("activation") is None else parse_activation(yaml["activation"])
    found = {_spelled(module) for module in _activations(model, [MAX_MODULES])} or {declared or DEFAULT_ACTIVATION}
    if len(found) > 1 or (declared is not None and declared not in found):
        also = "" if declared is None else f", and its yaml says {declared}"
        raise ArchitectureError(
            f"its convolutions have the activations {', '.join(sorted(found))}{also}; edged knows networks with one"
        )
    return found.pop()


def _activations(module: Inert, left: list[int]) -> Iterator[Inert]:
    left[0] -= 1
    if left[0] < 0:
        return
    for name, child in _children(module).items():
        if plain_name(child.name) in ACTIVATIONS and name == "act":
            yield child
        else:
            yield from _activations(child, left)


def _spelled(module: Inert) -> str:
    kind = module.name.rpartition(".")[2]
    if kind != "LeakyReLU":
        return f"nn.{kind}()"
    slope = _state(module).get("negative_slope")
    return parse_activation(f"nn.LeakyReLU({slope})" if isinstance(slope, float) else "nn.LeakyReLU()")


def _with_batchnorm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` with a BatchNorm that changes nothing after each convolution that was fused with its own."""
    complete: dict[str, Tensor] = {}
    for name, value in state.items():
        block = name.removesuffix(".conv.bias")
        if block == name or f"{block}.bn.weight" in state:
            complete[name] = value
            continue
        ones = torch.ones(value.shape)
        norm = {"weight": ones, "bias": value, "running_mean": 0 * ones, "running_var": (1 - BN_EPS) * ones}
        complete |= {f"{block}.bn.{kind}": each for kind, each in norm.items()}
    return complete


def _tensors(module: Inert, prefix: str, depth: int, left: list[int]) -> Iterator[tuple[str, StoredTensor]]:
    """Yield parameters and persistent buffers in the order of a state dict; `left` counts modules down."""
    left[0] -= 1
    if depth > MAX_DEPTH or left[0] < 0:
        raise CheckpointError(f"its modules nest deeper than {MAX_DEPTH} or number over {MAX_MODULES}")
    state = _state(module)
    hidden = state.get("_non_persistent_buffers_set")
    for kind in ("_parameters", "_buffers"):
        for name, value in _mapping(module, kind).items():
            if value is None or (isinstance(hidden, set) and name in hidden) or name in _PROFILED:
                continue
            if not isinstance(value, StoredTensor):
                raise CheckpointError(f"{quoted(prefix + name)} of its model is no tensor")
            yield prefix + name, value
    for name, child in _children(module).items():
        yield from _tensors(child, f"{prefix}{name}.", depth + 1, left)


def _state(stub: Inert) -> dict[Any, Any]:
    if not isinstance(stub.state, dict):
        raise CheckpointError(f"its {quoted(stub.name)} has no attributes; save the model again")
    return stub.state


def _mapping(stub: Inert, key: str) -> dict[str, Any]:
    value = _state(stub).get(key)
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise CheckpointError(f"its {quoted(stub.name)} has no {key}; save the model again")
    return value


def _children(stub: Inert) -> dict[str, Inert]:
    children = {name: child for name, child in _mapping(stub, "_modules").items() if child is not None}
    for child in children.values():
        if not isinstance(child, Inert) or plain_name(child.name) not in YOLOV5_BLOCKS:
            kind = quoted(child.name if isinstance(child, Inert) else type(child).__name__)
            raise UnsafeCheckpointError(
                f"its {quoted(stub.name)} holds a block that edged does not know ({kind}); {_ONLY} with their"
                " published blocks"
            )
    return children


def _attribute(stub: Inert, key: str, kind: type) -> Any:
    value = _state(stub).get(key)
    if not isinstance(value, kind):
        raise CheckpointError(f"its model has no {key}, which YOLOv5 saves with every model; save it with YOLOv5")
    return value


def _list(yaml: Mapping[Any, Any], key: str) -> list[Any]:
    value = yaml.get(key)
    if not isinstance(value, list):
        raise ArchitectureError(f"its yaml has no list {key!r}; save the model with YOLOv5")
    return value


def _multiple(yaml: Mapping[Any, Any], key: str) -> float:
    value = yaml.get(key)
    if type(value) not in (int, float) or not 0 < value <= MAX_MULTIPLE:  # type: ignore[operator]  # a number, then
        raise ArchitectureError(
            f"its yaml has the {key} {quoted(value)}; give a number above 0, {MAX_MULTIPLE:g} at most"
        )
    return float(value)  # type: ignore[arg-type]  # the line above checked it


def _compare_blocks(saved: Mapping[str, Inert], blocks: list[str]) -> None:
    """Check that each row's block is the one that was saved; a row that repeats its block is a Sequential of it."""
    if list(saved) != [str(index) for index in range(len(blocks))]:
        raise ArchitectureError(f"its yaml has {len(blocks)} rows, but the file holds {len(saved)} modules")
    for index, block in enumerate(blocks):
        stub = saved[str(index)]
        inner = _children(stub).get("0", stub) if stub.name.endswith(".Sequential") else stub
        if inner.name.rpartition(".")[2] != block.removeprefix("nn."):
            raise ArchitectureError(f"row {index} of its yaml is {block}, but the file holds {quoted(inner.name)}")


def _compare_numbers(plan: Plan, strides: list[float]) -> None:
    if list(plan.strides()) != strides:
        raise ArchitectureError(f"its yaml makes strides {list(plan.strides())}, but the file says {strides}")


def _small_tensor(value: object, name: str, contents: Contents) -> Tensor:
    if not isinstance(value, StoredTensor) or not 0 < value.numel <= 2 * MAX_LEVELS * MAX_ANCHORS:
        raise CheckpointError(f"its Detect has no {name}, which training sets; save a trained model")
    return contents.tensor(value).detach().to(torch.float64)


def _anchors(buffer: StoredTensor | None, strides: list[float], contents: Contents) -> Anchors:
    """Return the anchors in pixels; a checkpoint keeps them in cells."""
    cells = _small_tensor(buffer, "anchors", contents)
    if cells.dim() != 3 or cells.shape[0] != len(strides):
        raise ArchitectureError(f"its anchors have shape {list(cells.shape)}, Detect has {len(strides)} levels")
    return parse_anchors((cells * torch.tensor(strides, dtype=torch.float64)[:, None, None]).tolist())
