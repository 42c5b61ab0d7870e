"""A quantized network that computes as an integer engine does, but in torch."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from edged.device import CPU
from edged.errors import ArtifactError
from edged.execution.biases import with_representable_biases
from edged.execution.build import build_graph
from edged.execution.placement import place_quantized
from edged.execution.quantization import ActivationQuantization
from edged.execution.simulator import Simulator
from edged.quant.grid import QuantizedWeight


class RoundedNetwork(nn.Module):
    """A quantized network whose activations are rounded to their grids.

    Args:
        network: The network with decoded weights, in eval mode on the CPU. Not modified; weights are shared where no
            BatchNorm is folded into them.
        quantized: Its quantized weights by their names in the state dict.
        activations: Ranges of its activations.

    Attributes:
        network: The network, with activations in float.
        placement: The values that are carried as codes.

    Raises:
        ArtifactError: The ranges are not those of the values that are carried as codes.
    """

    def __init__(
        self, network: nn.Module, quantized: Mapping[str, QuantizedWeight], activations: ActivationQuantization
    ) -> None:
        super().__init__()
        self.network = network
        self.placement = place_quantized(build_graph(network, quantized), activations)
        self.use(activations)

    def use(self, activations: ActivationQuantization) -> None:
        """Compute with these ranges from now on.

        Args:
            activations: Ranges for the same placement.

        Raises:
            ArtifactError: The ranges are not those of the values that are carried as codes.
        """
        grids = activations.grids()
        if different := sorted(grids.keys() ^ set(self.placement.values)):
            raise ArtifactError(
                f"the ranges of the activations do not fit the network: {different[0]!r} is not in both;"
                " quantize the checkpoint again"
            )
        self._simulator = Simulator(with_representable_biases(self.placement, grids), grids)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [batch, channels, height, width] to the network's outputs."""
        # The graph stays on the CPU, as the engines do that it stands for.
        return self._simulator.run(images.to(CPU)).to(images.device)
