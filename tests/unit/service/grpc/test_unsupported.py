"""What clients are told about methods that are not served."""

from __future__ import annotations

import pytest

from service.grpc.unsupported import explain


@pytest.mark.parametrize(
    ("method", "extension"),
    [
        ("TraceSetting", "trace"),
        ("LogSettings", "logging"),
        ("SystemSharedMemoryRegister", "system_shared_memory"),
        ("CudaSharedMemoryStatus", "cuda_shared_memory"),
    ],
)
def test_the_extension_is_named(method: str, extension: str) -> None:
    assert f"{method} belongs to the extension {extension!r}, which edged does not have" in explain(method)


def test_streams_and_unknown_methods() -> None:
    assert "call ModelInfer for each request" in explain("ModelStreamInfer")
    assert "has no method 'Other'; it has ServerLive" in explain("Other")
