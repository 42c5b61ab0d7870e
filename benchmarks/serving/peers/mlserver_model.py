"""The runtime that MLServer loads: `implementation` of its model-settings.json."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from benchmarks.serving.peers.network import Network


class Served(MLModel):
    """FP32 tensors as base64: MLServer's REST knows no binary ones, and a list of numbers takes it far longer."""

    async def load(self) -> bool:
        """Load the network of the artifact that `uri` names."""
        uri = Path(self.settings.parameters.uri)
        self._network = Network((uri / "artifact.txt").read_text())
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One request."""
        tensor = payload.inputs[0]
        content = tensor.data.root if hasattr(tensor.data, "root") else tensor.data
        text = content[0] if isinstance(content, list) else content
        images = np.frombuffer(base64.b64decode(text), np.float32).reshape(tensor.parameters.image)
        logits = self._network(images)
        output = ResponseOutput(name="logits", shape=list(logits.shape), datatype="FP32", data=logits.ravel().tolist())
        return InferenceResponse(model_name=self.name, outputs=[output])
