"""Print the result of a command: as text for people, or with --json as one JSON object."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any


def print_result(options: Namespace, result: Mapping[str, Any], text: Callable[[dict[str, Any]], str]) -> None:
    """Print a result in the form that the options ask for.

    Args:
        options: Parsed options, with `json`.
        result: Plain JSON types.
        text: Renders the result for people.
    """
    if options.json:
        print_json(result)
    else:
        print_text(text(dict(result)))


def print_text(text: str) -> None:
    """Print text at once, also into a pipe. Names of files in it may hold bytes that are no text."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()


def print_json(result: Mapping[str, Any]) -> None:
    """Print one JSON object on a line of its own."""
    sys.stdout.write(json.dumps(result) + "\n")
