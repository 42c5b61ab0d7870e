"""Measure time and memory of quantizing ResNets at 224 px, as multiples of one forward pass over the same images.

The forward pass is torch's own: eager, contiguous tensors, batches of 16, in the same process with the same threads,
right after quantizing. Quantizing includes calibration, solve and statistics; neither includes decoding images. Each
measurement runs in a process of its own, so that peaks of memory are separate. Usage:

    python -m benchmarks.quantize [--networks resnet18 resnet50] [--recipes fast balanced] [--images 1024]
    python -m benchmarks.quantize --scaling      # seconds by number of images, and by width
    python -m benchmarks.quantize --device cuda  # synchronizes after each timed part, which takes some speed
    python -m benchmarks.quantize --activation-bits 8 --networks resnet18 yolov5n --recipes balanced

With `--activation-bits` each measurement is made with activations in float and with quantized ones in turn, and
medians of time, CPU time and peak memory are compared.

Images come from EDGED_DATA/imagenette if it has enough of them; otherwise they are generated. yolov5n is the one of
EDGED_DATA, on EDGED_DATA/coco at 640 px.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import edged.compress
import edged.engine.layerwise
from benchmarks.options import add_device, parser_of
from benchmarks.quantization.networks import data_root
from edged.calibration.dataset import ImageCache, build_cache
from edged.device import choose_device, device_of, exact_float32, moved, synchronize
from edged.engine.activations import ActivationStore
from edged.engine.images import AugmentedImages
from edged.memory import device_peak_bytes, present_bytes
from edged.models.architecture import TORCHVISION
from edged.models.checkpoint import read_checkpoint
from edged.models.graph import Program
from edged.models.registry import load_model, recognize
from edged.models.resnet import BLOCKS, ResNet
from edged.spec import InputSpec, recipe
from service.system.processes import FEW_KERNELS, FEW_SPINS, child_environment

FORWARD_BATCH = 16
# Parts that are timed, as (owner, function, label); the time of a nested part counts only for that part.
PARTS = [
    (edged.engine.layerwise._CutSums, "update", "moments"),
    (Program, "run", "forward"),
    (AugmentedImages, "batch", "images"),
    (ActivationStore, "put", "keep"),
    (ActivationStore, "get", "keep"),
    (edged.engine.layerwise, "hessian", "solve"),
    (edged.engine.layerwise, "quantize_layer", "solve"),
    (edged.compress, "predict", "held-out"),
]


def main() -> None:
    """Print the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--recipes", nargs="+", default=["fast", "balanced"])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--activation-bits", type=int, choices=[8], help="compare with activations in float")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each that --activation-bits compares")
    add_device(parser)
    parser.add_argument("--child", metavar="JSON", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(**json.loads(options.child))))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.scaling:
            scale(Path(folder), options.recipes, options.device)
            return
        if options.activation_bits:
            compare(folder, options)
            return
        print(f"{options.device}, {torch.get_num_threads()} threads, {options.images} images at 224 px, W4")
        for network in options.networks:
            for name in options.recipes:
                show(apart(network, name, options.images, folder, options.device))


def scale(folder: Path, recipes: list[str], device: str) -> None:
    """Print seconds by number of images, then by width at a fixed number of images."""
    for name in recipes:
        for images in (256, 512, 1024, 2048):
            show(apart("resnet18", name, images, str(folder), device))
        for network in ("resnet18", "resnet50", "resnet101"):
            show(apart(network, name, 512, str(folder), device))


def compare(folder: str, options: argparse.Namespace) -> None:
    """Print what quantized activations add to time and memory."""
    print(f"{options.device}, {torch.get_num_threads()} threads, W4, medians of {options.repeats}")
    for network in options.networks:
        for name in options.recipes:
            runs: dict[int | None, list[dict[str, Any]]] = {None: [], options.activation_bits: []}
            for _ in range(options.repeats):
                for bits, results in runs.items():
                    results.append(apart(network, name, options.images, folder, options.device, bits, passes=0))
            print(difference(network, name, *runs.values()), flush=True)


def difference(network: str, name: str, plain: list[dict[str, Any]], rounded: list[dict[str, Any]]) -> str:
    """Return a line about measurements with activations in float and with quantized ones."""

    def medians(key: str) -> tuple[float, float]:
        first, second = (statistics.median(result[key] for result in results) for results in (plain, rounded))
        return first, second

    seconds, cpu, peak = medians("seconds"), medians("cpu"), medians("peak")
    return (
        f"{network:9} {name:8} {plain[0]['images']:5} images: {seconds[1] / seconds[0]:.2f} times the seconds"
        f" ({seconds[0]:.1f} -> {seconds[1]:.1f}), {cpu[1] / cpu[0]:.2f} times the CPU time"
        f" ({cpu[0]:.1f} -> {cpu[1]:.1f}),"
        f" {(peak[1] - peak[0]) / (1 << 20):+.0f} MiB at the peak ({peak[0] / (1 << 20):.0f} MiB without)"
    )


