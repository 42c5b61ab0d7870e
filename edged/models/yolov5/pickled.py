"""What a YOLOv5 checkpoint holds, read from the inert stubs that stand for its modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from edged.errors import ArchitectureError, CheckpointError
from edged.models.allowlist import YOLOV5_BLOCKS, YOLOV5_MODELS, Stub
from edged.models.pickle_scan import quoted
from edged.models.yolov5.plan import MAX_ANCHORS, MAX_LEVELS, Anchors, Plan, parse_anchors, parse_names, parse_rows

MAX_MODULES = 20_000
MAX_DEPTH = 16
# Averaged over training, then the trained one. Ultralytics' own tools prefer them in this order.
_KEYS = ("ema", "model")


def pickled_model(tree: Any) -> Stub | None:
    """The stub of a YOLOv5 detector in what was saved, None if there is none."""
    candidates = [tree.get(key) for key in _KEYS] if isinstance(tree, dict) else [tree]
    return next((stub for stub in candidates if isinstance(stub, Stub) and stub.name in YOLOV5_MODELS), None)


def read_model(model: Stub) -> tuple[dict[str, Tensor], Plan]:
    """The tensors of a detector, as its state dict would name them, and its plan.

    The anchors are part of the plan: training may have replaced those of the yaml.

    Args:
        model: From `pickled_model`.

    Raises:
        CheckpointError: The stubs do not hold what modules hold.
        ArchitectureError: The yaml describes no detector that edged knows, or another one than was saved.
    """
    state = dict(_tensors(model, "", 0, [MAX_MODULES]))
    yaml = _attribute(model, "yaml", dict)
    if (activation := yaml.get("activation")) not in (None, "nn.SiLU()"):
        raise ArchitectureError(f"its yaml has the activation {quoted(activation)}; edged knows SiLU")
    rows = parse_rows([*_list(yaml, "backbone"), *_list(yaml, "head")])
    saved = _children(_children(model).get("model", model))
    _compare_blocks(saved, [row.block for row in rows])
    last = len(rows) - 1
    detect = saved[str(last)]
    strides = [float(stride) for stride in _small_tensor(_state(detect).get("stride"), "stride").flatten()]
    plan = Plan(
        depth=_multiple(yaml, "depth_multiple"),
        width=_multiple(yaml, "width_multiple"),
        rows=rows,
        anchors=_anchors(state.pop(f"model.{last}.anchors", None), strides),
        names=parse_names(_state(model).get("names")),
    )
    state.pop(f"model.{last}.anchor_grid", None)
    _compare_numbers(yaml, plan, strides)
    return state, plan


def _tensors(module: Stub, prefix: str, depth: int, left: list[int]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers, in the order of a state dict; `left` counts modules down."""
    left[0] -= 1
    if depth > MAX_DEPTH or left[0] < 0:
        raise CheckpointError(f"its modules nest deeper than {MAX_DEPTH} or number over {MAX_MODULES}")
    state = _state(module)
    hidden = state.get("_non_persistent_buffers_set")
    for kind in ("_parameters", "_buffers"):
        for name, value in _mapping(module, kind).items():
            if value is None or (isinstance(hidden, set) and name in hidden):
                continue
            if not isinstance(value, Tensor):
                raise CheckpointError(f"{quoted(prefix + name)} of its model is no tensor")
            yield prefix + name, value
    for name, child in _children(module).items():
        yield from _tensors(child, f"{prefix}{name}.", depth + 1, left)


def _state(stub: Stub) -> dict[Any, Any]:
    if not isinstance(stub.state, dict):
        raise CheckpointError(f"its {quoted(stub.name)} has no attributes; save the model again")
    return stub.state


def _mapping(stub: Stub, key: str) -> dict[str, Any]:
    value = _state(stub).get(key)
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise CheckpointError(f"its {quoted(stub.name)} has no {key}; save the model again")
    return value


def _children(stub: Stub) -> dict[str, Stub]:
    children = {name: child for name, child in _mapping(stub, "_modules").items() if child is not None}
    for child in children.values():
        if not isinstance(child, Stub) or child.name not in YOLOV5_BLOCKS:
            kind = quoted(child.name if isinstance(child, Stub) else type(child).__name__)
            raise CheckpointError(f"its {quoted(stub.name)} holds {kind}, which is no block of a detector")
    return children


def _attribute(stub: Stub, key: str, kind: type) -> Any:
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
    if type(value) not in (int, float):
        raise ArchitectureError(f"its yaml has the {key} {quoted(value)}; give a number")
    return float(value)  # type: ignore[arg-type]  # the line above checked it


def _compare_blocks(saved: Mapping[str, Stub], blocks: list[str]) -> None:
    """A row that repeats its block is a Sequential of it."""
    if list(saved) != [str(index) for index in range(len(blocks))]:
        raise ArchitectureError(f"its yaml has {len(blocks)} rows, but the file holds {len(saved)} modules")
    for index, block in enumerate(blocks):
        stub = saved[str(index)]
        inner = _children(stub).get("0", stub) if stub.name.endswith(".Sequential") else stub
        if inner.name.rpartition(".")[2] != block.removeprefix("nn."):
            raise ArchitectureError(f"row {index} of its yaml is {block}, but the file holds {quoted(inner.name)}")


def _compare_numbers(yaml: Mapping[Any, Any], plan: Plan, strides: list[float]) -> None:
    if yaml.get("nc") != len(plan.names):
        raise ArchitectureError(f"its yaml has {quoted(yaml.get('nc'))} classes, but {len(plan.names)} names")
    if list(plan.strides()) != strides:
        raise ArchitectureError(f"its yaml makes strides {list(plan.strides())}, but the file says {strides}")


def _small_tensor(value: object, name: str) -> Tensor:
    if type(value) is not Tensor or not 0 < value.numel() <= 2 * MAX_LEVELS * MAX_ANCHORS:
        raise CheckpointError(f"its Detect has no {name}, which training sets; save a trained model")
    # A stub's tensor may be a view that repeats one value: a list has the size of what was checked above.
    return value.detach().to(torch.float64)


def _anchors(buffer: Tensor | None, strides: list[float]) -> Anchors:
    """In pixels; a checkpoint keeps them in cells."""
    cells = _small_tensor(buffer, "anchors")
    if cells.dim() != 3 or cells.shape[0] != len(strides):
        raise ArchitectureError(f"its anchors have shape {list(cells.shape)}, Detect has {len(strides)} levels")
    return parse_anchors((cells * torch.tensor(strides, dtype=torch.float64)[:, None, None]).tolist())
