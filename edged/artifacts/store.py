"""Published generations of each model on disk, and the link that says which one is live. Imports no torch.

    <root>/<model>/gen/<n>/{weights,warmup}.safetensors, manifest.json, report.json
    <root>/<model>/current  -> gen/<n>      the commit point: one rename over this link
    <root>/<model>/previous -> gen/<m>      where a rollback goes
    <root>/<model>/last                     highest number ever given, so that none is given twice

One process writes; any number read.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_GENERATION = re.compile(r"[1-9][0-9]{0,17}")


class ModelStore:
    """The folder `state_dir/models`.

    Args:
        root: Holds one folder a model; made when the first generation is published.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def publish(self, model: str, staged: Path) -> int:
        """Move a finished artifact under the next generation number; it is not live yet.

        Args:
            model: Model name.
            staged: A folder as `write_artifact` makes it, on the same filesystem. Gone afterwards.

        Returns:
            The generation: one more than any ever given to this model.

        Raises:
            ArtifactError: `staged` holds no manifest.json.
            StateError: The disk is full or the folder cannot be written.
        """
        if not (staged / "manifest.json").is_file():
            raise ArtifactError(f"{staged} holds no manifest.json; publish only what write_artifact made")
        folder = self._model(model)
        with as_state_error(folder):
            self._make_folders(folder)
            fsync_tree(staged)
        generation = self._last(model) + 1
        # First the counter: a crash in between leaves a gap, never a number that means two things.
        write_atomic(folder / "last", f"{generation}\n".encode())
        rename_into_place(staged, self.path(model, generation))
        return generation

    def switch(self, model: str, generation: int) -> None:
        """Make `generation` the current one and remember the one before; does nothing if it is current.

        A crash at any step leaves `current` at the old or the new generation, and repeating the call finishes it.

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
        # `previous` first: after a crash in between, a repeated switch still knows where it came from.
        if before is not None:
            replace_symlink(folder / "previous", f"gen/{before}")
        replace_symlink(folder / "current", f"gen/{generation}")

    def current(self, model: str) -> int | None:
        """The live generation; None before the first switch."""
        return self._target(self._model(model) / "current")

    def previous(self, model: str) -> int | None:
        """The generation that was live before the current one; None if there was none."""
        generation = self._target(self._model(model) / "previous")
        # Equal only after a crash between the two links of a switch.
        return None if generation == self.current(model) else generation

    def path(self, model: str, generation: int) -> Path:
        """The folder of one generation, whether it exists or not."""
        return self._model(model) / "gen" / str(generation)

    def models(self) -> list[str]:
        """All models that were ever published, in order."""
        try:
            names = [entry.name for entry in self.root.iterdir()]
        except FileNotFoundError:
            return []
        return sorted(name for name in names if _MODEL_NAME.fullmatch(name))

    def generations(self, model: str) -> list[int]:
        """All published generations, ascending."""
        try:
            names = [entry.name for entry in (self._model(model) / "gen").iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(name) for name in names if _GENERATION.fullmatch(name))

    def outdated(self, model: str, keep: int) -> list[int]:
        """All generations but the newest `keep`, the current and the previous one, ascending."""
        generations = self.generations(model)
        kept = {*generations[max(0, len(generations) - keep) :], self.current(model), self.previous(model)}
        return [generation for generation in generations if generation not in kept]

    def prune(self, model: str, keep: int) -> list[int]:
        """Remove the generations that `outdated` names.

        Returns:
            The generations removed, ascending.

        Raises:
            StateError: A folder cannot be removed.
        """
        removed = self.outdated(model, keep)
        self.remove(model, removed)
        return removed

    def remove(self, model: str, generations: Sequence[int]) -> None:
        """Remove published generations, and what an earlier removal left behind.

        A link to one of them goes first, so that none leads nowhere. The numbers are not given again.

        Raises:
            StateError: A folder cannot be removed.
        """
        folder = self._model(model) / "gen"
        with as_state_error(folder):
            for name in ("current", "previous"):
                if self._target(link := self._model(model) / name) in generations:
                    link.unlink()
                    fsync_directory(link.parent)
            for generation in generations:
                # Renamed first: half a generation must never be seen under its number.
                path = folder / str(generation)
                path.rename(temporary_sibling(path))
            for leftover in folder.glob(".*.tmp"):  # of this call, or of one that a crash cut short
                shutil.rmtree(leftover)
            if generations:
                fsync_directory(folder)

    def manifest(self, model: str, generation: int) -> dict[str, Any]:
        """manifest.json of one generation, as parsed JSON.

        Raises:
            ArtifactError: It is missing or no JSON object.
        """
        path = self.path(model, generation) / "manifest.json"
        try:
            data = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise ArtifactError(f"cannot read {path}: {error}; publish the checkpoint again") from error
        if not isinstance(data, dict):
            raise ArtifactError(f"{path} holds a {type(data).__name__}, not an object; publish the checkpoint again")
        return data

    def _model(self, model: str) -> Path:
        if not _MODEL_NAME.fullmatch(model):
            raise UsageError(f"model name has value {model!r:.80}; use letters, digits, '.', '_' and '-'")
        return self.root / model

    def _make_folders(self, folder: Path) -> None:
        """Make `folder`/gen and wait until the names of both are on the disk."""
        (folder / "gen").mkdir(parents=True, exist_ok=True)
        fsync_directory(folder)
        fsync_directory(self.root)

    def _last(self, model: str) -> int:
        """The highest generation ever given, 0 for none."""
        counter = self._model(model) / "last"
        try:
            text = counter.read_text().strip()
        except FileNotFoundError:
            text = ""
        recorded = int(text) if _GENERATION.fullmatch(text) else 0
        return max([recorded, *self.generations(model), self.current(model) or 0])

    def _target(self, link: Path) -> int | None:
        """The generation a link names, whether its folder exists or not."""
        try:
            target = link.readlink()
        except FileNotFoundError:
            return None
        except OSError as error:  # not a link
            raise ArtifactError(f"cannot read the link {link}: {error.strerror}; remove it and submit again") from error
        if target.parent.name != "gen" or not _GENERATION.fullmatch(target.name):
            raise ArtifactError(f"the link {link} points to {str(target)!r}, not to gen/<number>; remove it")
        return int(target.name)