def apart(
    network: str,
    recipe_name: str,
    images: int,
    folder: str,
    device: str,
    activation_bits: int | None = None,
    passes: int = 2,
) -> dict[str, Any]:
    """Run `measure` in a fresh process and return its result."""
    job = json.dumps(
        {
            "network": network,
            "recipe_name": recipe_name,
            "images": images,
            "folder": folder,
            "device_name": device,
            "activation_bits": activation_bits,
            "passes": passes,
        }
    )
    command = [sys.executable, "-m", "benchmarks.quantization.quantize", "--child", job]
    environment = child_environment(None, kernels=FEW_KERNELS, spins=FEW_SPINS)  # the environment of `edged quantize`
    environment.pop("PYTHONSAFEPATH")  # this module is not installed
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(
    network: str,
    recipe_name: str,
    images: int,
    folder: str,
    device_name: str,
    activation_bits: int | None,
    passes: int,
) -> dict[str, Any]:
    """Quantize once, run some forward passes, and return time and memory."""
    device = choose_device(device_name)
    torch.manual_seed(0)
    model, cache = _network(network, Path(folder), images)
    model = model.to(device)
    seconds: Counter[str] = Counter()
    _time_parts(seconds, device)
    before_bytes, cpu, start = present_bytes(device), time.process_time(), time.perf_counter()
    done = edged.compress.compress(model, cache, recipe(recipe_name, activation_bits=activation_bits))
    total, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = device_peak_bytes(device)
    model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stub lacks it
    forward = [_forward_seconds(model, cache) for _ in range(passes)]
    return {
        "network": network,
        "recipe": recipe_name,
        "images": len(cache),
        "seconds": total,
        "cpu": cpu,
        "forward": statistics.fmean(forward) if forward else None,
        "parts": dict(seconds),
        "added": peak - before_bytes,
        "peak": peak,
        "planned": done.plan.peak_bytes,
    }


def show(result: dict[str, Any]) -> None:
    """Print a line of results and a line with the share of each part."""
    ratio = result["seconds"] / result["forward"]
    print(
        f"{result['network']:9} {result['recipe']:8} {result['images']:5} images: {result['seconds']:6.1f} s ="
        f" {ratio:.2f} forward passes of {result['forward']:.1f} s; peak {result['peak'] >> 20} MiB,"
        f" planned {result['planned'] >> 20}, added {result['added'] >> 20}"
    )
    shares = sorted(((100 * s / result["seconds"], label) for label, s in result["parts"].items()), reverse=True)
    print(f"{'':9} {', '.join(f'{label} {share:.0f} %' for share, label in shares)}", flush=True)


def _forward_seconds(model: torch.nn.Module, cache: ImageCache) -> float:
    device = device_of(model)
    with torch.inference_mode(), exact_float32(device):
        model(moved(cache.batch(torch.arange(FORWARD_BATCH)), device))
        synchronize(device)
        start = time.perf_counter()
        for batch in cache.batches(torch.arange(len(cache)), FORWARD_BATCH):
            model(moved(batch, device))
        synchronize(device)
    return time.perf_counter() - start


def _time_parts(seconds: Counter[str], device: torch.device) -> None:
    inner: list[float] = []

    def timed(call: Callable[..., Any], label: str) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            inner.append(0.0)
            try:
                return call(*args, **kwargs)
            finally:
                synchronize(device)
                spent = time.perf_counter() - start
                seconds[label] += spent - inner.pop()
                if inner:
                    inner[-1] += spent

        return wrapper

    for owner, name, label in PARTS:
        setattr(owner, name, timed(getattr(owner, name), label))


def _network(name: str, folder: Path, images: int) -> tuple[torch.nn.Module, ImageCache]:
    """Return a ResNet with random weights, or a detector of EDGED_DATA, and its images."""
    if name in TORCHVISION:
        block, layout = TORCHVISION[name]
        return ResNet(BLOCKS[block], layout).eval(), _cache(folder, images)
    root = data_root()
    checkpoint = read_checkpoint(root / "weights" / f"{name}.pt")
    architecture = recognize(checkpoint.state, None, checkpoint.plan)
    photos = build_cache(root / "coco" / "calib", folder / "cache", architecture.default_input, limit=images)
    return load_model(checkpoint.state, architecture), photos


def _cache(folder: Path, images: int) -> ImageCache:
    data = os.environ.get("EDGED_DATA")
    photos = Path(data) / "imagenette" / "calib" if data else None
    if photos is None or sum(1 for _ in photos.rglob("*.JPEG")) < images:
        photos = folder / "made"
        _make_photos(photos, images)
    return build_cache(photos, folder / "cache", InputSpec(), limit=images)


def _make_photos(folder: Path, count: int) -> None:
    """Write smooth random images, whose neighboring pixels are similar as in photos."""
    folder.mkdir(exist_ok=True)
    for index in range(len(list(folder.iterdir())), count):
        coarse = np.random.default_rng(index).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{index:05}.jpg")


if __name__ == "__main__":
    main()
