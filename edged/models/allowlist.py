"""The classes that a YOLOv5 detector consists of. None is imported: inert data stands for each of them."""

from __future__ import annotations

# Training code of v5.0 to v7.0 saves modules instead of a state dict. The pip package puts `yolov5.` before names.
PACKAGE = "yolov5."
YOLOV5_MODELS = frozenset({"models.yolo.Model", "models.yolo.DetectionModel"})
# Wrapper class -> the attribute that holds the wrapped model.
WRAPPERS = {
    "models.common.AutoShape": "model",
    "models.common.autoShape": "model",
    "models.common.DetectMultiBackend": "model",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
}
ACTIVATIONS = frozenset(f"torch.nn.modules.activation.{name}" for name in ("SiLU", "ReLU", "LeakyReLU", "Hardswish"))
YOLOV5_BLOCKS = ACTIVATIONS | frozenset(
    {f"models.common.{name}" for name in ("Conv", "C3", "Bottleneck", "SPP", "SPPF", "Focus", "Concat")}
    | {f"torch.nn.modules.container.{name}" for name in ("Sequential", "ModuleList")}
    | {"torch.nn.modules.conv.Conv2d", "torch.nn.modules.batchnorm.BatchNorm2d", "torch.nn.modules.linear.Identity"}
    | {"torch.nn.modules.pooling.MaxPool2d", "torch.nn.modules.upsampling.Upsample", "models.yolo.Detect"}
)


def plain_name(name: str) -> str:
    """Return the dotted name of a class without the prefix of the pip package."""
    return name.removeprefix(PACKAGE)
