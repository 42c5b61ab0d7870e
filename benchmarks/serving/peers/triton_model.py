"""The model of Triton's Python backend; a copy lies in its model repository as model.py."""

from pathlib import Path
from typing import Any

import triton_python_backend_utils as triton  # of Triton itself

from benchmarks.serving.peers.network import Network


class TritonPythonModel:
    """Triton looks for this name."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the network that artifact.txt names."""
        folder = Path(args["model_repository"], args["model_version"])
        self._network = Network((folder / "artifact.txt").read_text())

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer one request after another."""
        answers = []
        for request in requests:
            images = triton.get_input_tensor_by_name(request, "input").as_numpy()
            answers.append(triton.InferenceResponse([triton.Tensor("logits", self._network(images))]))
        return answers
