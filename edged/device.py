"""Where the work is done: on the CPU, or on a CUDA device if there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edged.errors import DeviceError, UsageError

DEVICES = ("auto", "cpu", "cuda")
CPU = torch.device("cpu")


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" takes CUDA's where there is one.

    Raises:
        DeviceError: "cuda" is asked for, and torch finds none.
        UsageError: There is no such name.
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
    """Where the parameters of `model` lie; the CPU for a model without any."""
    parameter = next(model.parameters(), None)
    return CPU if parameter is None else parameter.device


def device_name(device: torch.device) -> str:
    """For reports: "cpu", or "cuda" with the name that the GPU gives itself."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def moved(host: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`, in its own layout; itself if that is the CPU.

    To CUDA it goes through pinned memory, so that the CPU prepares the next one meanwhile.
    """
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def synchronize(device: torch.device) -> None:
    """Wait until a CUDA device has done all that it was given: a time taken before says nothing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """While entered, CUDA computes with float32 numbers as they are, and the same way every time.

    cuDNN's convolutions round their inputs to the 10 bits of TF32 unless they are told not to, and matrix products do
    where a program has asked for it: a sum of such products is no X X^T, and need not be positive semi-definite.
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
