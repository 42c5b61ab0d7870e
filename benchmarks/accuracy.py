"""Accuracy of every recipe on real networks: CIFAR ResNet-20/32/56 and a ResNet-18 on imagenette.

Needs EDGED_DATA with weights/, cifar10/ and imagenette/. Prints a line per network, width and recipe: top-1 on the test
images, agreement with full precision, relative layer loss (mean over layers) and seconds. Usage:

    python -m benchmarks.accuracy [--bits 4 3 2] [--recipes rtn fast balanced best paper] [--networks resnet20 ...]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from edged.calibration.dataset import ImageCache, build_cache
from edged.compress import compress
from edged.evaluation.classification import accuracy, predict
from edged.evaluation.fidelity import fidelity
from edged.models.checkpoint import load_checkpoint
from edged.models.registry import load_model, recognize
from edged.spec import RECIPES, InputSpec, QuantSpec, recipe

CALIBRATION_IMAGES = 1024


@dataclass(frozen=True)
class Network:
    """A checkpoint with its images."""

    file: str
    calibration: str
    test: str
    input: InputSpec


NETWORKS = {
    "resnet20": Network("resnet20-12fca82f.th", "cifar10/calib", "cifar10/test", InputSpec(32, 32)),
    "resnet32": Network("resnet32-d509ac18.th", "cifar10/calib", "cifar10/test", InputSpec(32, 32)),
    "resnet56": Network("resnet56-4bfd9763.th", "cifar10/calib", "cifar10/test", InputSpec(32, 32)),
    "resnet18": Network("resnet18-imagenette.pth", "imagenette/calib", "imagenette/val", InputSpec(128, 144)),
}


@dataclass(frozen=True)
class Loaded:
    """A network ready to be quantized and measured."""

    model: nn.Module
    calibration: ImageCache
    test: ImageCache
    reference: Tensor


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--recipes", nargs="+", choices=["rtn", *RECIPES], default=["rtn", *RECIPES])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    options = parser.parse_args()
    root = os.environ.get("EDGED_DATA")
    if not root:
        sys.exit("set EDGED_DATA to the folder that holds weights/, cifar10/ and imagenette/")
    print(f"{torch.get_num_threads()} threads, {CALIBRATION_IMAGES} images, a tenth of them held out")
    print("| network | bits | recipe | top-1 % | drop | agreement % | layer loss | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as cache_root:
        for name in options.networks:
            loaded = load(NETWORKS[name], Path(root), Path(cache_root))
            for bits in options.bits:
                for label in options.recipes:
                    measure(name, loaded, bits, label)


def load(network: Network, root: Path, cache_root: Path) -> Loaded:
    """Checkpoint and images."""
    state = load_checkpoint(root / "weights" / network.file).state
    model = load_model(state, recognize(state)).to(memory_format=torch.channels_last)
    calibration = build_cache(root / network.calibration, cache_root, network.input, limit=CALIBRATION_IMAGES)
    test = build_cache(root / network.test, cache_root, network.input)
    return Loaded(model, calibration, test, predict(model, test, torch.arange(len(test)), batch_size=128))


def measure(name: str, loaded: Loaded, bits: int, label: str) -> None:
    """Quantize once and print a line."""
    start = time.perf_counter()
    done = compress(loaded.model, loaded.calibration, spec_of(label, bits))
    seconds = time.perf_counter() - start
    logits = predict(done.model, loaded.test, torch.arange(len(loaded.test)), batch_size=128)
    labels = loaded.test.labels
    if labels is None:
        sys.exit(f"the test images of {name} have no class folders")
    before, after = accuracy(loaded.reference, labels).top1, accuracy(logits, labels).top1
    agreement = fidelity(loaded.reference, logits).agreement
    loss = sum(layer.relative_loss for layer in done.layers) / len(done.layers)
    print(
        f"| {name} | {bits} | {label} | {after:.2f} | {before - after:+.2f} | {agreement:.2f} | {loss:.2e} |"
        f" {seconds:.1f} |",
        flush=True,
    )


def spec_of(label: str, bits: int) -> QuantSpec:
    """A recipe, or plain rounding to nearest with nothing else."""
    if label == "rtn":
        return recipe("fast", method="rtn", statistics="none", bits=bits)
    return recipe(label, bits=bits)


if __name__ == "__main__":
    main()
