from __future__ import annotations

import numpy as np

from benchmarks.serving.payloads import JPEG_BYTES, PHOTO_SIZE, SIDE, payloads
from edged.calibration.images import decode
from edged.spec import InputSpec
from service.inference.requests import parse_request
from service.ipc.messages import Body

SPEC = InputSpec(SIDE, SIDE)


def body(name: str) -> Body:
    call = payloads()[name].call("net")
    assert call.path == "/v2/models/net/infer"
    return Body(call.body, int(call.headers["Inference-Header-Content-Length"]))


def test_edged_reads_the_tensor_and_the_pixels_as_they_are() -> None:
    for name in ("fp32", "uint8"):
        request = parse_request(body(name), SPEC)
        assert request.images.shape == (1, 3, SIDE, SIDE)
    assert np.array_equal(parse_request(body("fp32"), SPEC).images, payloads()["fp32"].values)


def test_the_file_is_the_whole_body_and_of_the_stated_size() -> None:
    (file,) = payloads()["jpeg"].values
    assert body("jpeg").content == file
    assert abs(len(file) - JPEG_BYTES) < JPEG_BYTES / 50
    decoded = decode(file, SPEC)
    assert (decoded.width, decoded.height) == PHOTO_SIZE
    assert decoded.pixels.std() > 20  # not a plain surface, which would be decoded in less time
