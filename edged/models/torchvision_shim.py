"""Import torchvision even where its compiled operators do not load.

On many boards torch and torchvision come from different builds. Then `import torchvision` fails with "operator
torchvision::nms does not exist", although the ResNets need none of its operators. Declaring the two schemas that the
import looks up makes it succeed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def compiled_operators_load() -> bool:
    """Return whether torchvision's compiled operators load into this torch."""
    spec = importlib.util.find_spec("torchvision")
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    for library in (path for folder in folders for path in sorted(Path(folder).glob("_C*.so"))):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]  # torch has no annotation here
        except (OSError, ImportError):
            continue
        return True
    return False


@functools.cache  # keeps the declarations alive: they end with the Library object
def _declare_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # as above
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]  # as above
    return library


@functools.cache
def import_torchvision() -> ModuleType:
    """Return the torchvision module, with or without its compiled operators.

    Raises:
        ImportError: torchvision is not installed.
    """
    if not compiled_operators_load():
        _declare_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # its image decoders often don't load either; edged uses Pillow
        return importlib.import_module("torchvision")
