"""Compare layer Hessians with unfold + matmul, for every layer shape of ResNet-18, ResNet-50 and YOLOv5s.

Three methods get the same images in the same order and are timed in turns: unfolding, edged's sums in floats, and what
edged uses, which sums integers where the processor is faster with these. The results are ratios of the best of several
runs, including the assembly of the matrix. Usage:
python -m benchmarks.quantization.hessian [--images 32] [--repeats 3] [--device auto|cpu|cuda]
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.options import add_device, parser_of
from edged.calibration.geometry import conv_columns, is_same_3x3, padded
from edged.calibration.moments import moments_for
from edged.device import choose_device, device_name, exact_float32, synchronize
from edged.models.registry import Architecture, build

BATCH = 8


@dataclass(frozen=True)
class Shape:
    """A convolution and the size of its input. A linear layer is a 1x1 convolution on one pixel."""

    channels: int
    kernel: int
    stride: int
    side: int

    def layer(self) -> nn.Conv2d:
        """Return such a convolution, with one output channel because outputs are not needed."""
        padding = (self.kernel - 1) // 2
        return nn.Conv2d(self.channels, 1, self.kernel, self.stride, padding, bias=False).requires_grad_(False)


def resnet_shapes(name: str) -> Counter[Shape]:
    """Count the layer shapes of a ResNet at 224 px."""
    model = build(Architecture(name, 1000)).to("meta")
    shapes: Counter[Shape] = Counter()

    def record(module: nn.Module, args: tuple[Tensor]) -> None:
        if isinstance(module, nn.Conv2d):
            shapes[Shape(module.in_channels, module.kernel_size[0], module.stride[0], args[0].shape[-1])] += 1
        else:
            shapes[Shape(args[0].shape[-1], 1, 1, 1)] += 1

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_pre_hook(record)
    with torch.device("meta"):
        model(torch.empty(1, 3, 224, 224))
    return shapes


def yolov5s_shapes() -> Counter[Shape]:
    """Count the layer shapes of YOLOv5s (v6.0-v7.0) at 640 px."""
    shapes: Counter[Shape] = Counter()

    def c3(channels_in: int, channels_out: int, repeats: int, side: int) -> None:
        hidden = channels_out // 2
        shapes[Shape(channels_in, 1, 1, side)] += 2
        shapes[Shape(hidden, 1, 1, side)] += repeats
        shapes[Shape(hidden, 3, 1, side)] += repeats
        shapes[Shape(2 * hidden, 1, 1, side)] += 1

    shapes[Shape(3, 6, 2, 640)] += 1
    for channels, side in ((32, 320), (64, 160), (128, 80), (256, 40), (128, 80), (256, 40)):
        shapes[Shape(channels, 3, 2, side)] += 1
    for arguments in ((64, 64, 1, 160), (128, 128, 2, 80), (256, 256, 3, 40), (512, 512, 1, 20)):
        c3(*arguments)
    for arguments in ((512, 256, 1, 40), (256, 128, 1, 80), (256, 256, 1, 40), (512, 512, 1, 20)):
        c3(*arguments)
    for channels, side in ((512, 20), (1024, 20), (512, 20), (256, 40), (128, 80), (256, 40), (512, 20)):
        shapes[Shape(channels, 1, 1, side)] += 1
    return shapes


def unfolded(layer: nn.Conv2d, batches: list[Tensor]) -> Tensor:
    """Return the Gram matrix [d, d] of all patches, computed by unfolding."""
    width = layer.weight[0].numel()
    total = torch.zeros(width, width, device=batches[0].device)
    for x in batches:
        columns = conv_columns(layer, padded(layer, x))[0]
        total.addmm_(columns, columns.t())
    return total


def ours(layer: nn.Conv2d, batches: list[Tensor], *, integers: bool | None = None) -> Tensor:
    """Return the same Gram matrix, computed by edged."""
    moments = moments_for(layer, integers=integers)
    for x in batches:
        moments.update(x)
    return moments.take_gram()[0]


def seconds(call: Callable[[], Tensor]) -> float:
    """Return the wall time of one call in seconds."""
    start = time.perf_counter()
    synchronize(call().device)
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    add_device(parser)
    options = parser.parse_args()
    device = choose_device(options.device)
    threads, images = torch.get_num_threads(), options.images
    print(f"{device_name(device)}, {threads} threads, {images} images in batches of {BATCH}, float32")
    heads = f"{'unfold ms':>10} {'float ms':>9} {'ours ms':>9} {'ratio':>6} {'rel. error':>10}"
    print(f"{'network':10} {'layer':>22} {'count':>5} {heads}")
    networks = {
        "resnet18": resnet_shapes("resnet18"),
        "resnet50": resnet_shapes("resnet50"),
        "yolov5s": yolov5s_shapes(),
    }
    for network, shapes in networks.items():
        sums = {"3x3 stride 1": [0.0, 0.0, 0.0], "all": [0.0, 0.0, 0.0]}
        slower = []
        for shape, count in shapes.items():
            with exact_float32(device):
                times = measure(network, shape, count, options.images, options.repeats, device)
            for key in ["all"] + ["3x3 stride 1"] * is_same_3x3(shape.layer()):
                sums[key] = [total + count * taken for total, taken in zip(sums[key], times, strict=True)]
            if times[2] > 1.05 * min(times):
                slower.append(shape)
        for key, times in sums.items():
            print(f"{network:10} {key:>22} {'':5} {row(times)}")
        print(f"{network:10} layers slower than another method by more than 5 %: {slower or 'none'}")


def measure(network: str, shape: Shape, count: int, images: int, repeats: int, device: torch.device) -> list[float]:
    """Time one shape with all methods in turns, print its row, and return the seconds (unfold, in floats, ours)."""
    layer = shape.layer().to(device)
    batches = [
        torch.randn(BATCH, shape.channels, shape.side, shape.side).to(device, memory_format=torch.channels_last).relu_()
        for _ in range(images // BATCH)
    ]
    calls = [
        partial(unfolded, layer, batches),
        partial(ours, layer, batches, integers=False),
        partial(ours, layer, batches),
    ]
    expected, _, found = (call().double() for call in calls)
    error = float((found - expected).norm() / expected.norm())
    times = [[seconds(call) for call in calls] for _ in range(repeats)]
    least = [min(column) for column in zip(*times, strict=True)]
    name = f"{shape.channels} {shape.kernel}x{shape.kernel}/{shape.stride} {shape.side}^2"
    print(f"{network:10} {name:>22} {count:5} {row(least)} {error:10.1e}")
    return least


def row(times: Sequence[float]) -> str:
    """Return the cells of the times in seconds (unfold, in floats, ours), and the ratio of the first to the last."""
    usual, floats, our = times
    return f"{1e3 * usual:10.1f} {1e3 * floats:9.1f} {1e3 * our:9.1f} {usual / our:6.2f}"


if __name__ == "__main__":
    main()
