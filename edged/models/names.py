"""The networks that edged knows by name, and what follows from a name. Imports no torch: the supervisor reads it."""

from __future__ import annotations

from collections.abc import Mapping

from edged.spec import InputSpec

# Name -> (kind of block, blocks per stage). A bottleneck block has a third convolution.
TORCHVISION: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}
CIFAR: Mapping[str, int] = {f"cifar_resnet{6 * blocks + 2}": blocks for blocks in (3, 5, 7, 9, 18)}
# Size of a YOLOv5 -> depth and width multiples.
MULTIPLES: Mapping[str, tuple[float, float]] = {
    "n": (0.33, 0.25),
    "s": (0.33, 0.50),
    "m": (0.67, 0.75),
    "l": (1.0, 1.0),
    "x": (1.33, 1.25),
}
SIZES = (*MULTIPLES, *(f"{size}6" for size in MULTIPLES))  # sizes with a 6 have four levels, the others three
# Detector -> its largest stride in pixels; None for `yolov5`, whose rows are not those of a published size.
LARGEST_STRIDES: Mapping[str, int | None] = {
    "yolov5": None,
    **{f"yolov5{size}": 64 if size.endswith("6") else 32 for size in SIZES},
}
CLASSIFIERS = (*TORCHVISION, *CIFAR)
DETECTORS = tuple(LARGEST_STRIDES)
ARCHITECTURES = (*CLASSIFIERS, *DETECTORS)


def detector_side(largest_stride: int = 32) -> int:
    """Return the default side of a detector's square input, in pixels: 640, or 1280 for a largest stride of 64 on."""
    return 640 if largest_stride < 64 else 1280


def default_input(name: str) -> InputSpec:
    """Return the default input of an architecture, as far as it follows from the name.

    Args:
        name: One of ARCHITECTURES.
    """
    if name in DETECTORS:
        return InputSpec.letterbox(detector_side(LARGEST_STRIDES[name] or 32))
    return InputSpec(32, 32) if name in CIFAR else InputSpec()
