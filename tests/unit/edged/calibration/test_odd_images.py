"""Images as users have them: each is read as it should be, alone and in a calibration folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edged.calibration.dataset import ImageCache, build_cache
from edged.calibration.formats import FORMATS, SUFFIXES, format_of, other_format_of
from edged.calibration.images import decode, suffix_of
from edged.errors import ImageError
from edged.spec import InputSpec
from tests.support.odd_images import COLORS, SIDE, Odd, mpo, odd_images, oriented, rgb, write_odd_images
from tests.support.pictures import encode

SPEC = InputSpec(SIDE, SIDE)
ODD = odd_images()


def difference(pixels: np.ndarray, image: Odd) -> float:
    """Return the mean difference of levels of [3, SIDE, SIDE] pixels from what the image shows."""
    return float(np.abs(pixels.transpose(1, 2, 0).astype(int) - image.expected).mean())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ImageCache:
    folder = tmp_path_factory.mktemp("odd")
    write_odd_images(folder / "data")
    return build_cache(folder / "data", folder / "cache", SPEC)


def test_there_are_many_and_none_is_skipped(cache: ImageCache) -> None:
    assert len(ODD) >= 45
    assert cache.skipped == ()
    assert set(cache.files) == {image.name for image in ODD}
    assert json.loads((cache.directory / "meta.json").read_bytes())["files"] == list(cache.files)


@pytest.mark.parametrize("image", ODD, ids=lambda image: image.name[:30])
def test_it_shows_what_it_should(cache: ImageCache, image: Odd) -> None:
    pixels = cache.images[cache.files.index(image.name)]
    assert difference(pixels, image) <= image.tolerance
    assert np.array_equal(pixels, decode(image.data, SPEC).pixels)  # a request is read as a calibration image is


def test_what_it_shows_is_told_apart() -> None:
    """The oracle can fail: upside down, mirrored or turned, an image differs by more than any tolerance."""
    most = max(image.tolerance for image in ODD)
    for orientation in range(2, 9):
        turned = Odd("", b"", COLORS)
        pixels = decode(oriented("PNG", orientation), SPEC).pixels
        assert difference(pixels, turned) > 2 * most


def test_formats_are_found_by_the_first_bytes_and_agree_with_the_suffixes() -> None:
    for image in ODD:
        name = format_of(image.data)
        assert name is not None
        suffix = Path(image.name).suffix.lower()
        assert suffix in SUFFIXES
        if image.name != "really-a-jpeg.png":
            assert suffix in FORMATS[name]
        assert suffix_of(image.data) == FORMATS[name][0]
    assert suffix_of(mpo()) == ".jpg"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (encode(rgb(), "GIF"), "GIF"),
        (encode(rgb(), "TIFF"), "TIFF"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1", "AVIF"),
        (b"\xff\x0a\0\0", "JPEG XL"),
        (b"\0\0\0\x18ftypmp42", None),
        (b"hello", None),
        (b"", None),
    ],
)
def test_other_formats_are_named(data: bytes, name: str | None) -> None:
    assert format_of(data) is None
    assert other_format_of(data) == name
    with pytest.raises(ImageError, match="is not a JPEG, PNG, WEBP or BMP image" + (f", but {name}$" if name else "$")):
        decode(data, SPEC)
