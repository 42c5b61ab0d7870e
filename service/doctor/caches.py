"""Check of the caches of decoded calibration images: whether they are complete and up to date.

edged.calibration.dataset describes the contents of a cache; it cannot be imported here, because it imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edged.artifacts.store import ModelStore
from edged.calibration.places import find_images
from edged.errors import CalibrationError, EdgedError
from edged.json_document import MALFORMED
from service.config.load import Config
from service.config.sections import ModelConfig
from service.doctor.check import OK, WARN, Check, Machine
from service.storage.paths import Paths
from service.units import format_bytes


@dataclass(frozen=True)
class _Cache:
    """The folder of one cache.

    Attributes:
        path: Path of the folder.
        damage: Description of the damage, "" for an undamaged cache.
        files: Paths of the images relative to the calibration folder.
        image_bytes: Size of one decoded image in bytes.
    """

    path: Path
    damage: str
    files: tuple[str, ...] = ()
    image_bytes: int = 0


def check_caches(_: Machine, config: Config | None) -> Iterator[Check]:
    """Check for each model that no cache is damaged, and that the newest matches the config's images and size."""
    if config is None:
        return
    paths = Paths(config.state_dir)
    for model in config.models:
        yield _check(model, paths.calibration(model.name), ModelStore(paths.models))


def _check(model: ModelConfig, folder: Path, store: ModelStore) -> Check:
    name = f"calibration cache of {model.name}"
    try:
        found = [_read(path) for path in _newest_first(folder)]
    except OSError as error:
        fix = f"run `edged doctor` as the daemon's user, or `sudo chmod -R u+rwX {folder}`"
        return Check(name, WARN, f"{folder} cannot be read: {error.strerror}", fix)
    if damaged := [cache for cache in found if cache.damage]:
        fix = f"`rm -r {' '.join(str(cache.path) for cache in damaged)}`; the next update decodes the images again"
        return Check(name, WARN, f"{damaged[0].path} is damaged: {damaged[0].damage}", fix)
    if not found:
        return Check(name, OK, "none yet: the next update decodes the images")
    newest = found[0]
    size = format_bytes(len(newest.files) * newest.image_bytes)
    detail = f"{len(newest.files)} images, {size}, whole"
    why = _outdated(model, newest) or _unknown(model, found, store)
    return Check(name, OK, f"{detail}; {why}: the next update decodes the images again" if why else detail)


def _newest_first(folder: Path) -> list[Path]:
    """Return the finished caches, newest first; a hidden folder is still being written."""
    try:
        entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except FileNotFoundError:
        return []
    return sorted(entries, key=lambda path: -path.stat().st_mtime)


def _read(path: Path) -> _Cache:
    try:
        meta = json.loads((path / "meta.json").read_bytes())
        files, digest = tuple(map(str, meta["files"])), str(meta["digest"])
        size = (path / "images.u8").stat().st_size
    except FileNotFoundError as error:
        return _Cache(path, f"{Path(error.filename).name} is missing")
    except MALFORMED as error:
        return _Cache(path, f"meta.json cannot be understood: {error!r:.200}")
    if not files or size == 0 or size % len(files):
        return _Cache(path, f"images.u8 has {size} bytes, which are not {len(files)} images")
    if not digest.startswith(path.name):
        return _Cache(path, f"it is of the digest {digest[:16]}, not of its name's")
    return _Cache(path, "", files, size // len(files))


def _outdated(model: ModelConfig, cache: _Cache) -> str:
    """Return why a cache does not match the config, or "" if no difference is found without decoding images."""
    side = model.input.size
    channels = len(model.input.mean) if model.input.mean is not None else 3
    if side is not None and cache.image_bytes != channels * side * side:
        return f"models[].input.size is {side}, they are of another size"
    try:
        root = find_images(model.calibration.dir).root
    except CalibrationError:  # the check of the images reports it
        return ""
    gone = [file for file in cache.files if not (root / file).is_file()]
    if gone:
        return f"{len(gone)} of them are not in {model.calibration.dir} any more, such as {gone[0]}"
    if len(cache.files) > model.calibration.images:
        return f"models[].calibration.images is {model.calibration.images}"
    return ""


def _unknown(model: ModelConfig, found: list[_Cache], store: ModelStore) -> str:
    """Return that the live generation was calibrated with images that no cache has, or "" if one has them."""
    try:
        current = store.current(model.name)
        if current is None:
            return ""
        digest = str(store.manifest(model.name, current)["calibration"]["digest"])
    except (EdgedError, OSError, *MALFORMED):
        return ""  # reported by other checks
    if any(digest.startswith(cache.path.name) for cache in found):
        return ""
    return f"generation {current} was made with other images"
