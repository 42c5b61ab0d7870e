import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from PIL import Image

from edged.calibration.images import decode
from edged.calibration.letterbox import BORDER, Letterbox
from edged.spec import Fit, InputSpec
from tests.support.pictures import encode, pixels

SPEC = InputSpec(32, 32, (0.0,) * 3, (1.0,) * 3, Fit.LETTERBOX)


@pytest.mark.parametrize(
    ("width", "height", "inner", "corner"),
    [
        (640, 480, (32, 24), (0, 4)),
        (480, 640, (24, 32), (4, 0)),
        (64, 63, (32, 32), (0, 0)),
        (64, 62, (32, 31), (0, 0)),  # the odd pixel of the border is at the bottom
        (16, 8, (32, 16), (0, 8)),  # small images are enlarged
        (10_000, 1, (32, 1), (0, 15)),
    ],
)
def test_geometry(width, height, inner, corner):
    box = Letterbox(width, height, 32)
    assert box.inner == inner
    assert box.corner == corner


@given(st.integers(1, 4000), st.integers(1, 4000), st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=5))
def test_boxes_survive_the_round_trip(width, height, shares):
    box = Letterbox(width, height, 640)
    boxes = np.array(shares) * np.array([width, height] * 2)
    assert_allclose(box.to_original(box.to_square(boxes)), boxes, atol=1e-6, rtol=1e-9)


def test_boxes_are_clipped_to_the_borders():
    box = Letterbox(200, 100, 32)  # scaled to 32 x 16, 8 from the top
    assert box.to_original(np.array([[-5.0, 0.0, 40.0, 32.0]])).tolist() == [[0.0, 0.0, 200.0, 100.0]]


def test_an_image_is_scaled_and_bordered():
    array = pixels(1, 24, 64)
    decoded = decode(encode(Image.fromarray(array), "PNG"), SPEC)
    assert (decoded.width, decoded.height) == (64, 24)
    square = decoded.pixels.transpose(1, 2, 0)
    assert (square[:10] == BORDER).all()
    assert (square[22:] == BORDER).all()
    scaled = np.asarray(Image.fromarray(array).resize((32, 12), Image.Resampling.BILINEAR))
    assert np.array_equal(square[10:22], scaled)


def test_the_size_is_that_of_the_upright_image():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    decoded = decode(encode(Image.fromarray(pixels(1, 24, 64)), "JPEG", exif=exif), SPEC)
    assert (decoded.width, decoded.height) == (24, 64)


def test_grayscale_images_are_letterboxed():
    spec = InputSpec(32, 32, (0.0,), (1.0,), Fit.LETTERBOX)
    decoded = decode(encode(Image.fromarray(pixels(1, 24, 64)), "PNG"), spec)
    assert decoded.pixels.shape == (1, 32, 32)
    assert (decoded.pixels[0, 0] == BORDER).all()
