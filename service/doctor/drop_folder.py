"""Check of the drop folder: what is in it that the daemon does not take."""

from __future__ import annotations

from collections.abc import Iterator

from service.config.load import Config
from service.doctor.check import OK, WARN, Check, Machine
from service.intake.drop_folder import DropFolder
from service.intake.unclaimed import find_unclaimed
from service.units import printable

_LISTED = 3


def check_drop_folder(_: Machine, config: Config | None) -> Iterator[Check]:
    """Check that nothing stays in the drop folder."""
    if config is None:
        return
    root = config.drop_folder
    found = find_unclaimed(DropFolder(root, [model.name for model in config.models], config.watch.max_bytes))
    if not found:
        yield Check("drop folder", OK, f"nothing in {root} is left unclaimed")
        return
    shown = [f"{printable(str(entry.path.relative_to(root)))}: {entry.reason}" for entry in found[:_LISTED]]
    more = f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    fix = "move them out of it, or into the folder of a model; `edged status --json` lists all under `unclaimed`"
    yield Check("drop folder", WARN, f"{len(found)} left in {root}: {'; '.join(shown)}{more}", fix)
