"""REQuant (arXiv 2510.04044): rounding to nearest in a range of least squared error, found by golden-section search.

As published: one share of the full range for a layer, and no images. The search is in `edged.quant.requant`.
"""

from __future__ import annotations

from edged.comparators.inputs import UnitInputs
from edged.comparators.method import Options, Solution
from edged.comparators.units import Unit
from edged.quant.requant import estimated_grid
from edged.spec import Method, QuantSpec, Search


class Requant:
    """Round each weight to the nearest value of a grid whose range was searched; read no images."""

    blockwise = False
    iterations = 0

    def quantize(self, unit: Unit, inputs: UnitInputs, options: Options) -> Solution:
        """Round the weight of the layer."""
        weight = unit.layer.weight.detach()
        W = weight.flatten(1)
        spec = QuantSpec(method=Method.REQUANT, bits=options.bits, scheme=options.scheme, search=Search.GOLDEN)
        grid = estimated_grid(W, W.new_empty(0, 0), spec)  # this search reads no Hessian
        return Solution({unit.name: grid.quantized(grid.encode(W), tuple(weight.shape))})
