"""The process that verifies signatures: it reads one question from stdin, answers on stdout, and exits.

The cryptographic library takes 9 MB, a quarter of the supervisor's memory, and is needed for signed drops only.
"""

from __future__ import annotations

import json
import sys

from edged.signing.ed25519 import verified_by


def main() -> int:
    """Answer the question on stdin, see `service.trust.verifier`."""
    question = json.load(sys.stdin)
    message, signatures, keys = (
        bytes.fromhex(question["message"]),
        [bytes.fromhex(each) for each in question["signatures"]],
        [bytes.fromhex(each) for each in question["keys"]],
    )
    json.dump({"key": verified_by(message, signatures, keys)}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
