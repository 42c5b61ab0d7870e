"""`python -m service.doctor.torch_probe`: import torch and print the result as JSON.

The probe is a process of its own, because a broken build may crash it.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def probe() -> dict[str, Any]:
    """Return the version and the capabilities of torch."""
    import torch

    return {"torch": torch.__version__, "cuda": torch.cuda.is_available(), "built_for_cuda": torch.version.cuda}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe()) + "\n")
