"""What stays in the drop folder because edged does not take it, or not yet: entries, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.spelling import names_to_choose
from service.intake.content import recognize
from service.intake.drop_folder import Candidate, DropFolder, Scan
from service.intake.run_folder import choose, scan_run
from service.units import printable

KINDS = ("file", "folder")


@dataclass(frozen=True)
class Unclaimed:
    """An entry of the drop folder that is not taken.

    Attributes:
        path: Path of the file or folder.
        kind: One of KINDS.
        reason: Why, and what to do, in one line.
    """

    path: Path
    kind: str
    reason: str

    def to_dict(self, root: Path, since: float) -> dict[str, Any]:
        """Return plain JSON types.

        Args:
            root: The drop folder; the path starts with its name.
            since: When the entry was first seen, seconds since 1970.
        """
        path = printable(str(self.path.relative_to(root.parent)))
        return {"path": path, "kind": self.kind, "reason": self.reason, "since": since}


def no_checkpoint(path: Path) -> Unclaimed:
    """Return the entry of a file that is no checkpoint by its name and its first bytes."""
    reason = "it is no checkpoint, by its name and its first bytes; move it out of the drop folder"
    return Unclaimed(path, "file", reason)


def refused(scan: Scan, models: Sequence[str]) -> Iterator[Unclaimed]:
    """Yield what a scan found and does not take.

    Args:
        scan: The scan.
        models: Names of the models, to suggest the one that was meant.
    """
    for refusal in scan.refusals:
        yield Unclaimed(refusal.path, "file", refusal.reason)
    for model, path in scan.folders:
        if not model:
            choose_one = names_to_choose(path.name, models, "drop into the folder of a model:")
            yield Unclaimed(path, "folder", f"no model of the config has this name; {choose_one}")


def find_unclaimed(folder: DropFolder) -> list[Unclaimed]:
    """Look once what is not taken, without waiting for files to be finished; for a look from outside the daemon."""
    scan = folder.scan()
    found = list(refused(scan, folder.models))
    for model, path in scan.folders:
        if model and (choice := choose(scan_run(model, path))).name is None:
            found.append(Unclaimed(path, "folder", choice.reason))
    found += [no_checkpoint(candidate.path) for candidate in scan.candidates if not _may_be_checkpoint(candidate)]
    return sorted(found, key=lambda entry: entry.path)


def _may_be_checkpoint(candidate: Candidate) -> bool:
    try:
        return recognize(candidate.path)
    except OSError:
        return True  # gone again, or reported by the claim
