"""Measure what cross-layer equalization gains before FastOBQ (Nagel et al., arXiv 1906.04721; Lin et al., 2306.00978).

A channel between two convolutions can be divided by any positive factor s in the BatchNorm before it, and multiplied by
it in the weights that read it; ReLU between the two changes nothing. Here, with the root mean square x of the channel's
values and the largest weight w that reads it,

    s = x^a * w^-b,   divided by the geometric mean over channels, and within 1/16 to 16

so b = 1 gives all columns the same range, and a > 0 protects channels with large values. The outputs in full precision
stay the same. Networks are quantized by recipe `balanced`. Requires EDGED_DATA. Usage:

    python -m benchmarks.equalization [--networks resnet20,...] [--bits 4 3 2] [--out docs/equalization.md]
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.quantization.each_network import Page, measure_each_network, network_parser
from benchmarks.quantization.networks import TEST_BATCH, Loaded
from edged.compress import compress
from edged.evaluation.classification import predict
from edged.evaluation.fidelity import squared_error
from edged.models.resnet import BasicBlock, CifarBlock
from edged.spec import recipe

EXPONENTS = ((0.0, 0.0), (0.0, 0.5), (0.5, 0.0), (0.5, 0.5))  # a and b
MOST_FACTOR = 16.0
SAMPLE = 4  # every fourth image
HEADER = ("network", "bits", "a", "b", "top-1 %", "gain", "relative error on the test images")


def main() -> None:
    """Print the table, and write it if requested."""
    page = Page("equalization", "Cross-layer equalization", HEADER, _NOTES)
    measure_each_network(network_parser(__doc__).parse_args(), page, measured)


def measured(loaded: Loaded, bits: int) -> Iterator[tuple[str, ...]]:
    """Yield a row for each pair of exponents; the first one is without equalization."""
    plain: Tensor | None = None
    for a, b in EXPONENTS:
        done = compress(equalized(loaded, a, b), loaded.calibration, recipe("balanced", bits=bits))
        logits = predict(done.model, loaded.test, torch.arange(len(loaded.test)), TEST_BATCH)
        hits = (logits.argmax(1) == loaded.labels).double()
        plain = hits if plain is None else plain
        gain = 100 * (hits - plain)
        error = squared_error(loaded.reference, logits) / squared_error(loaded.reference)
        gained = f"{float(gain.mean()):+.2f} ± {float(gain.std()) / len(gain) ** 0.5:.2f}"
        yield f"{a:g}", f"{b:g}", f"{100 * float(hits.mean()):.2f}", gained if hits is not plain else "", f"{error:.4f}"


def equalized(loaded: Loaded, a: float, b: float) -> nn.Module:
    """Return a copy of the network whose second convolution of each block reads equalized channels."""
    model = copy.deepcopy(loaded.model)
    blocks = [block for block in model.modules() if isinstance(block, CifarBlock | BasicBlock)]
    with torch.inference_mode():
        powers = _powers(model, blocks, loaded)
    with torch.no_grad():
        for block, power in zip(blocks, powers, strict=True):
            width = block.conv2.weight.abs().amax((0, 2, 3)).clamp_min(1e-6)
            factor = power.clone().sqrt().clamp_min(1e-6) ** a * width**-b
            factor = (factor / factor.log().mean().exp()).clamp(1 / MOST_FACTOR, MOST_FACTOR)
            block.bn1.weight.div_(factor)
            block.bn1.bias.div_(factor)
            block.conv2.weight.mul_(factor[:, None, None])
    return model


def _powers(model: nn.Module, blocks: list[CifarBlock | BasicBlock], loaded: Loaded) -> list[Tensor]:
    """Return the mean square of each channel that the second convolution of each block reads."""
    found: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del module, output
        found.append(inputs[0].square().mean((0, 2, 3)))

    hooks = [block.conv2.register_forward_hook(note) for block in blocks]
    model(loaded.calibration.batch(loaded.calibration.calibration[::SAMPLE]))
    for hook in hooks:
        hook.remove()
    return found


_NOTES = """\
The first row of each width is without equalization; gains are in points of top-1 on the test images, with the standard
error of the difference. They differ in sign from network to network and from one pair of exponents to the next, and the
error of the outputs hardly moves: FastOBQ fits each row by the second moments of its inputs, so columns of large inputs
are protected already. Only ResNet-32 at 2 bits gains beyond noise. edged does not equalize.
"""


if __name__ == "__main__":
    main()
