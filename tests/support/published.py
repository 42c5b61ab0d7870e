"""A daemon whose state folder has published models from the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edged.artifacts.store import ModelStore
from edged.models.registry import Architecture, load_model
from tests.support import scenes
from tests.support.artifacts import ARCHITECTURE, write_untrained, write_untrained_detector
from tests.support.daemon import Daemon


def prepared(folder: Path, **serve: Any) -> tuple[Daemon, dict[str, Any]]:
    """A daemon that finds published models, as after a restart; and the networks that they hold."""
    (folder / "images").mkdir()
    models = [{"name": name, "calibration": {"dir": str(folder / "images")}} for name in ("digits", "shapes", "empty")]
    daemon = Daemon(folder, folder / "images", models=models, serve={"port": 0, **serve})
    store = ModelStore(daemon.state / "models")
    networks = {}
    for name, write, architecture in (
        ("digits", write_untrained, ARCHITECTURE),
        ("shapes", write_untrained_detector, Architecture.detector(scenes.plan())),
    ):
        networks[name] = load_model(write(daemon.state / name), architecture)
        store.switch(name, store.publish(name, daemon.state / name))
    return daemon, networks
