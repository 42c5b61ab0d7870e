"""Verifies signatures in a process of its own, so that the supervisor does not load a cryptographic library."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

from edged.errors import EdgedError
from service.system.processes import child_environment

_TIMEOUT_S = 120.0  # for a tenth of a second's work, on a device that may be busy
_REMEMBERED = 64  # answers; an update asks the same several times


class VerifierError(EdgedError):
    """A signature cannot be verified now; that says nothing about it."""

    code = "verifier"


@functools.lru_cache(maxsize=_REMEMBERED)
def verified_by(message: bytes, signatures: tuple[bytes, ...], keys: tuple[bytes, ...]) -> int | None:
    """Return the index of the first key by which one of the signatures is made; None if there is none.

    Blocks for the start of a process; call it in a thread.

    Args:
        message: What is signed.
        signatures: Signatures, of any length.
        keys: Public keys of Ed25519, 32 bytes each.

    Raises:
        VerifierError: The process cannot be started, or failed.
    """
    question = {
        "message": message.hex(),
        "signatures": [each.hex() for each in signatures],
        "keys": [each.hex() for each in keys],
    }
    command = [sys.executable, "-m", "service.trust.main"]
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            command,
            input=json.dumps(question),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            env=child_environment(1),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VerifierError(f"the signature cannot be verified now: {error}; it is tried again") from None
    if done.returncode != 0:
        raise VerifierError(f"the signature cannot be verified now: {_why(done)}; it is tried again")
    answer: int | None = json.loads(done.stdout)["key"]
    return answer


def _why(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines()
    if lines and "No module named 'cryptography" in lines[-1]:
        return "the package cryptography is not installed, `pip install cryptography`"
    return f"its process ended with exit code {done.returncode}" + (f": {lines[-1][:300]}" if lines else "")
