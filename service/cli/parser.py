"""How every command says that it failed."""

from __future__ import annotations

import json
import sys


def fail(as_json: bool, message: str, code: str, exit_code: int) -> int:
    """Say why on stderr, with --json on stdout too.

    Args:
        as_json: Whether the caller asked for JSON.
        message: One line.
        code: Of the error, for programs.
        exit_code: Of the command.

    Returns:
        `exit_code`.
    """
    if as_json:
        sys.stdout.write(json.dumps({"error": message, "code": code}) + "\n")
    sys.stderr.write(f"edged: {message}\n")
    return exit_code
