"""`python -m service.torch_probe`: imports torch and torchvision and says in one line of JSON how that went.

A process of its own, because a broken build may end it without a word.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def probe() -> dict[str, Any]:
    """What the packages say of themselves."""
    import torch

    from edged.models.torchvision_shim import compiled_operators_load, import_torchvision

    return {
        "torch": torch.__version__,
        "cuda": torch.cuda.is_available(),
        "torchvision": import_torchvision().__version__,
        "operators": compiled_operators_load(),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe()) + "\n")
