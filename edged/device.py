"""Selection and use of the device: the CPU, or a CUDA device if available."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edged.errors import DeviceError, UsageError

DEVICES = ("auto", "cpu", "cuda")
CPU = torch.device("cpu")


def choose_device(name: str) -> torch.device:
    """Return the device of this name; "auto" chooses CUDA if available, else the CPU.

    Raises:
        DeviceError: `name` is "cuda", and torch finds no GPU that it can use.
        UsageError: `name` is not in DEVICES.
    """
    if name not in DEVICES:
        raise UsageError(f"device has value {name!r}; choose auto, cpu or cuda")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return CPU
    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            raise DeviceError(
                f"device has value 'cuda', and torch {torch.__version__} is built without CUDA;"
                " install a build with it, or choose cpu or auto"
            )
        raise DeviceError(
            f"device has value 'cuda', and torch {torch.__version__} for CUDA {torch.version.cuda} finds no GPU that it"
            " can use; check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES, or choose cpu or auto"
        )
    return torch.device("cuda", torch.cuda.current_device())


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the parameters of `model`; the CPU for a model without parameters."""
    parameter = next(model.parameters(), None)
    return CPU if parameter is None else parameter.device


def on_cpu(model: nn.Module) -> nn.Module:
    """Return the model itself if it is on the CPU, or a copy there."""
    return model if device_of(model) == CPU else copy.deepcopy(model).to(CPU)


def device_name(device: torch.device) -> str:
    """Return the device's name for reports: "cpu", or "cuda" with the name of the GPU."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def moved(host: Tensor, device: torch.device) -> Tensor:
    """Move a CPU tensor to `device`, keeping its layout; return the same tensor if that is the CPU.

    A copy to CUDA uses pinned memory, so that the CPU can prepare the next tensor meanwhile.
    """
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def synchronize(device: torch.device) -> None:
    """Wait until a CUDA device has finished all queued work, without which measured times are meaningless."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Make CUDA compute in full float32 precision and deterministically within the block.

    By default cuDNN's convolutions round their inputs to the 10 bits of TF32, and matrix products do so if the program
    enabled it. A sum of such products is not X X^T and need not be positive semi-definite.
    """
    if device.type != "cuda":
        yield
        return
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before, products.allow_tf32 = products.allow_tf32, False
    try:
        with cudnn.flags(enabled=cudnn.enabled, deterministic=True, allow_tf32=False):
            yield
    finally:
        products.allow_tf32 = before
