"""`python -m edged.pipeline.rebuild ARTIFACT`: write an artifact's model.onnx again from its codes.

It is a process of its own, because it takes torch and hundreds of MB, and a process that serves has neither.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from edged.artifacts.manifest import ONNX
from edged.artifacts.reader import read_artifact
from edged.atomic import write_atomic
from edged.errors import ArtifactError, EdgedError
from edged.pipeline.export import to_served_onnx


def rebuild(directory: Path) -> None:
    """Write an artifact's model.onnx again from its codes, if that gives what was judged, bit for bit.

    Args:
        directory: Folder of the artifact.

    Raises:
        ArtifactError: The artifact has no such file, or another version of edged or of onnx has made it.
        StateError: The folder cannot be written.
    """
    artifact = read_artifact(directory)
    if artifact.manifest.onnx is None:
        raise ArtifactError(f"{directory} has no {ONNX}, so there is nothing to write again")
    data = to_served_onnx(artifact)
    if hashlib.sha256(data).hexdigest() != artifact.manifest.onnx["sha256"]:
        raise ArtifactError(
            f"its codes give other bytes than {directory / ONNX} had, because another version of edged or of onnx wrote"
            " it; quantize the checkpoint again"
        )
    write_atomic(directory / ONNX, data)


if __name__ == "__main__":
    try:
        rebuild(Path(sys.argv[1]))
    except EdgedError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
