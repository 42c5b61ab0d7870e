"""Heads of several layers as text that a manifest can hold. Imports no torch.

A head is a tuple of layers in order, in the words of `edged.spec.HEAD_LAYERS`. A linear layer has its outputs and
whether it has a bias: "linear:256" or "linear:256:nobias".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from edged.errors import ArchitectureError
from edged.spec import HEAD_LAYERS, IDLE_LAYERS, MAX_HEAD_LAYERS

MAX_OUTPUTS = 100_000
CONCAT_POOL = "concat_pool"
LINEAR = re.compile(r"linear:(\d{1,6})(:nobias)?")


def linear(outputs: int, bias: bool) -> str:
    """Return the description of a linear layer."""
    return f"linear:{outputs}" if bias else f"linear:{outputs}:nobias"


def checked_head(head: Sequence[object], num_classes: int) -> None:
    """Check that a head is one that `edged.models.head.head_of` builds.

    Args:
        head: Layers; empty for one linear layer.
        num_classes: Outputs of the last linear layer.

    Raises:
        ArchitectureError: A layer is unknown, or the outputs are others than the classes.
    """
    known = {*HEAD_LAYERS} - {*IDLE_LAYERS, "linear"}
    widths = []
    for index, layer in enumerate(head):
        match = LINEAR.fullmatch(layer) if isinstance(layer, str) else None
        if match and 1 <= int(match[1]) <= MAX_OUTPUTS:
            widths.append(int(match[1]))
        elif layer not in known or (layer == CONCAT_POOL and index):
            raise ArchitectureError(f"head has the layer {layer!r:.80}, which edged does not know")
    if head and (widths[-1:] != [num_classes] or len(head) > MAX_HEAD_LAYERS):
        raise ArchitectureError(f"head has {widths[-1:]} outputs in {len(head)} layers, for {num_classes} classes")
