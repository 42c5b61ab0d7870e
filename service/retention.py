"""Has images of live requests go when they are too old, or when their model is configured no more."""

from __future__ import annotations

import logging
import time

from edged.errors import StateError
from service.config import Config
from service.garbage import remove_folder
from service.paths import Paths
from service.sampling import ring_of

log = logging.getLogger(__name__)


def trim_captures(config: Config, paths: Paths) -> None:
    """Look at every model that has images; what cannot be removed is told and tried again next time."""
    for folder in sorted(paths.captures.iterdir()) if paths.captures.is_dir() else ():
        model = config.model(folder.name)
        try:
            if model is not None:
                ring_of(model, folder).trim(time.time())
            else:
                remove_folder(folder)
                log.warning("images of requests of %s are removed: it is not configured any more", folder.name)
        except (OSError, StateError) as error:
            log.error("cannot remove images of requests of %s: %s; remove %s", folder.name, error, folder)
