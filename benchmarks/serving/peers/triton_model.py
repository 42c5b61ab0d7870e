"""The model for Triton's Python backend; its model repository contains a copy as model.py."""

from pathlib import Path
from typing import Any

import triton_python_backend_utils as triton  # part of Triton

from benchmarks.serving.peers.network import Network


class TritonPythonModel:
    """The class that Triton looks for by this name."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the network that artifact.txt names."""
        folder = Path(args["model_repository"], args["model_version"])
        self._network = Network((folder / "artifact.txt").read_text())

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return the responses to requests."""
        answers = []
        for request in requests:
            images = triton.get_input_tensor_by_name(request, "input").as_numpy()
            answers.append(triton.InferenceResponse([triton.Tensor("logits", self._network(images))]))
        return answers
