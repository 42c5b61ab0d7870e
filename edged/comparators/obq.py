"""OBQ (Frantar and Alistarh, arXiv 2208.11580): one weight after another, in an order of each row's own.

The solver is `edged.quant.obq`. Each layer reads its inputs in full precision, as in the paper, and the Hessian is
damped by a hundredth of its mean diagonal.
"""

from __future__ import annotations

from edged.calibration.moments import hessian, moments_for
from edged.comparators.inputs import UnitInputs
from edged.comparators.method import Options, Solution
from edged.comparators.units import Unit
from edged.quant.layer import quantize_layer
from edged.spec import Method, QuantSpec, Search


class Obq:
    """Quantize the weights of each row greedily, and let those that are left make up for the error."""

    blockwise = False
    iterations = 0

    def quantize(self, unit: Unit, inputs: UnitInputs, options: Options) -> Solution:
        """Quantize the layer under the Hessian of its inputs."""
        moments = moments_for(unit.layer)
        for x in inputs.of_full.batches():
            moments.update(x)
        # Search.MSE is the grid of the other comparators.
        spec = QuantSpec(method=Method.OBQ, bits=options.bits, scheme=options.scheme, search=Search.MSE)
        return Solution({unit.name: quantize_layer(unit.layer.weight, hessian(moments), spec).weight})
