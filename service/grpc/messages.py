"""The messages of inference.proto as classes.

They are made in a pool of their own: other packages, such as tritonclient, define messages of the same names in
protobuf's default pool, where two definitions of one name are an error.
"""

from __future__ import annotations

import base64
from typing import Any

from google.protobuf import descriptor_pool, message_factory

from service.grpc.descriptor import DESCRIPTOR

SERVICE = "inference.GRPCInferenceService"

_pool = descriptor_pool.DescriptorPool()
_pool.AddSerializedFile(base64.b64decode(DESCRIPTOR))
_service = _pool.FindServiceByName(SERVICE)

# Method -> the classes of its request and of its response.
METHODS: dict[str, tuple[Any, Any]] = {
    method.name: (
        message_factory.GetMessageClass(method.input_type),
        message_factory.GetMessageClass(method.output_type),
    )
    for method in _service.methods
}

# They have fields as inference.proto defines them, which no type checker knows.
ModelInferRequest, ModelInferResponse = METHODS["ModelInfer"]
RawTensor: Any = message_factory.GetMessageClass(_pool.FindMessageTypeByName("inference.RawTensor"))
