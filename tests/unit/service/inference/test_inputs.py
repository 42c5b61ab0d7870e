"""Tensors, pixels and encoded files as network inputs."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from edged.calibration.images import decode_bytes, normalize
from edged.calibration.letterbox import Letterbox
from edged.spec import Fit, InputSpec
from service.inference.inputs import as_numbers, as_texts, check_plausible, max_batch, read_images
from service.ipc.elements import pack_elements
from service.ipc.messages import RequestError
from tests.support.pictures import noise_png
from tests.support.requests import LETTERBOX, SPEC

SHAPE = (2, 3, 4, 4)


def read(name: str, datatype: str, data: Any, shape: Any = SHAPE, spec: InputSpec = SPEC, **parameters: Any) -> Any:
    """Read the images of a tensor in the JSON, or in the bytes after it."""
    tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(shape), "parameters": parameters}
    if not isinstance(data, bytes):
        return read_images({**tensor, "data": data}, memoryview(b""), spec)[:2]
    tensor["parameters"] = {"binary_data_size": len(data), **parameters}
    return read_images(tensor, memoryview(data), spec)[:2]


def test_numbers_with_a_long_text_among_them_take_no_memory() -> None:
    """numpy would give each of them the length of the text: 24 GB."""
    assert as_numbers([1] * 60_000 + ["a" * 100_000]) is None
    assert as_numbers([[1] * 1000, ["0" * 100_000] * 1000]) is None


def test_numbers() -> None:
    for good in ([], [1, 0.5, -3], [[1, 2], [3, 4]], [[[[1]]]], [1e400]):
        found = as_numbers(good)
        assert found is not None
        assert found.tolist() == good
        assert as_numbers(found) is found
    for bad in (None, 1, "1", {}, ["1"], [1, "1"], [None], [True], [1, [2]], [[1], [2, 3]], [[[[[1]]]]], [10**400]):
        assert as_numbers(bad) is None


def test_texts() -> None:
    assert as_texts(["a", "b"]) == as_texts([["a"], ["b"]]) == ["a", "b"]
    for bad in (None, "a", {}, [1], ["a", ["b"]], [["a", "b"]], [["a"], []], ["a"] * 5000):
        assert as_texts(bad) is None


@pytest.mark.parametrize("channels", [1, 3])
def test_a_tensor_is_copied_from_any_address(channels: int) -> None:
    values = np.random.default_rng(0).normal(size=(2, channels, 4, 4)).astype("<f4")
    spec = dataclasses.replace(SPEC, mean=(0.5,) * channels, std=(0.5,) * channels)
    for offset in range(3):  # an odd address, too
        behind = memoryview(bytearray(b"x" * offset + values.tobytes()))[offset:]
        tensor = {"name": "input", "datatype": "FP32", "shape": [2, channels, 4, 4]}
        tensor["parameters"] = {"binary_data_size": len(behind)}
        images = read_images(tensor, behind, spec)[0]
        behind[:] = bytes(len(behind))  # the next request's
        assert images.flags.c_contiguous
        assert np.array_equal(images, values)


@pytest.mark.parametrize(("datatype", "dtype"), [("FP16", "<f2"), ("FP32", "<f4"), ("FP64", "<f8")])
def test_floats_of_each_width_become_fp32(datatype: str, dtype: str) -> None:
    values = np.random.default_rng(0).normal(size=SHAPE).astype(dtype)
    expected = values.astype(np.float32)
    for data in (values.tobytes(), values.tolist(), values.ravel().tolist()):
        images, letterboxes = read("input", datatype, data)
        assert images.dtype == np.float32
        assert np.array_equal(images, expected)
        assert letterboxes == ()


def test_what_lies_far_beyond_all_images_is_a_fault_of_the_request() -> None:
    spec = dataclasses.replace(SPEC, mean=(0.5, 0.5, 0.25), std=(0.25, 0.5, 0.25))  # black is -2, white 3
    for value in (-2.0, 3.0, 29.9, -29.9):
        check_plausible(np.full(SHAPE, value, np.float32), spec)
    for value in (30.1, -30.1, 3e38):
        images = np.zeros(SHAPE, np.float32)
        images[1, 2, 3, 3] = value
        with pytest.raises(RequestError, match=rf"as large as {abs(value):.3g}".replace("+", r"\+")) as caught:
            check_plausible(images, spec)
        assert (caught.value.status, "between -2 and 3" in str(caught.value)) == (400, True)


@given(hnp.arrays(np.uint8, SHAPE))
def test_pixels_are_normalized_as_in_calibration(pixels: Any) -> None:
    expected = normalize(pixels, SPEC)
    for data in (pixels.tobytes(), pixels.tolist()):
        assert np.array_equal(read("pixels", "UINT8", data)[0], expected)


def test_pixels_of_a_square_have_no_letterbox() -> None:
    assert read("pixels", "UINT8", bytes(3 * 32 * 32), (1, 3, 32, 32), LETTERBOX)[1] == ()


def test_encoded_files_are_sent_raw_or_as_base64() -> None:
    files = [noise_png(6), noise_png(9)]
    expected = normalize(np.stack([decode_bytes(file, SPEC) for file in files]), SPEC)
    texts = [base64.b64encode(file) for file in files]
    for images, letterboxes in (
        read("image", "BYTES", pack_elements(files), [2]),
        read("image", "BYTES", pack_elements(texts), [2], content_type="base64"),
        read("image", "BYTES", [text.decode() for text in texts], [2]),
        read("image", "BYTES", pack_elements(files), [2, 1]),  # as in the metadata
        read("image", "BYTES", [text.decode() for text in texts], [2, 1]),
        read("image", "BYTES", [[text.decode()] for text in texts], [2, 1]),
    ):
        assert np.array_equal(images, expected)
        assert letterboxes == ()
    sizes = read("image", "BYTES", pack_elements(files), [2], LETTERBOX)[1]
    assert sizes == (Letterbox(6, 6, 32), Letterbox(9, 9, 32))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("input", "UINT8", bytes(96)), "input 'input' of datatype 'UINT8'; send 'input' as FP32 or FP16 or FP64"),
        (("input", "INT8", bytes(96)), "'INT8'"),
        (("pixels", "FP32", bytes(384)), "'pixels' as UINT8"),
        (("pixels", "UINT8", bytes(95)), "96 values of UINT8 take 96"),
        (("pixels", "UINT8", [256] * 96), "not a UINT8; send whole numbers from 0 to 255"),
        (("pixels", "UINT8", [-1] * 96), "not a UINT8"),
        (("pixels", "UINT8", [0.5] * 96), "not a UINT8"),
        (("pixels", "UINT8", [float("nan")] * 96), "not a UINT8"),
        (("input", "FP16", np.full(96, np.inf, "<f2").tobytes()), "NaN, infinity"),
        (("input", "FP64", np.full(96, 1e300, "<f8").tobytes()), "too large for FP32"),
        (("image", "BYTES", b"\1\0\0", [1]), "ends before the length of element 0"),
        (("image", "BYTES", b"\xff\xff\xff\xff", [1]), "element 0 has a length of 4294967295 bytes, but only 0"),
        (("image", "BYTES", pack_elements([b"", b""]), [1]), "4 bytes follow the last of 1 elements"),
        (("image", "BYTES", pack_elements([b"x"]), [1]), "image 0 is not a JPEG"),
        (("image", "BYTES", pack_elements([b"x", b"y"]), [1, 2]), r"shape has value \[1, 2\]; send 1 whole numbers"),
        (("image", "BYTES", ["eA==", ["eA=="]], [2, 1]), "list of 2 base64 strings"),
    ],
)
def test_the_error_of_an_invalid_input_names_the_reason(arguments: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        read(*arguments)


@pytest.mark.parametrize(("size", "most"), [(32, 128), (224, 128), (640, 15), (1280, 3), (4096, 1)])
def test_requests_may_have_fewer_images_if_they_are_large(size: int, most: int) -> None:
    assert max_batch(InputSpec(size, size, fit=Fit.LETTERBOX)) == most
    assert max_batch(InputSpec(size, size)) == 128
