"""A network that computes with rounded activations, as an integer engine does but in torch."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from edged.execution.build import build_graph
from edged.execution.grids import Grids
from edged.execution.placement import place
from edged.execution.simulator import run_rounded
from edged.quant.grid import QuantizedWeight


class RoundedNetwork(nn.Module):
    """A quantized network whose activations are rounded to their grids.

    Args:
        network: The network with decoded weights, in eval mode on the CPU. Not modified; weights are shared where no
            BatchNorm is folded into them.
        quantized: Its quantized weights by their names in the state dict.
        grids: Grid of each value that is carried as codes.
        float_layers: Names of the weights whose layers compute in float.

    Attributes:
        network: The network, with activations in float.
    """

    def __init__(
        self,
        network: nn.Module,
        quantized: Mapping[str, QuantizedWeight],
        grids: Grids,
        float_layers: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.network = network
        self.placement = place(build_graph(network, quantized), float_layers)
        self.grids = dict(grids)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [batch, channels, height, width] to the network's outputs."""
        return run_rounded(self.placement, self.grids, images)
