"""Published generations of each model on disk, with a link to the live one. Imports no torch.

    <root>/<model>/gen/<n>/{weights,warmup}.safetensors, manifest.json, report.json
    <root>/<model>/current  -> gen/<n>      the commit point: one rename over this link
    <root>/<model>/previous -> gen/<m>      the target of a rollback
    <root>/<model>/damaged/<n>/{artifact,damage.json}    quarantined generation and the reason
    <root>/<model>/last                     highest number ever assigned, so that no number is reused

One process writes; any number of processes may read.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edged.artifacts.integrity import MANIFEST_DIGEST, DamageError, expected_files, find_damage, manifest_digest_line
from edged.atomic import (
    as_state_error,
    fsync_directory,
    fsync_tree,
    rename_into_place,
    replace_symlink,
    temporary_sibling,
    write_atomic,
)
from edged.errors import ArtifactError, UsageError
from edged.json_document import parse_document

_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
DAMAGE = "damage.json"
_GENERATION = re.compile(r"[1-9][0-9]{0,17}")


class ModelStore:
    """The folder `state_dir/models`.

    Args:
        root: Parent folder of one folder per model; created when the first generation is published.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def reserve(self, model: str) -> int:
        """Return the number of the model's next generation, one higher than any ever assigned, and never again.

        Raises:
            StateError: The disk is full or the folder cannot be written.
        """
        folder = self._model(model)
        with as_state_error(folder):
            self._make_folders(folder)
        generation = self._last(model) + 1
        write_atomic(folder / "last", f"{generation}\n".encode())
        return generation

    def publish(self, model: str, staged: Path, generation: int | None = None) -> int:
        """Move a finished artifact into place under a generation number, without making it live.

        Args:
            model: Name of the model.
            staged: Folder that `write_artifact` wrote on the same filesystem. It is moved away.
            generation: A number that `reserve` returned; None to reserve one.

        Returns:
            The generation number.

        Raises:
            ArtifactError: `staged` has no manifest.json.
            StateError: The disk is full or the folder cannot be written.
        """
        if not (staged / "manifest.json").is_file():
            raise ArtifactError(f"{staged} has no manifest.json; publish a folder that write_artifact wrote")
        if generation is None:  # first: a crash in between leaves a gap, but a number is never used twice
            generation = self.reserve(model)
        with as_state_error(staged):
            line = manifest_digest_line((staged / "manifest.json").read_bytes())
            (staged / MANIFEST_DIGEST).write_bytes(line)
            fsync_tree(staged)
        rename_into_place(staged, self.path(model, generation))
        return generation

    def switch(self, model: str, generation: int) -> None:
        """Make `generation` the current one and the old one the previous; do nothing if it is already current.

        A crash at any step leaves `current` at the old or the new generation, and repeating the call completes it.

        Raises:
            ArtifactError: There is no such generation.
            StateError: The link cannot be written.
        """
        if not self.path(model, generation).is_dir():
            raise ArtifactError(f"model {model!r} has no generation {generation}; it has {self.generations(model)}")
        before = self.current(model)
        if before == generation:
            return
        folder = self._model(model)
        # `previous` comes first, so that a switch that is repeated after a crash in between finds the old generation.
        if before is not None:
            replace_symlink(folder / "previous", f"gen/{before}")
        replace_symlink(folder / "current", f"gen/{generation}")

    def current(self, model: str) -> int | None:
        """Return the live generation; None before the first switch, or if `current` does not name one."""
        return _target(self._model(model) / "current")

    def link_problem(self, model: str) -> str | None:
        """Return why `current` leads to no generation; None if it does, or if the model has none and never had one."""
        link = self._model(model) / "current"
        target = _target(link)
        if target is not None:
            return (
                None if self.path(model, target).is_dir() else f"{link} points to generation {target}, which is missing"
            )
        if link.is_symlink():
            return f"{link} points to {str(link.readlink())!r:.200}, not to gen/<number>"
        if os.path.lexists(link):
            return f"{link} is not a link"
        if self.generations(model) or self.quarantined(model):
            return f"{link} is missing"
        return None

    def restore(self, model: str, generation: int) -> None:
        """Make `generation` the current one, whatever `current` is now; a `previous` that leads nowhere is removed.

        Raises:
            StateError: The link cannot be written.
        """
        folder = self._model(model)
        with as_state_error(folder):
            for name in ("current", "previous"):
                link = folder / name
                if os.path.lexists(link) and not link.is_symlink():
                    aside = self.quarantine_folder(model)
                    aside.mkdir(exist_ok=True)
                    link.rename(temporary_sibling(aside / name).with_suffix(".found"))
            replace_symlink(folder / "current", f"gen/{generation}")
            previous = _target(folder / "previous")
            if previous is None or previous == generation or not self.path(model, previous).is_dir():
                (folder / "previous").unlink(missing_ok=True)
                fsync_directory(folder)

    def damage(self, model: str, generation: int, *, derived: bool = False) -> str | None:
        """Return what is damaged in a generation, all its files read once, see `find_damage`; None if it is whole."""
        return find_damage(self.path(model, generation), derived=derived)

    def quarantine(self, model: str, generation: int, record: Mapping[str, Any]) -> None:
        """Move a damaged generation to damaged/<number>/artifact, and write `record` next to it.

        The record alone is written if the generation is missing. One that was written before stays.

        Args:
            model: Name of the model.
            generation: Number of the generation.
            record: Contents of damage.json, JSON types.

        Raises:
            StateError: The folder cannot be moved or written.
        """
        source, target = self.path(model, generation), self.quarantine_folder(model) / str(generation)
        with as_state_error(target):
            target.mkdir(parents=True, exist_ok=True)
            if not (target / DAMAGE).exists():
                write_atomic(target / DAMAGE, (json.dumps(record, indent=2) + "\n").encode())
            if os.path.lexists(source):
                place = target / "artifact"
                source.rename(temporary_sibling(place) if os.path.lexists(place) else place)
                fsync_directory(source.parent)
            fsync_directory(target)
            fsync_directory(target.parent)

    def quarantined(self, model: str) -> dict[int, dict[str, Any]]:
        """Return the records of all quarantined generations by number, ascending; {} for one that cannot be read."""
        try:
            names = [entry.name for entry in self.quarantine_folder(model).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return {}
        numbers = sorted(int(name) for name in names if _GENERATION.fullmatch(name))
        return {number: self._record(model, number) for number in numbers}

    def _record(self, model: str, generation: int) -> dict[str, Any]:
        try:
            return parse_document((self.quarantine_folder(model) / str(generation) / DAMAGE).read_bytes())
        except (OSError, ValueError):
            return {}

    def previous(self, model: str) -> int | None:
        """Return the generation that was live before the current one, or None if there was none."""
        generation = _target(self._model(model) / "previous")
        # The two are equal only after a crash between the two links of a switch.
        return None if generation == self.current(model) else generation

    def path(self, model: str, generation: int) -> Path:
        """Return the folder of a generation, whether it exists or not."""
        return self._model(model) / "gen" / str(generation)

    def quarantine_folder(self, model: str) -> Path:
        """Return the folder of the damaged generations of a model, whether it exists or not."""
        return self._model(model) / "damaged"

    def models(self) -> list[str]:
        """Return all models that were ever published, sorted by name."""
        try:
            names = [entry.name for entry in self.root.iterdir()]
        except FileNotFoundError:
            return []
        return sorted(name for name in names if _MODEL_NAME.fullmatch(name))

    def generations(self, model: str) -> list[int]:
        """Return all published generations, ascending."""
        try:
            names = [entry.name for entry in (self._model(model) / "gen").iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(name) for name in names if _GENERATION.fullmatch(name))

    def outdated(self, model: str, keep: int) -> list[int]:
        """Return all generations except the newest `keep`, the current and the previous one, ascending."""
        generations = self.generations(model)
        kept = {*generations[max(0, len(generations) - keep) :], self.current(model), self.previous(model)}
        return [generation for generation in generations if generation not in kept]

    def prune(self, model: str, keep: int) -> list[int]:
        """Remove the generations that `outdated` returns.

        Returns:
            The removed generations, ascending.

        Raises:
            StateError: A folder cannot be removed.
        """
        removed = self.outdated(model, keep)
        self.remove(model, removed)
        return removed

    def remove(self, model: str, generations: Sequence[int]) -> None:
        """Remove published generations, and the leftovers of interrupted removals.

        A link to one of them is removed first, so that no link is dangling. The numbers are not reused.

        Raises:
            StateError: A folder cannot be removed.
        """
        folder = self._model(model) / "gen"
        with as_state_error(folder):
            for name in ("current", "previous"):
                if _target(link := self._model(model) / name) in generations:
                    link.unlink()
                    fsync_directory(link.parent)
            for generation in generations:
                # Renamed first, so that a partial generation never appears under its number.
                path = folder / str(generation)
                path.rename(temporary_sibling(path))
            for leftover in folder.glob(".*.tmp"):  # of this call or of an interrupted one
                shutil.rmtree(leftover)
            if generations:
                fsync_directory(folder)

    def manifest(self, model: str, generation: int) -> dict[str, Any]:
        """Read manifest.json of a generation as parsed JSON.

        Raises:
            ArtifactError: The file is missing or not a JSON object.
        """
        path = self.path(model, generation) / "manifest.json"
        try:
            return parse_document(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ArtifactError(f"cannot read {path}: {error!s:.200}; publish the checkpoint again") from error

    def require_whole(self, model: str, generation: int) -> None:
        """Check that a generation has the files that serving needs, in their sizes. Digests are checked when they load.

        Raises:
            ArtifactError: A file is missing or has another size.
        """
        try:
            for file in expected_files(self.path(model, generation)):
                if not file.derived:  # it is written again from the codes
                    file.check_size()
        except DamageError as error:
            raise ArtifactError(f"{error}; choose another generation") from error

    def _model(self, model: str) -> Path:
        if not _MODEL_NAME.fullmatch(model):
            raise UsageError(f"model name has value {model!r:.80}; use letters, digits, '.', '_' and '-'")
        return self.root / model

    def _make_folders(self, folder: Path) -> None:
        """Create `folder`/gen and wait until the directory entries of both are on the disk."""
        (folder / "gen").mkdir(parents=True, exist_ok=True)
        fsync_directory(folder)
        fsync_directory(self.root)

    def _last(self, model: str) -> int:
        """Return the highest generation number ever assigned, 0 for none."""
        counter = self._model(model) / "last"
        try:
            text = counter.read_text(errors="replace").strip()
        except OSError:  # there is none, or it is damaged: the generations tell, too
            text = ""
        recorded = int(text) if _GENERATION.fullmatch(text) else 0
        known = (*self.generations(model), *self.quarantined(model), self.current(model) or 0)
        return max(recorded, *known)


def _target(link: Path) -> int | None:
    """Return the generation that a link names, whether its folder exists or not; None if it names none."""
    try:
        target = link.readlink()
    except OSError:  # there is none, or it is a file or a folder
        return None
    inside = os.path.normpath(link.parent / target.parent) == os.path.normpath(link.parent / "gen")
    return int(target.name) if inside and _GENERATION.fullmatch(target.name) else None
