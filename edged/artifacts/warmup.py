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
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from edged.calibration.images import normalize
from edged.errors import ArtifactError
from edged.execution.executors import TOLERANCE, Executor
from edged.spec import InputSpec

if TYPE_CHECKING:
    from edged.calibration.dataset import ImageCache

Floats = npt.NDArray[np.float32]

MAX_IMAGES = 4
MAX_PIXEL_BYTES = 2 << 20  # of all images; one image of any size is always recorded
MAX_VALUES = 1 << 16  # of the outputs of one image: a detector's raw outputs at 640 pixels have 2 million
# Another engine may round to the next code, and later layers spread that: 2 % on a trained ResNet-18 (measured). Files
# have digests, so what is left to find is an engine that computes something else.
OTHER_ENGINE_TOLERANCE = 0.25


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
        """Whether the same network can have computed both, in the same engine or in float."""
        return self.within(TOLERANCE)

    def within(self, tolerance: float) -> bool:
        """Return whether the outputs differ by no more than `tolerance` of their norm."""
        return self.identical or self.relative_error <= tolerance  # False for NaN


@dataclass(frozen=True)
class Warmup:
    """Warmup images, and the recorded outputs of the network for each image by itself.

    Attributes:
        pixels: Decoded images, uint8 [n, channels, size, size].
        outputs: Recorded outputs, float32 [n, values]: all values of each image's outputs, or MAX_VALUES evenly spaced
            ones.
        digest: SHA-256 over all values of all outputs, in hex.
        threads: Number of threads that computed the outputs.
        engine: Name of the engine that computed them; None in older artifacts.
    """

    pixels: npt.NDArray[np.uint8]
    outputs: Floats
    digest: str
    threads: int
    engine: str | None = None

    def images(self, spec: InputSpec) -> Floats:
        """Return the network inputs, float32 [n, channels, size, size]."""
        return normalize(self.pixels, spec)

    def compare(self, outputs: Sequence[Floats]) -> Comparison:
        """Compare outputs with the recorded ones.

        Args:
            outputs: Outputs of each image, float32 [1, ...], in order. Not modified.
        """
        digest = _digest(outputs)
        kept = _kept(outputs).astype(np.float64)
        recorded = self.outputs.astype(np.float64)
        if kept.shape != recorded.shape:
            return Comparison(False, float("inf"), digest, self.digest)
        error = np.linalg.norm(kept - recorded) / max(np.linalg.norm(recorded), np.finfo(np.float32).tiny)
        return Comparison(digest == self.digest, float(error), digest, self.digest)


def record(executor: Executor, cache: ImageCache) -> Warmup:
    """Record a network's outputs for a few calibration images, computed one by one as in a generation.

    Args:
        executor: Engine with the evaluated network.
        cache: Cache of the calibration images.
    """
    pixels = np.array(cache.images[_choose(cache)])
    outputs = [executor.run(image[None]) for image in normalize(pixels, cache.input)]
    return Warmup(pixels, _kept(outputs), _digest(outputs), executor.threads, executor.name)


def save_warmup(path: Path, warmup: Warmup) -> dict[str, Any]:
    """Write warmup.safetensors, neither atomically nor synced, and return the manifest's entry for it."""
    data = save({"pixels": warmup.pixels, "outputs": warmup.outputs})
    path.write_bytes(data)
    return {
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "images": len(warmup.pixels),
        "outputs_sha256": warmup.digest,
        "threads": warmup.threads,
        "engine": warmup.engine,
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
    if pixels.shape != wanted or pixels.dtype != np.uint8 or len(outputs) != len(pixels) or not len(pixels):
        raise ArtifactError(f"{path} holds {pixels.dtype} {list(pixels.shape)}, not the images {list(wanted)}")
    return Warmup(pixels, outputs, entry["outputs_sha256"], entry["threads"], entry.get("engine"))


def _choose(cache: ImageCache) -> npt.NDArray[np.int64]:
    """Choose the first calibration images, which represent several classes because images are dealt class by class."""
    count = max(1, min(MAX_IMAGES, MAX_PIXEL_BYTES // math.prod(cache.images.shape[1:])))
    chosen: npt.NDArray[np.int64] = cache.calibration[:count].numpy()
    return chosen


def _kept(outputs: Sequence[Floats]) -> Floats:
    flat = np.concatenate([output.reshape(1, -1) for output in outputs])
    total, count = flat.shape[1], min(flat.shape[1], MAX_VALUES)
    return np.ascontiguousarray(flat[:, np.arange(count) * total // max(1, count)])  # as safetensors stores it


def _digest(outputs: Sequence[Floats]) -> str:
    digest = hashlib.sha256()
    for output in outputs:
        digest.update(np.ascontiguousarray(output).data)
    return digest.hexdigest()
