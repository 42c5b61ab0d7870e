"""The models for Triton's Python backend; its model repository contains copies as model.py."""

import json
from pathlib import Path
from typing import Any

import triton_python_backend_utils as triton  # part of Triton

from benchmarks.serving.peers.network import Network, prepare


class TritonPythonModel:
    """The class that Triton looks for by this name."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the network that artifact.txt names."""
        folder = Path(args["model_repository"], args["model_version"])
        config = json.loads(args["model_config"])
        self._input = config["input"][0]["name"]
        self._prepares = "prepares" in config["parameters"]
        self._network = Network((folder / "artifact.txt").read_text())

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return the responses to requests."""
        answers = []
        for request in requests:
            values = triton.get_input_tensor_by_name(request, self._input).as_numpy()
            images = prepare(self._input, values) if self._prepares else values
            answers.append(triton.InferenceResponse([triton.Tensor("logits", self._network(images))]))
        return answers
