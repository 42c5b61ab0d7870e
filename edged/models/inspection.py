"""Describe what edged sees in a checkpoint file, without quantizing it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edged.models.architecture import Architecture
from edged.models.checkpoint import MAX_FILE_BYTES, Checkpoint, shown_name
from edged.models.loading import errors_named, read_network
from edged.models.readings import assumptions
from edged.models.registry import load_model
from edged.spec import IMAGE_MODES, Choice
from edged.spelling import one_line

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of BatchNorm: buffers, not parameters
_SHOWN = 20  # names of tensors that were left out, and of classes


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint file holds.

    Attributes:
        checkpoint: The checked contents of the file.
        architecture: Architecture of its network.
        choice: What the user said of the file.
    """

    checkpoint: Checkpoint
    architecture: Architecture
    choice: Choice = field(default_factory=Choice)

    @property
    def assumptions(self) -> list[str]:
        """The assumptions that edged makes because neither the tensors nor the user determine them."""
        assumed = [*assumptions(self.architecture, self.choice), *self.checkpoint.assumed]
        channels = self.architecture.in_channels
        if channels not in (1, 3) and self.architecture.plan is None:
            assumed.append(
                f"images have {IMAGE_MODES[channels]} channels; input needs mean and std of {channels} values"
            )
        elif self.architecture.plan is None:
            assumed.append("images are normalized with the mean and std of ImageNet")
        return assumed

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes that the file holds; None if it holds none, or several that fit."""
        names = self.checkpoint.names_of(self.architecture.num_classes)
        return None if names is None else list(names)

    def to_dict(self) -> dict[str, Any]:
        """Return the inspection as plain JSON types."""
        checkpoint, architecture = self.checkpoint, self.architecture
        spec, known = architecture.default_input, architecture.default_input.channels == architecture.in_channels
        return {
            "format": checkpoint.format,
            "bytes": checkpoint.file_bytes,
            "sha256": checkpoint.sha256,
            "key": checkpoint.key,
            "prefix": checkpoint.prefix,
            "weights": "averaged" if checkpoint.averaged else "last",
            "dtypes": list(checkpoint.dtypes),
            "architecture": architecture.name,
            "task": architecture.task,
            "classes": architecture.num_classes,
            "class_names": self.class_names,
            "stem": architecture.stem,
            "stem_pooling": architecture.pools_stem if architecture.plan is None else None,
            "stride_in": architecture.stride_in if architecture.has_bottlenecks else None,
            "head": list(architecture.head),
            "shortcut": architecture.shortcut,
            "in_channels": architecture.in_channels,
            "activation": None if architecture.plan is None else architecture.plan.activation,
            "input": {
                "size": spec.size,
                "resize": spec.resize,
                "mean": list(spec.mean) if known else None,
                "std": list(spec.std) if known else None,
            },
            "parameters": sum(t.numel() for name, t in checkpoint.state.items() if not name.endswith(_STATISTICS)),
            "left_out": list(checkpoint.left_out),
            "assumptions": self.assumptions,
        }

    def lines(self) -> list[tuple[str, str]]:
        """Return the inspection in readable form, as pairs of a label and a text."""
        data = self.to_dict()
        names = [one_line(name) for name in data["class_names"] or []]
        shown = f" ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})" if names else ""
        place = f"key {data['key']!a}" if data["key"] else "at the top of the file"
        left_out = [one_line(name) for name in data["left_out"]]
        mean, std = (data["input"][key] or "to be given" for key in ("mean", "std"))
        more = f" and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
        return [
            ("format", f"{data['format']}, {data['bytes']:,} bytes, sha256 {data['sha256']}"),
            ("state dict", f"{place}, prefix {data['prefix']!a}" if data["prefix"] else place),
            ("weights", f"{data['weights']}, stored as {', '.join(data['dtypes'])}"),
            ("architecture", f"{data['architecture']}, {data['parameters']:,} parameters"),
            ("classes", f"{data['classes']}{shown}"),
            *([("stem", data["stem"])] if self.architecture.plan is None else []),
            ("input", f"{data['input']['size']} pixels, {data['in_channels']} channels, mean {mean}, std {std}"),
            *([("head", ", ".join(data["head"]))] if data["head"] else []),
            *[("assumed", text) for text in data["assumptions"]],
            *([("left out", f"{', '.join(left_out[:_SHOWN])}{more}")] if left_out else []),
        ]


def inspect_checkpoint(
    path: Path, arch: str | None = None, choice: Choice | None = None, *, max_bytes: int = MAX_FILE_BYTES
) -> Inspection:
    """Read a checkpoint file and recognize its network; nothing is quantized.

    Args:
        path: The file.
        arch: Name of the architecture that the user expects; None to recognize it.
        choice: Which network to take where the file holds several, and what its tensors do not tell; None looks for
            the one that fits, and takes what is usual.
        max_bytes: Limit on the file's size.

    Raises:
        CheckpointError: The file is no checkpoint that edged reads.
        ArchitectureError: The tensors fit no supported network, or not `arch`.
        AccessError: The file may not be read.
    """
    with errors_named(path, shown_name(path)):
        checkpoint, architecture = read_network(path, arch, choice, max_bytes)
        load_model(checkpoint.state, architecture)
    return Inspection(checkpoint, architecture, choice or Choice())
