"""Measure REQuant (arXiv 2510.04044) beside round to nearest and edged's recipes, by top-1 on test images.

Each network is quantized by every method. Requires EDGED_DATA. Usage:

    python -m benchmarks.requant [--networks resnet20,...] [--bits 4 3 2] [--methods requant,...] [--out FILE]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.options import some_of
from benchmarks.quantization.each_network import Page, measure_each_network, network_parser
from benchmarks.quantization.networks import TEST_BATCH, Loaded
from edged.compress import compress
from edged.evaluation.classification import predict, top1_hits
from edged.evaluation.standard_errors import sample_of_hits, standard_error
from edged.spec import recipe

_ALONE = {"name": "fast", "statistics": "none"}  # weights only, as in the paper
_FAST, _BALANCED = {"name": "fast"}, {"name": "balanced"}
_REQUANT = {"method": "requant"}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "rtn minmax": {**_ALONE, "method": "rtn", "search": "minmax"},
    "rtn": {**_ALONE, "method": "rtn"},
    "published": {**_ALONE, **_REQUANT, "search": "golden"},
    "published symmetric": {**_ALONE, **_REQUANT, "search": "golden", "scheme": "symmetric"},
    "published mse": {**_ALONE, **_REQUANT, "search": "mse"},
    "published power": {**_ALONE, **_REQUANT, "search": "golden", "levels": "power"},
    "requant fast mse": {**_FAST, **_REQUANT, "search": "mse"},
    "requant fast weighted": {**_FAST, **_REQUANT, "search": "weighted"},
    "requant fast": {**_FAST, **_REQUANT},
    "requant fast power": {**_FAST, **_REQUANT, "levels": "power"},
    "requant golden": {**_BALANCED, **_REQUANT, "search": "golden"},
    "requant": {**_BALANCED, **_REQUANT},
    "requant power": {**_BALANCED, **_REQUANT, "levels": "power"},
    "fast golden": {**_FAST, "search": "golden"},
    "fast": _FAST,
    "balanced": _BALANCED,
}
REFERENCE = "balanced"
HEADER = ("network", "bits", "method", "top-1 %", f"to {REFERENCE}")


def main() -> None:
    """Print the table, and write it if requested."""
    parser = network_parser(__doc__)
    parser.add_argument("--methods", type=some_of(METHODS, "method"), default=tuple(METHODS))
    options = parser.parse_args()
    page = Page("requant", "REQuant, measured", HEADER, _NOTES)
    measure_each_network(options, page, partial(measured, methods=options.methods))


def measured(loaded: Loaded, bits: int, methods: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the row of each method at one width: top-1 in percent, and its difference to recipe `balanced`.

    Args:
        loaded: The network.
        bits: Bits of each weight.
        methods: Keys of METHODS. The reference is measured in any case, and first.
    """
    reference = _quantized(loaded, bits, **METHODS[REFERENCE])
    yield "full precision", *_cells(_hits(loaded.reference, loaded), reference)
    yield REFERENCE, _cells(reference, reference)[0], ""
    for method in (name for name in methods if name != REFERENCE):
        yield method, *_cells(_quantized(loaded, bits, **METHODS[method]), reference)


def _quantized(loaded: Loaded, bits: int, name: str, **settings: Any) -> list[bool]:
    """Return for each test image whether the quantized network gets it right."""
    done = compress(loaded.model, loaded.calibration, recipe(name, bits=bits, **settings))
    return _hits(predict(done.model, loaded.test, torch.arange(len(loaded.test)), TEST_BATCH), loaded)


def _hits(logits: torch.Tensor, loaded: Loaded) -> list[bool]:
    return top1_hits(logits, loaded.labels)


def _cells(hits: list[bool], reference: list[bool]) -> tuple[str, str]:
    """Return top-1, and its difference to the reference with the standard error of that, in points."""
    top1, other = (100 * sum(each) / len(each) for each in (hits, reference))
    error = standard_error(sample_of_hits(hits), sample_of_hits(reference))
    return f"{top1:.2f}", f"{top1 - other:+.2f} ± {error:.2f}"


_NOTES = """\
Top-1 in percent on the test images, and the difference to `balanced` with its standard error on the same images.
Activations are in float, and grids asymmetric unless a method says otherwise.

- `rtn` rounds to nearest, on the full range (`minmax`) or on that of each row with the least squared error. `published`
  is `--method requant --search golden`, one factor for a layer; `mse` has one for each row. All with `--recipe fast
  --statistics none`: weights only, no images.
- `requant` is `--method requant` as it is, on recipe `balanced` unless it says `fast`: the weights that are rounded
  correct the errors of earlier layers, each range is searched by the error of the outputs, and statistics are matched.
- `power` is `--levels power`.
- `fast golden` is FastOBQ on a range of one factor for a layer (`--search golden`).
"""


if __name__ == "__main__":
    main()
