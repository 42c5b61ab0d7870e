"""A few calibration images with the outputs of the evaluated network, which a loaded artifact must reproduce.

    warmup.safetensors    pixels uint8 [n, channels, size, size]; outputs float32 [n, values], see `Warmup`
    manifest.json         "warmup": sha256 and bytes of that file, images, outputs_sha256, threads

A digest alone is not enough: with a different number of threads the same convolution sums in a different order, and
the logits of a ResNet-50 then differ by 5e-7 of their norm (measured). So some of the outputs are stored with it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from edged.calibration.dataset import ImageCache
from edged.calibration.images import normalize
from edged.errors import ArtifactError
from edged.spec import InputSpec

MAX_IMAGES = 4
MAX_PIXEL_BYTES = 2 << 20  # of all images; one image of any size is always recorded
MAX_VALUES = 1 << 16  # of the outputs of one image: a detector's raw outputs at 640 pixels have 2 million
TOLERANCE = 1e-4  # relative: 200 times the effect of threads on a ResNet-50, and less than any error that matters


@dataclass(frozen=True)
class Comparison:
    """A comparison of outputs with the recorded ones.

    Attributes:
        identical: Whether all outputs are bit-identical.
        relative_error: Norm of the difference divided by the norm of the recorded outputs, over the stored values.
        digest: SHA-256 of the outputs, in hex.
        recorded: SHA-256 of the recorded outputs, in hex.
    """

    identical: bool
    relative_error: float
    digest: str
    recorded: str

    @property
    def close(self) -> bool:
        """Whether the same network can have computed both."""
        return self.identical or self.relative_error <= TOLERANCE  # False for NaN


@dataclass(frozen=True)
class Warmup:
    """Warmup images, and the recorded outputs of the network for each image by itself.

    Attributes:
        pixels: Decoded images, uint8 [n, channels, size, size].
        outputs: Recorded outputs, float32 [n, values]: all values of each image's outputs, or MAX_VALUES evenly spaced
            ones.
        digest: SHA-256 over all values of all outputs, in hex.
        threads: Number of torch's threads that computed the outputs.
    """

    pixels: Tensor
    outputs: Tensor
    digest: str
    threads: int

    def images(self, spec: InputSpec) -> Tensor:
        """Return the network inputs, float32 [n, channels, size, size]."""
        return normalize(self.pixels, spec)

    def compare(self, outputs: Sequence[Tensor]) -> Comparison:
        """Compare outputs with the recorded ones.

        Args:
            outputs: Outputs of each image, float32 [1, ...], in order. Not modified.
        """
        digest = _digest(outputs)
        kept = _kept(outputs).double()
        recorded = self.outputs.double()
        if kept.shape != recorded.shape:
            return Comparison(False, float("inf"), digest, self.digest)
        error = (kept - recorded).norm() / recorded.norm().clamp_min(torch.finfo(torch.float32).tiny)
        return Comparison(digest == self.digest, float(error), digest, self.digest)


def record(network: nn.Module, cache: ImageCache) -> Warmup:
    """Record a network's outputs for a few calibration images, computed one by one in channels-last layout.

    A generation computes its outputs in the same way.

    Args:
        network: Evaluated network on the CPU in eval mode. Its memory layout is changed to channels last.
        cache: Cache of the calibration images.
    """
    pixels = torch.from_numpy(cache.images[_choose(cache).numpy()])
    laid_out: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    with torch.inference_mode():
        images = (image[None] for image in normalize(pixels, cache.input))
        outputs = [laid_out(image.contiguous(memory_format=torch.channels_last)).float() for image in images]
    return Warmup(pixels, _kept(outputs), _digest(outputs), torch.get_num_threads())


def save_warmup(path: Path, warmup: Warmup) -> dict[str, Any]:
    """Write warmup.safetensors, neither atomically nor synced, and return the manifest's entry for it."""
    save_file({"pixels": warmup.pixels.contiguous(), "outputs": warmup.outputs.contiguous()}, path)
    data = path.read_bytes()
    return {
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "images": len(warmup.pixels),
        "outputs_sha256": warmup.digest,
        "threads": warmup.threads,
    }


def load_warmup(path: Path, entry: Mapping[str, Any], spec: InputSpec) -> Warmup:
    """Read a file that `save_warmup` wrote.

    Args:
        path: Path of warmup.safetensors.
        entry: Entry of the manifest for the file.
        spec: Input of the network.

    Raises:
        ArtifactError: The file is missing or does not match the manifest.
    """
    try:
        data = path.read_bytes()
        if (found := hashlib.sha256(data).hexdigest()) != entry["sha256"]:
            raise ArtifactError(f"it has sha256 {found[:16]}..., its manifest says {str(entry['sha256'])[:16]}...")
        tensors = load(data)
        pixels, outputs = tensors["pixels"], tensors["outputs"]
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}; quantize the checkpoint again") from error
    except (ArtifactError, SafetensorError, KeyError) as error:
        raise ArtifactError(f"cannot read {path}: {error}; quantize the checkpoint again") from error
    wanted = (entry["images"], spec.channels, spec.size, spec.size)
    if pixels.shape != wanted or pixels.dtype is not torch.uint8 or len(outputs) != len(pixels) or not len(pixels):
        raise ArtifactError(f"{path} holds {pixels.dtype} {list(pixels.shape)}, not the images {list(wanted)}")
    return Warmup(pixels, outputs, entry["outputs_sha256"], entry["threads"])


def _choose(cache: ImageCache) -> Tensor:
    """Choose the first calibration images, which represent several classes because images are dealt class by class."""
    return cache.calibration[: max(1, min(MAX_IMAGES, MAX_PIXEL_BYTES // math.prod(cache.images.shape[1:])))]


def _kept(outputs: Sequence[Tensor]) -> Tensor:
    flat = torch.cat([output.reshape(1, -1) for output in outputs])
    total, count = flat.shape[1], min(flat.shape[1], MAX_VALUES)
    return flat[:, torch.arange(count) * total // max(1, count)].clone()


def _digest(outputs: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for output in outputs:
        digest.update(output.contiguous().numpy().data)
    return digest.hexdigest()
