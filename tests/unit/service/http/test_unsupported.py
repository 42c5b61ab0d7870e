import pytest

from service.http.unsupported import explain


@pytest.mark.parametrize(
    ("path", "extension"),
    [
        ("/v2/trace/setting", "trace"),
        ("/v2/models/m/trace/setting", "trace"),
        ("/v2/logging", "logging"),
        ("/v2/systemsharedmemory/status", "system_shared_memory"),
        ("/v2/systemsharedmemory/region/r/register", "system_shared_memory"),
        ("/v2/cudasharedmemory/unregister", "cuda_shared_memory"),
        ("/v2/models/m/versions/1/generate_stream", "generate"),
    ],
)
def test_a_missing_extension_is_named(path, extension):
    told = explain("POST", path)
    assert told is not None
    assert f"POST {path} belongs to the extension '{extension}', which edged does not have" in told
    assert "statistics" in told


@pytest.mark.parametrize("path", ["/", "/v2", "/v2/models/logging", "/v2/models/m/infer", "/v2/loggings"])
def test_other_paths_belong_to_none(path):
    assert explain("GET", path) is None
