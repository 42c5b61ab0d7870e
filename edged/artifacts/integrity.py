"""Check of an artifact's files against the digests of its manifest. Imports neither torch nor numpy.

    manifest.json      names the digests of weights, warm-up images and ONNX model
    manifest.sha256    digest of manifest.json itself, as sha256sum writes it; older generations have none

Only what serving needs is checked: reports and pictures may be missing or damaged.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.artifacts.digest import sha256_file
from edged.artifacts.manifest import ONNX
from edged.errors import ArtifactError
from edged.json_document import MALFORMED

MANIFEST = "manifest.json"
MANIFEST_DIGEST = "manifest.sha256"
_FILES = {"weights": "weights.safetensors", "warmup": "warmup.safetensors", "onnx": ONNX}
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHOWN = 16  # hex digits of a digest in a message


class DamageError(ArtifactError):
    """A file of an artifact is missing, or is not what its manifest says."""


@dataclass(frozen=True)
class ExpectedFile:
    """A file of an artifact as its manifest describes it.

    Attributes:
        path: Path of the file.
        sha256: SHA-256 of its contents, in hex.
        bytes: Size in bytes.
        derived: Whether it can be written again from the other files: the ONNX model follows from the codes.
    """

    path: Path
    sha256: str
    bytes: int
    derived: bool = False

    def check_size(self) -> None:
        """Check that the file is there and has its size.

        Raises:
            DamageError: It is missing or has another size.
        """
        try:
            found = self.path.stat().st_size
        except OSError as error:
            raise DamageError(f"cannot read {self.path}: {error.strerror}") from error
        if found != self.bytes:
            raise DamageError(f"{self.path} has {found} bytes, its manifest says {self.bytes}")

    def check_digest(self, found: str) -> None:
        """Compare a digest of the file's contents with the expected one.

        Raises:
            DamageError: They differ.
        """
        if found != self.sha256:
            raise DamageError(
                f"{self.path} has sha256 {found[:_SHOWN]}..., its manifest says {self.sha256[:_SHOWN]}..."
            )


def manifest_digest_line(manifest: bytes) -> bytes:
    """Return the contents of manifest.sha256 for the contents of manifest.json."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def check_manifest_digest(directory: Path) -> None:
    """Compare manifest.json with manifest.sha256, if there is one that holds a digest.

    Raises:
        DamageError: The manifest cannot be read, or has another digest.
    """
    try:
        recorded = _DIGEST.match((directory / MANIFEST_DIGEST).read_text(errors="replace"))
    except OSError:  # a generation of an older version of edged
        return
    path = directory / MANIFEST
    try:
        found = sha256_file(path)
    except OSError as error:
        raise DamageError(f"cannot read {path}: {error.strerror}") from error
    if recorded is not None and found != recorded[0]:
        raise DamageError(f"{path} has sha256 {found[:_SHOWN]}..., {MANIFEST_DIGEST} says {recorded[0][:_SHOWN]}...")


def expected_files(directory: Path) -> list[ExpectedFile]:
    """Return the files of an artifact that serving needs, as its manifest describes them.

    Raises:
        DamageError: The folder or its manifest is missing, or the manifest does not say.
    """
    path = directory / MANIFEST
    if not directory.is_dir():
        raise DamageError(f"{directory} is missing")
    try:
        data = json.loads(path.read_bytes())
        return [_expected(directory, data, key, name) for key, name in _FILES.items() if data.get(key) is not None]
    except OSError as error:
        raise DamageError(f"cannot read {path}: {error.strerror}") from error
    except MALFORMED as error:
        raise DamageError(f"{path} is no manifest: {error!r:.200}") from error


def _expected(directory: Path, data: dict[str, Any], key: str, name: str) -> ExpectedFile:
    entry = data[key]
    return ExpectedFile(directory / name, str(entry["sha256"]), int(entry["bytes"]), derived=key == "onnx")


def find_damage(directory: Path, *, derived: bool = False) -> str | None:
    """Return what is damaged in an artifact, all files read once; None if it is whole.

    Args:
        directory: Folder of the artifact.
        derived: Whether the ONNX model is checked, too, which a generation writes again from the codes if it can.
    """
    try:
        check_manifest_digest(directory)
        files = expected_files(directory)
        if not any(file.path.name == _FILES["weights"] for file in files):
            raise DamageError(f"{directory / MANIFEST} names no weights")
        for file in files:
            if derived or not file.derived:
                file.check_size()
                file.check_digest(_digest(file))
    except DamageError as error:
        return str(error)
    return None


def _digest(file: ExpectedFile) -> str:
    try:
        return sha256_file(file.path)
    except OSError as error:
        raise DamageError(f"cannot read {file.path}: {error.strerror}") from error
