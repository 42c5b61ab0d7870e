"""Command-line options that several benchmarks share."""

from __future__ import annotations

import argparse

from edged.device import DEVICES


def parser_of(docstring: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help shows the docstring of a command as it is."""
    return argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device, the device that computes."""
    parser.add_argument("--device", choices=DEVICES, default="cpu")
