"""Pickled YOLOv5 detectors with absurd attributes. One without a change is read, so each change is reached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.hostile.spelling import PROTO, Spelled, encoded, instance, tensor

VALUES, VALUE = 4096, 2.0  # of the one storage: its size, and what it holds: the stride, and the anchors in cells
_CHANNELS, _NAMES = 8, ["cat", "dog"]
_HEAD_OUTPUTS = 2 * (5 + len(_NAMES))


def detector(yaml: Mapping[str, Any] | None = None, model: Mapping[str, Any] | None = None) -> bytes:
    """Return the pickle of a detector of one convolution and one level.

    Args:
        yaml: Entries of its yaml that differ.
        model: Attributes of the model that differ.
    """
    rows = {"backbone": [[-1, 1, "Conv", [_CHANNELS, 3, 2]]], "head": [[[0], 1, "Detect", ["nc", "anchors"]]]}
    plain = {"nc": len(_NAMES), "depth_multiple": 1.0, "width_multiple": 1.0, "ch": 3, "anchors": [[5, 6, 8, 15]]}
    conv = {
        "conv": _module("torch.nn.modules.conv.Conv2d", {"weight": _values(_CHANNELS, 3, 3, 3)}),
        "bn": _module("torch.nn.modules.batchnorm.BatchNorm2d", *_norm()),
        "act": _module("torch.nn.modules.activation.SiLU"),
    }
    heads = _module(
        "torch.nn.modules.conv.Conv2d",
        {"weight": _values(_HEAD_OUTPUTS, _CHANNELS, 1, 1), "bias": _values(_HEAD_OUTPUTS)},
    )
    inner = {"m": _module("torch.nn.modules.container.ModuleList", modules={"0": heads})}
    detect = _module("models.yolo.Detect", {}, {"anchors": _values(1, 2, 2)}, inner, stride=_values(1))
    layers = {"0": _module("models.common.Conv", modules=conv), "1": detect}
    state = {"yaml": {**plain, **rows, **(yaml or {})}, "names": _NAMES, "stride": _values(1), **(model or {})}
    whole = _module(
        "models.yolo.Model",
        {},
        {},
        {"model": _module("torch.nn.modules.container.Sequential", modules=layers)},
        **state,
    )
    return PROTO + encoded({"epoch": -1, "model": whole, "ema": None}) + b"."


def _values(*shape: int) -> Spelled:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return tensor(0, shape, tuple(strides), _STORAGE)


_STORAGE = Spelled(encoded(("storage", Spelled(b"ctorch\nFloatStorage\n"), "0", "cpu", VALUES)) + b"Q")


def _norm() -> tuple[dict[str, Any], dict[str, Any]]:
    parameters = {"weight": _values(_CHANNELS), "bias": _values(_CHANNELS)}
    return parameters, {"running_mean": _values(_CHANNELS), "running_var": _values(_CHANNELS)}


def _module(
    name: str,
    parameters: Mapping[str, Any] | None = None,
    buffers: Mapping[str, Any] | None = None,
    modules: Mapping[str, Any] | None = None,
    **attributes: Any,
) -> Spelled:
    groups = {"_parameters": parameters or {}, "_buffers": buffers or {}, "_modules": modules or {}}
    return instance(name, {"training": False, **groups, **attributes})


_TOWER = 10**5000  # more digits than Python converts to text
_ODD: Mapping[str, Any] = {
    "10 ** 5000": _TOWER,
    "-10 ** 5000": -_TOWER,
    "2 ** 63": 1 << 63,
    "1e308": 1e308,
    "infinity": float("inf"),
    "NaN": float("nan"),
    "-1": -1,
    "1e-320": 1e-320,
    "true": True,
    "none": None,
    "text": "__import__('os').system('touch x')",
    "a text of 1 MB": "9" * 1_000_000,
    "a list": [[[[]]]],
    "a dict": {"a": {"b": 1}},
    "a tensor": tensor(0, (1,), (1,), _STORAGE),
    "a module": instance("models.common.Conv", {}),
}


# The usual activation, and multiples with which the same network follows from the yaml.
_HARMLESS = frozenset({("activation", "none"), ("depth_multiple", "1e-320"), ("width_multiple", "1e-320")})


def _row(reads: Any = -1, repeats: Any = 1, block: Any = "Conv", arguments: Any = None) -> list[list[Any]]:
    return [[reads, repeats, block, [8, 3, 2] if arguments is None else arguments]]


def absurd_detectors() -> Iterator[tuple[str, bytes]]:
    """Yield pickles of detectors with one absurd value each."""
    for name, value in _ODD.items():
        for key in ("depth_multiple", "width_multiple", "nc", "backbone", "activation"):
            if (key, name) not in _HARMLESS:
                yield f"{key}: {name}", detector({key: value})
        yield f"names: {name}", detector(model={"names": value})
        if value != -1:  # which is the usual one
            yield f"from: {name}", detector({"backbone": _row(value)})
        yield f"repeats: {name}", detector({"backbone": _row(repeats=value)})
        yield f"block: {name}", detector({"backbone": _row(block=value)})
        yield f"channels: {name}", detector({"backbone": _row(arguments=[value, 3, 2])})
        yield f"kernel: {name}", detector({"backbone": _row(arguments=[8, value, 2])})
        yield f"stride: {name}", detector({"backbone": _row(arguments=[8, 3, value])})
    yield "201 rows", detector({"backbone": _row() * 200})
    yield "a row of 1,000,000 sources", detector({"backbone": _row(list(range(1_000_000)))})
    yield "1,000,000 rows", detector({"backbone": [0] * 1_000_000})
    yield "10,001 classes", detector({"nc": 10_001}, {"names": ["a"] * 10_001})
    yield "names by a number of 5,000 digits", detector(model={"names": {0: "a", _TOWER: "b"}})
    yield "nn.SiLU( a thousand times", detector({"activation": "nn.SiLU(" * 1000})
    yield "a slope of 1e400", detector({"activation": "nn.LeakyReLU(1e400)"})
    yield "a module of another kind", detector({}, {"yaml": instance("models.yolo.Model", {})})
