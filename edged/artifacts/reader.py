"""Reading of an artifact folder, with a check that it is complete and undamaged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edged.artifacts.digest import sha256_file
from edged.artifacts.integrity import DamageError, check_manifest_digest
from edged.artifacts.manifest import Manifest
from edged.artifacts.warmup import Warmup, load_warmup
from edged.errors import ArtifactError, EdgedError, UsageError
from edged.execution.quantization import ActivationQuantization
from edged.json_document import MALFORMED, parse_document
from edged.models.architecture import Architecture
from edged.spec import DetectionSpec, InputSpec
from edged.spelling import one_line

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Artifact:
    """A quantized model on disk, whose weights match the manifest.

    Attributes:
        directory: Folder of the artifact with links resolved, so that a switch of `current` does not change it.
        manifest: Parsed manifest.json.
        report: Parsed report.json; empty if it is missing or damaged, because nothing that is computed needs it.
        architecture: Architecture of the network.
        input: Preprocessing of images for the network.
        detection: Thresholds of a detector; None for a classifier.
        activations: Ranges of the activations; None if these are floats in service.
    """

    directory: Path
    manifest: Manifest
    report: dict[str, Any]
    architecture: Architecture
    input: InputSpec
    detection: DetectionSpec | None
    activations: ActivationQuantization | None = None

    def load_model(self) -> nn.Module:
        """Build the network in eval mode with decoded float32 weights, bit-identical to the evaluated ones.

        If the activations are quantized, the network rounds them to their codes, as integer engines do.

        Raises:
            ArtifactError: The weights cannot be read, or the ranges of the activations do not fit the network.
            ArchitectureError: The weights do not fit the architecture.
        """
        # torch, which a generation that another engine computes does not import
        from edged.artifacts.weights import decoded_state, load_weights
        from edged.execution.rounded import RoundedNetwork
        from edged.models.registry import load_model

        path = self.directory / "weights.safetensors"
        network = load_model(decoded_state(path), self.architecture)
        if self.activations is None:
            return network
        quantized, _ = load_weights(path)
        try:
            return RoundedNetwork(network, quantized, self.activations).eval()
        except UsageError as error:  # a range in the manifest that no network has
            raise ArtifactError(f"{self.directory}: {one_line(str(error))}; quantize the checkpoint again") from error

    def load_warmup(self) -> Warmup | None:
        """Load the warmup images and their recorded outputs, or None if the artifact has none.

        Raises:
            ArtifactError: The warmup file is missing, damaged or does not match the manifest.
        """
        entry = self.manifest.warmup
        return None if entry is None else load_warmup(self.directory / "warmup.safetensors", entry, self.input)


def read_artifact(directory: str | Path) -> Artifact:
    """Open an artifact folder; all weights are read once to check their SHA-256.

    Args:
        directory: The folder; a symbolic link is resolved once.

    Returns:
        The artifact; `load_model` of it gives the network with decoded weights.

    Raises:
        ArtifactError: A file is missing or does not match the manifest.
    """
    directory = Path(directory).resolve()
    manifest = _manifest(directory / "manifest.json")
    weights = directory / "weights.safetensors"
    try:
        found = sha256_file(weights)
        # A newer version of edged may have written an architecture or a setting that this one does not support.
        architecture = Architecture.from_dict(dict(manifest.architecture))
        spec = InputSpec.from_dict(manifest.input)
        detection = None if manifest.detection is None else DetectionSpec.from_dict(manifest.detection)
        _check_task(manifest, architecture)
        ranges = manifest.activations
        if (manifest.serve or {}).get("precision") == "float":
            ranges = None
        activations = None if ranges is None else ActivationQuantization.from_dict(ranges)
    except EdgedError as error:
        raise ArtifactError(f"{directory}: {one_line(str(error))}") from error
    except OSError as error:
        raise ArtifactError(f"cannot read {error.filename}: {error.strerror}; quantize the checkpoint again") from error
    except MALFORMED as error:
        raise ArtifactError(f"cannot read {directory}: {error!r:.200}; quantize the checkpoint again") from error
    if found != manifest.weights["sha256"]:
        raise ArtifactError(
            f"{weights} has sha256 {found[:16]}..., its manifest says"
            f" {one_line(str(manifest.weights['sha256'])[:16])}...; quantize the checkpoint again"
        )
    return Artifact(directory, manifest, _report(directory / "report.json"), architecture, spec, detection, activations)


def _check_task(manifest: Manifest, architecture: Architecture) -> None:
    if manifest.task != architecture.task:
        raise ArtifactError(f"the manifest's task is {manifest.task}, its architecture's {architecture.task}")
    names = None if architecture.plan is None else architecture.plan.names
    if names is not None and manifest.classes != names:
        raise ArtifactError("the manifest's classes are not those of its detector")


def _report(path: Path) -> dict[str, Any]:
    try:
        return parse_document(path.read_bytes())
    except (OSError, ValueError):
        return {}


def _manifest(path: Path) -> Manifest:
    try:
        check_manifest_digest(path.parent)
        return Manifest.from_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path.parent} is not an artifact: {path.name}: {error.strerror}") from error
    except DamageError as error:
        raise ArtifactError(f"{error}; quantize the checkpoint again") from error
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
