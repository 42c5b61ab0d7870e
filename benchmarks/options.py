"""Command-line options that several benchmarks share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection

from edged.device import DEVICES


def parser_of(docstring: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help shows the docstring of a command as it is."""
    return argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device, the device that computes."""
    parser.add_argument("--device", choices=DEVICES, default="cpu")


def some_of(known: Collection[str], what: str) -> Callable[[str], tuple[str, ...]]:
    """Return the type of an option that takes some names, separated by commas.

    Args:
        known: Names to choose from.
        what: What they name, for the message.
    """

    def read(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown {what} {unknown[0]!r}; choose from {', '.join(known)}")
        return names

    return read
