"""The crash-safe writes of `edged.atomic`, under the name that users of artifacts look for."""

from __future__ import annotations

from edged.atomic import (
    as_state_error,
    fsync_directory,
    fsync_file,
    fsync_tree,
    rename_into_place,
    replace_symlink,
    temporary_sibling,
    write_atomic,
)

__all__ = [
    "as_state_error",
    "fsync_directory",
    "fsync_file",
    "fsync_tree",
    "rename_into_place",
    "replace_symlink",
    "temporary_sibling",
    "write_atomic",
]
