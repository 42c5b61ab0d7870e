"""The names that a checkpoint's pickle may mention, and the inert classes that stand in for what they name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

STORAGES: Mapping[str, torch.dtype] = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
DTYPES = frozenset(STORAGES.values())

# What torch.load(weights_only=True) builds itself. A part of its list: the rest makes other kinds of tensors.
BUILT_BY_TORCH = frozenset(
    {*STORAGES, *(str(dtype) for dtype in DTYPES), "torch.device", "torch.Size"}
    | {f"torch._utils._rebuild_{kind}" for kind in ("tensor", "tensor_v2", "parameter")}
    | {"collections.OrderedDict", "collections.Counter", "builtins.set", "__builtin__.set", "_codecs.encode"}
)
# What training scripts put beside the weights. The real classes are never touched.
STUBBED = frozenset(
    {f"{module}.multiarray.scalar" for module in ("numpy.core", "numpy._core")}
    | {f"{m}.{name}" for m in ("builtins", "__builtin__") for name in ("dict", "list", "int", "float", "bool", "bytes")}
    | {f"{module}.multiarray._reconstruct" for module in ("numpy.core", "numpy._core")}
    | {f"pathlib.{part}{kind}Path" for part in ("", "_local.") for kind in ("Posix", "Windows")}
    | {"__builtin__.long", "numpy.dtype", "numpy.ndarray", "argparse.Namespace", "collections.defaultdict"}
)
# The classes of a YOLOv5 detector of v6.0 to v7.0, whose training saves modules instead of a state dict.
YOLOV5_MODELS = frozenset({"models.yolo.Model", "models.yolo.DetectionModel"})
YOLOV5_BLOCKS = frozenset(
    {f"models.common.{name}" for name in ("Conv", "C3", "Bottleneck", "SPP", "SPPF", "Focus", "Concat")}
    | {f"torch.nn.modules.container.{name}" for name in ("Sequential", "ModuleList")}
    | {"torch.nn.modules.conv.Conv2d", "torch.nn.modules.batchnorm.BatchNorm2d", "torch.nn.modules.activation.SiLU"}
    | {"torch.nn.modules.pooling.MaxPool2d", "torch.nn.modules.upsampling.Upsample", "models.yolo.Detect"}
)
YOLOV5 = YOLOV5_MODELS | YOLOV5_BLOCKS


class Stub:
    """Stands in for an object of a class that edged never imports: keeps its state and does nothing.

    Attributes:
        name: Dotted name that the file gives, on the class.
        state: What the file would have set on the object; None without.
    """

    # No __dict__: a file must not give a stub the attributes by which torch would take it for a storage.
    __slots__ = ("state",)
    name = ""

    def __new__(cls, *_: object) -> Any:
        """An object, or for a defaultdict the dict that torch then fills; arguments are dropped."""
        return {} if cls.name == "collections.defaultdict" else super().__new__(cls)

    def __init__(self, *_: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def stubs(extra_names: Iterable[str] = ()) -> list[tuple[type[Stub], str]]:
    """A stub class for each name of `STUBBED` and of `extra_names`, as torch.serialization.safe_globals takes them."""
    return [(type("Stub", (Stub,), {"name": name, "__slots__": ()}), name) for name in {*STUBBED, *extra_names}]
