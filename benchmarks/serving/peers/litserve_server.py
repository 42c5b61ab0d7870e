"""A LitServe server with the empty network.

Usage: python litserve_server.py PORT
"""

import base64
import sys
from typing import Any

import litserve
import numpy as np

from benchmarks.serving.peers.network import Network


class Served(litserve.LitAPI):
    """An API that takes FP32 tensors as base64 in JSON, as LitServe's documentation does for images."""

    def setup(self, device: str) -> None:
        """Load the network."""
        self._network = Network("")

    def decode_request(self, request) -> np.ndarray:  # type: ignore[no-untyped-def]  # LitServe would look for its type
        """Decode a request to images."""
        return np.frombuffer(base64.b64decode(request["data"]), np.float32).reshape(request["shape"])

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Compute logits of images."""
        return self._network(images)

    def encode_response(self, logits: np.ndarray) -> dict[str, Any]:
        """Encode logits as JSON."""
        return {"logits": logits.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Served(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
