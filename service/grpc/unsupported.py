"""What Triton's service has and edged's has not, so that a client is told more than that a method is missing."""

from __future__ import annotations

from service.daemon.model_repository import without_extension
from service.grpc.messages import METHODS, SERVICE

# What a method starts with -> the extension that it belongs to.
_MISSING = {
    "TraceSetting": "trace",
    "LogSettings": "logging",
    "SystemSharedMemory": "system_shared_memory",
    "CudaSharedMemory": "cuda_shared_memory",
}
_STREAM = "ModelStreamInfer"


def explain(method: str) -> str:
    """Return why a method of the service is not served."""
    if method == _STREAM:
        return f"{_STREAM} is not served: a response here is one message; call ModelInfer for each request"
    for start, extension in _MISSING.items():
        if method.startswith(start):
            return without_extension(method, extension)
    return f"{SERVICE} has no method {method!r:.80}; it has {', '.join(METHODS)}"
