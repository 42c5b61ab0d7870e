"""The messages of inference.proto and of health.proto as classes.

They are made in a pool of their own: other packages, such as tritonclient, define messages of the same names in
protobuf's default pool, where two definitions of one name are an error.
"""

from __future__ import annotations

import base64
from typing import Any

from google.protobuf import descriptor_pool, message_factory

from service.grpc.descriptor import DESCRIPTORS

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"

_pool = descriptor_pool.DescriptorPool()
for _descriptor in DESCRIPTORS:
    _pool.AddSerializedFile(base64.b64decode(_descriptor))


def _methods(service: str) -> dict[str, tuple[Any, Any]]:
    return {
        method.name: (
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
        )
        for method in _pool.FindServiceByName(service).methods
    }


# Method -> the classes of its request and of its response.
METHODS, HEALTH_METHODS = _methods(SERVICE), _methods(HEALTH)

# They have fields as the .proto files define them, which no type checker knows.
ModelInferRequest, ModelInferResponse = METHODS["ModelInfer"]
HealthCheckRequest, HealthCheckResponse = HEALTH_METHODS["Check"]
RawTensor: Any = message_factory.GetMessageClass(_pool.FindMessageTypeByName("inference.RawTensor"))
