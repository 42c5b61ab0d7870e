"""Folders that are copied into a model's folder: which file of a whole training run is taken. Pure but for `scan_run`.

A run is a folder as training code leaves it: weights/best.pt and weights/last.pt next to results.csv and plots, or the
checkpoints of Lightning. One file of it is taken; a note in the folder says which, so that the next best one is not
taken after it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from edged.atomic import write_atomic
from edged.json_document import parse_document
from edged.signing.verification import SUFFIX as SIGNATURE_SUFFIX
from service.intake.content import named
from service.intake.drop_folder import SIDECAR_SUFFIX, fingerprint_of, is_ignored
from service.intake.stability import Fingerprint
from service.units import printable

NOTE = ".edged-taken.json"

_MAX_FILES = 5000
_MAX_DEPTH = 4
# What trainers write next to the weights under the suffix of a checkpoint.
_BESIDE_WEIGHTS = (
    *("optimizer", "optim", "scheduler", "scaler", "rng_state", "random_states", "sampler", "dl_state"),
    *("custom_checkpoint", "training_args", "trainer_state"),
)
# Names under which transformers saves the same weights in two formats; the first that is there is taken.
_SAME_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Run:
    """A folder inside a model's folder.

    Attributes:
        model: Model that it was dropped for.
        path: Path of the folder.
        files: Fingerprints of its files by relative path, "/" between the parts.
        sidecars: Names of the checksum files anywhere in it.
        complete: Whether `files` has all of them; folders of very many files are not searched.
        taken: The note of the file that was taken before; None if there is none.
        signatures: Fingerprints of the signature files in it by relative path.
    """

    model: str
    path: Path
    files: Mapping[str, Fingerprint]
    sidecars: frozenset[str] = frozenset()
    complete: bool = True
    taken: Mapping[str, Any] | None = None
    signatures: Mapping[str, Fingerprint | None] = field(default_factory=dict)

    @property
    def fingerprint(self) -> Fingerprint:
        """A fingerprint of all files: it changes with each of them."""
        newest = max((file.mtime_ns for file in self.files.values()), default=0)
        identity = hash(tuple(sorted((name, file) for name, file in self.files.items())))
        return Fingerprint(sum(file.size for file in self.files.values()), newest, identity, 0)


@dataclass(frozen=True)
class Choice:
    """What is taken of a run.

    Attributes:
        name: Relative path of the file that is taken; None if none is.
        reason: Why the folder, or the rest of it, stays where it is.
    """

    name: str | None
    reason: str


def scan_run(model: str, path: Path) -> Run:
    """List the files of a folder, without following links.

    Args:
        model: Model that the folder was dropped for.
        path: Path of the folder.
    """
    files: dict[str, Fingerprint] = {}
    sidecars: set[str] = set()
    signatures: dict[str, Fingerprint | None] = {}
    folders, complete = [(path, 0)], True
    while folders and complete:
        folder, depth = folders.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:  # gone again, or not ours to read
            continue
        signatures |= _signatures(path, entries)
        for entry in entries:
            if entry.name.endswith(SIDECAR_SUFFIX):
                sidecars.add(entry.name)
            if is_ignored(entry.name):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISDIR(status.st_mode):
                if depth < _MAX_DEPTH:
                    folders.append((Path(entry.path), depth + 1))
            elif stat.S_ISREG(status.st_mode):
                files[Path(entry.path).relative_to(path).as_posix()] = Fingerprint.of(status)
        complete = len(files) <= _MAX_FILES
    return Run(model, path, files, frozenset(sidecars), complete, _read_note(path), signatures)


def _signatures(run: Path, entries: Sequence[os.DirEntry[str]]) -> dict[str, Fingerprint | None]:
    paths = [Path(entry.path) for entry in entries if entry.name.endswith(SIGNATURE_SUFFIX)]
    return {path.relative_to(run).as_posix(): fingerprint_of(path) for path in paths}


def choose(run: Run) -> Choice:
    """Choose the file of a run that is taken: the only one named best, else the only checkpoint, in any format."""
    folder = printable(run.path.name)
    if not run.complete:
        return Choice(None, f"it has more than {_MAX_FILES} files; move its checkpoint out of it")
    checkpoints = [name for name in run.files if _is_weights(name)]
    taken = _still_taken(run)
    if taken is not None:
        rest = "the rest is left where it is; remove the folder when you do not need it"
        return Choice(None, f"{printable(taken)} of it was taken; {rest}")
    best = [name for name in checkpoints if "best" in PurePosixPath(name).name.lower()]
    exactly = [name for name in best if PurePosixPath(name).stem.lower() == "best"]
    twice = [name for name in _SAME_WEIGHTS if name in checkpoints]
    alike = twice[:1] if set(checkpoints) == set(twice) else []
    chosen = exactly or best or alike or checkpoints
    if len(chosen) == 1:
        return Choice(chosen[0], f"{printable(chosen[0])} is taken of it")
    if not chosen:
        return Choice(None, f"it has no checkpoint; drop one into {printable(run.path.parent.name)}/")
    listed = ", ".join(map(printable, sorted(chosen)[:3])) + (", ..." if len(chosen) > 3 else "")
    what = "checkpoints named best" if best else "checkpoints and none is named best"
    return Choice(None, f"{folder} has {len(chosen)} {what} ({listed}); move the one to take out of the folder")


def note_taken(run: Path, name: str, file: Fingerprint, sha256: str) -> None:
    """Write down which file of a run was taken, before it is removed.

    Args:
        run: Path of the folder.
        name: Relative path of the file that was taken.
        file: Its fingerprint when it was found.
        sha256: SHA-256 of its contents in hex.

    Raises:
        StateError: The folder cannot be written.
    """
    note = {"file": name, "sha256": sha256, "size": file.size, "mtime_ns": file.mtime_ns, "inode": file.inode}
    write_atomic(run / NOTE, (json.dumps(note, indent=2) + "\n").encode())


def _still_taken(run: Run) -> str | None:
    """Return the name in the note, unless another file has that name by now."""
    if run.taken is None or not isinstance(name := run.taken.get("file"), str):
        return None
    file = run.files.get(name)
    if file is None or all(run.taken.get(key) == getattr(file, key) for key in ("size", "mtime_ns", "inode")):
        return name
    return None


def _is_weights(name: str) -> bool:
    path = PurePosixPath(name)
    return named(path.name) and not path.name.lower().startswith(_BESIDE_WEIGHTS)


def _read_note(path: Path) -> Mapping[str, Any] | None:
    try:
        return parse_document((path / NOTE).read_bytes())
    except (OSError, ValueError):
        return None
