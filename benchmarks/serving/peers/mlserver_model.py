"""The runtime that MLServer loads: `implementation` in its model-settings.json."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from benchmarks.serving.peers.network import Network


class Served(MLModel):
    """A model that takes FP32 tensors as base64, because MLServer's REST API takes no bytes and lists are slower."""

    async def load(self) -> bool:
        """Load the network of the artifact that `uri` names."""
        uri = Path(self.settings.parameters.uri)
        self._network = Network((uri / "artifact.txt").read_text())
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Return the logits of one request."""
        tensor = payload.inputs[0]
        content = tensor.data.root if hasattr(tensor.data, "root") else tensor.data
        text = content[0] if isinstance(content, list) else content
        images = np.frombuffer(base64.b64decode(text), np.float32).reshape(tensor.parameters.image)
        logits = self._network(images)
        output = ResponseOutput(name="logits", shape=list(logits.shape), datatype="FP32", data=logits.ravel().tolist())
        return InferenceResponse(model_name=self.name, outputs=[output])
