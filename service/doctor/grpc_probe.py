"""`python -m service.doctor.grpc_probe`: import what gRPC needs and print the versions as JSON.

The probe is a process of its own, because a broken build may crash it.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version


def probe() -> dict[str, str]:
    """Return the versions of grpcio and protobuf, after the daemon's own messages were built with them."""
    import service.grpc.server  # noqa: F401

    return {package: version(package) for package in ("grpcio", "protobuf")}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe()) + "\n")
