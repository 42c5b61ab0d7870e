"""Check of the class names in the config against the generations on the disk."""

from __future__ import annotations

from edged.artifacts.store import ModelStore
from edged.errors import EdgedError
from edged.json_document import MALFORMED
from service.config.load import Config, ModelConfig
from service.storage.paths import Paths


def problem_of_labels(config: Config, model: ModelConfig) -> str | None:
    """Return why the labels of a model do not fit its generation in service.

    Args:
        config: Configuration with the state folder.
        model: Configuration of the model.

    Returns:
        The problem, which follows the name of the key; None if they fit, or if no generation can be read.
    """
    store = ModelStore(Paths(config.state_dir).models)
    try:
        if model.labels is None or (live := store.current(model.name)) is None:
            return None
        classes = store.manifest(model.name, live)["architecture"]["num_classes"]
    except (EdgedError, OSError, *MALFORMED):  # another user's state folder, or of another version
        return None
    if classes == len(model.labels):
        return None
    return f"has {len(model.labels)} names, and generation {live} in service has {classes} classes; give one for each"
