"""Pillow's warnings, which are nothing that a user can act on. Imports nothing that a command would wait for."""

from __future__ import annotations

import warnings


def ignore_warnings_of_pillow() -> None:
    """Keep Pillow's warnings, about damaged EXIF data and the like, off the terminal and out of the log.

    They name no file, and an image that cannot be used is reported by edged itself.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
