"""`python -m service.gentle_start NICE MODULE ...`: MODULE's `main`, imported with NICE more niceness.

Importing torch takes a second of a core. While a generation does that, the one before it answers requests.
"""

from __future__ import annotations

import importlib
import os
import sys

from service.children import give_way


def main(arguments: list[str]) -> int:
    """Import the module and run its `main` with the other arguments."""
    nice, name, *others = arguments
    module = give_way(lambda: importlib.import_module(name), int(nice))
    code: int = module.main(others)
    return code


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(exit_code)  # taking torch apart takes half a second of a core, beside the generation that serves now
