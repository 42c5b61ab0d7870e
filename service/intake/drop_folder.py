"""Scans of the drop folder: drop/<model>/<file>, or drop/<file> if there is only one model."""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edged.signing.verification import SUFFIX as SIGNATURE_SUFFIX
from edged.signing.verification import signature_of
from service.intake.stability import Fingerprint
from service.intake.temporaries import temporary_in, temporary_of
from service.units import format_bytes

SIDECAR_SUFFIX = ".sha256"

# What browsers, editors, rsync, Syncthing and the like write before they rename: .name.XXXXXX, .~tmp~/,
# .syncthing.*.tmp, ~syncthing~*. Compared in lower case.
_IGNORED = (
    ".*",
    "~syncthing~*",
    "*~",
    "*.part",
    "*.partial",
    "*.filepart",
    "*.tmp",
    "*.temp",
    "*.crdownload",
    "*.download",
    "*.swp",
    "*.rejected",
    f"*{SIDECAR_SUFFIX}",
    f"*{SIGNATURE_SUFFIX}",
)


def is_ignored(name: str) -> bool:
    """Return whether a name is that of a temporary file of another program, or of a checksum or a signature."""
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in _IGNORED)


def sidecar_of(path: Path) -> Path:
    """Return the path of the checksum file of `path`: NAME.sha256 next to it."""
    return path.with_name(path.name + SIDECAR_SUFFIX)


def fingerprint_of(path: Path) -> Fingerprint | None:
    """Return the fingerprint of a file, of a link itself; None if it does not exist."""
    try:
        return Fingerprint.of(path.lstat())
    except OSError:  # gone again
        return None


def write_sidecar(path: Path, sha256: str) -> None:
    """Write the checksum file of `path`, as sha256sum does.

    Args:
        path: Path of the file itself, which need not exist yet.
        sha256: Digest of its contents, hex.

    Raises:
        OSError: The folder cannot be written.
    """
    write_beside(sidecar_of(path), f"{sha256}  ".encode() + os.fsencode(path.name) + b"\n")


def write_beside(path: Path, data: bytes) -> None:
    """Write a small file of the drop folder, such as a checksum or a signature, in one step.

    Raises:
        OSError: The folder cannot be written.
    """
    temporary = temporary_in(path.parent)
    try:
        temporary.write_bytes(data)
        temporary.chmod(0o644)  # the daemon may run as another user
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Candidate:
    """A file that may be a checkpoint.

    Attributes:
        model: Model that it was dropped for.
        path: Path in the drop folder.
        fingerprint: Size, times and inode of the file.
        sidecar: Whether a checksum file is next to it.
        signature: Fingerprint of the signature file next to it; None if there is none.
    """

    model: str
    path: Path
    fingerprint: Fingerprint
    sidecar: bool
    signature: Fingerprint | None = None


@dataclass(frozen=True)
class Refusal:
    """An entry of the drop folder that is rejected without reading it.

    Attributes:
        model: Model that it was dropped for; "" if that is unknown.
        path: Path in the drop folder, where the entry stays.
        size: Size in bytes.
        code: "too_large", "not_a_file" or "no_model".
        reason: What to do, in one line.
    """

    model: str
    path: Path
    size: int
    code: str
    reason: str


@dataclass
class Scan:
    """The result of a scan of the drop folder.

    Attributes:
        candidates: Files that may be checkpoints, in the order of their last change.
        refusals: Entries that are rejected.
        folders: Folders in the drop folder that belong to no model (""), and those in the folder of a model.
        missing: Folders that do not exist or cannot be read.
        signatures: Signature files, with the models that they were dropped for.
        temporaries: Files that edged itself writes, or wrote until it was killed.
    """

    candidates: list[Candidate] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    folders: list[tuple[str, Path]] = field(default_factory=list)
    missing: list[Path] = field(default_factory=list)
    signatures: list[tuple[str, Path]] = field(default_factory=list)
    temporaries: dict[Path, Fingerprint] = field(default_factory=dict)


class DropFolder:
    """The drop folder.

    Args:
        root: Path of the drop folder.
        models: Names of the models, each of which has a folder in `root`.
        max_bytes: Largest size of a file in bytes.
    """

    def __init__(self, root: Path, models: Sequence[str], max_bytes: int) -> None:
        self.root = root
        self.models = tuple(models)
        self._max_bytes = max_bytes

    @property
    def folders(self) -> list[Path]:
        """All folders that are scanned."""
        return [self.root, *(self.root / model for model in self.models)]

    def make(self) -> None:
        """Create the missing folders.

        Raises:
            OSError: A folder cannot be created, or the folder around the root does not exist.
        """
        for folder in self.folders:
            folder.mkdir(exist_ok=True)

    def scan(self) -> Scan:
        """Scan all folders."""
        scan = Scan()
        owner = self.models[0] if len(self.models) == 1 else ""
        for folder, model in [(self.root, owner), *((self.root / model, model) for model in self.models)]:
            try:
                names = {path.name for path in folder.iterdir()}
            except OSError:
                scan.missing.append(folder)
                continue
            scan.signatures += [(model, folder / name) for name in names if name.endswith(SIGNATURE_SUFFIX)]
            temporaries = {folder / name: temporary_of(folder / name) for name in names}
            scan.temporaries |= {path: known for path, known in temporaries.items() if known is not None}
            for found in self._look(folder, model, names):
                if isinstance(found, Candidate):
                    scan.candidates.append(found)
                elif isinstance(found, Refusal):
                    scan.refusals.append(found)
                elif folder != self.root:
                    scan.folders.append((model, found))
                elif found.name not in self.models:
                    scan.folders.append(("", found))
        scan.candidates.sort(key=lambda candidate: candidate.fingerprint.mtime_ns)
        return scan

    def _look(self, folder: Path, model: str, names: set[str]) -> Iterator[Candidate | Refusal | Path]:
        for name in sorted(names):
            path = folder / name
            if is_ignored(name):
                continue
            try:
                status = path.lstat()
            except OSError:  # gone again
                continue
            if stat.S_ISDIR(status.st_mode):
                yield path
                continue
            refused = self._refusal(status, model)
            if refused is not None:
                yield Refusal(model, path, status.st_size, *refused)
            else:
                signature = fingerprint_of(signature_of(path)) if name + SIGNATURE_SUFFIX in names else None
                yield Candidate(model, path, Fingerprint.of(status), name + SIDECAR_SUFFIX in names, signature)

    def _refusal(self, status: os.stat_result, model: str) -> tuple[str, str] | None:
        if not model:
            return "no_model", f"drop it into a model's folder: {', '.join(self.models)}"
        if not stat.S_ISREG(status.st_mode):
            # Followed, a link could make the daemon read what the one who dropped it may not.
            return "not_a_file", "it is a link, a pipe or a device; drop the file itself"
        if status.st_size > self._max_bytes:
            size, limit = format_bytes(status.st_size), format_bytes(self._max_bytes)
            return "too_large", f"it has {size}, watch.max_bytes is {limit}; drop a smaller file or raise the limit"
        return None
