"""Measure REQuant (arXiv 2510.04044) beside round to nearest and edged's recipes, by top-1 on test images.

Each network is quantized by every method. Requires EDGED_DATA. Usage:

    python -m benchmarks.requant [--networks resnet20,...] [--bits 4 3 2] [--out FILE]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from benchmarks.quantization.each_network import Page, measure_each_network
from benchmarks.quantization.networks import TEST_BATCH, Loaded
from edged.compress import compress
from edged.evaluation.classification import predict
from edged.spec import recipe

_ALONE = {"name": "fast", "statistics": "none"}  # weights only, as in the paper
METHODS: Mapping[str, Mapping[str, Any]] = {
    "rtn, full range": {**_ALONE, "method": "rtn", "search": "minmax"},
    "rtn": {**_ALONE, "method": "rtn"},
    "published": {**_ALONE, "method": "requant", "search": "golden"},
    "published, power": {**_ALONE, "method": "requant", "search": "golden", "levels": "power"},
    "requant, fast": {"name": "fast", "method": "requant"},
    "requant, fast, power": {"name": "fast", "method": "requant", "levels": "power"},
    "requant": {"name": "balanced", "method": "requant"},
    "requant, power": {"name": "balanced", "method": "requant", "levels": "power"},
    "fast, golden": {"name": "fast", "search": "golden"},
    "fast": {"name": "fast"},
    "balanced": {"name": "balanced"},
}
HEADER = ("network", "bits", "full precision", *METHODS)


def main() -> None:
    """Print the table, and write it if requested."""
    measure_each_network(__doc__, Page("requant", "REQuant, measured", HEADER, _NOTES), measured)


def measured(loaded: Loaded, bits: int) -> Iterator[tuple[str, ...]]:
    """Yield the row of one width: top-1 in percent in full precision, and of each method."""
    yield _top1(loaded.reference, loaded), *(_quantized(loaded, bits, **settings) for settings in METHODS.values())


def _quantized(loaded: Loaded, bits: int, name: str, **settings: Any) -> str:
    done = compress(loaded.model, loaded.calibration, recipe(name, bits=bits, **settings))
    return _top1(predict(done.model, loaded.test, torch.arange(len(loaded.test)), TEST_BATCH), loaded)


def _top1(logits: torch.Tensor, loaded: Loaded) -> str:
    return f"{100 * float((logits.argmax(1) == loaded.labels).double().mean()):.2f}"


_NOTES = """\
Top-1 in percent on the test images; activations are in float, and all grids asymmetric.

- `rtn` rounds to nearest, on the full range or on that with the least squared error. `published` is `--method requant
  --search golden`. Both with `--recipe fast --statistics none`: weights only, no images.
- `requant` is `--method requant` as it is, on recipe `balanced` unless it says `fast`: the weights that are rounded
  correct the errors of earlier layers, each range is searched by the error of the outputs, and statistics are matched.
- `power` is `--levels power`.
- `fast, golden` is FastOBQ on a range of one factor for a layer (`--search golden`).
"""


if __name__ == "__main__":
    main()
