import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edged.calibration import images
from edged.calibration.images import LARGE_PIXELS, decode, decode_bytes, decode_image, normalize
from edged.errors import ImageError
from edged.models.torchvision_shim import import_torchvision
from edged.spec import Fit, InputSpec
from tests.support.pictures import encode, pixels

SPEC = InputSpec(size=16, resize=16)
GREY = InputSpec(size=16, resize=16, mean=(0.5,), std=(0.5,))


def as_png(array: np.ndarray, mode: str | None = None) -> bytes:
    image = Image.fromarray(array)
    return encode(image if mode is None else image.convert(mode), "PNG")


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(1, 40),
    extra=st.integers(0, 20),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_geometry_and_normalization_are_torchvisions(width: int, height: int, size: int, extra: int, seed: int) -> None:
    transforms = import_torchvision().transforms
    spec = InputSpec(size=size, resize=size + extra)
    image = Image.fromarray(pixels(seed, height, width))
    steps = [
        transforms.Resize(spec.resize),
        transforms.CenterCrop(spec.size),
        transforms.ToTensor(),
        transforms.Normalize(spec.mean, spec.std),
    ]
    expected = transforms.Compose(steps)(image)
    decoded = decode_bytes(encode(image, "PNG"), spec)
    assert decoded.dtype == np.uint8
    assert decoded.shape == (3, size, size)
    assert decoded.flags.c_contiguous
    assert decoded.flags.writeable
    assert torch.equal(torch.from_numpy(normalize(decoded[None], spec))[0], expected)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_keep_every_pixel(kind: str, options: dict[str, object]) -> None:
    array = pixels(1, 16, 16)
    assert np.array_equal(decode_bytes(encode(Image.fromarray(array), kind, **options), SPEC), array.transpose(2, 0, 1))


def test_jpeg_is_decoded_at_full_resolution() -> None:
    data = encode(Image.fromarray(pixels(2, 512, 512)), "JPEG", quality=90)
    full = Image.open(io.BytesIO(data)).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(decode_bytes(data, SPEC), np.asarray(full).transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_undone(kind: str, orientation: int) -> None:
    undo = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
        8: lambda a: np.rot90(a, 1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels(3, 16, 24))
    data = encode(image, kind, exif=exif.tobytes(), **({"lossless": True} if kind == "WEBP" else {}))
    stored = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    upright = Image.fromarray(np.ascontiguousarray(undo[orientation](stored)))
    assert np.array_equal(decode_bytes(data, SPEC), decode_bytes(encode(upright, "PNG"), SPEC))


def test_grayscale_becomes_three_equal_channels_and_rgb_becomes_luma() -> None:
    grey = pixels(4, 16, 16, 1)[..., 0]
    assert np.array_equal(decode_bytes(as_png(grey), SPEC), np.stack([grey] * 3))
    color = Image.fromarray(pixels(4, 16, 16))
    assert np.array_equal(decode_bytes(encode(color, "PNG"), GREY), np.asarray(color.convert("L"))[None])


def test_alpha_is_dropped() -> None:
    array = np.dstack([pixels(5, 16, 16), pixels(6, 16, 16, 1)])
    assert np.array_equal(decode_bytes(as_png(array), SPEC), array[..., :3].transpose(2, 0, 1))
    grey_alpha = np.dstack([array[..., 0], array[..., 3]])
    assert np.array_equal(decode_bytes(as_png(grey_alpha), SPEC), np.stack([array[..., 0]] * 3))


def test_cmyk_jpeg_keeps_its_colors() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    channels = decode_bytes(encode(red, "JPEG", quality=95), SPEC).mean((1, 2))
    assert channels[0] > 240
    assert max(channels[1:]) < 15


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 256, 4))])
def test_palette_images_keep_their_colors(transparency: object) -> None:
    palette = Image.fromarray(pixels(7, 16, 16)).quantize(64)
    options = {} if transparency is None else {"transparency": transparency}
    expected = np.asarray(palette.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decode_bytes(encode(palette, "PNG", **options), SPEC), expected)


def test_16_bit_grayscale_keeps_its_high_byte() -> None:
    array = (np.arange(256, dtype=np.uint16).reshape(16, 16) << 8) + 77
    assert np.array_equal(decode_bytes(as_png(array), SPEC)[0].ravel(), np.arange(256))


def test_one_bit_image_is_black_and_white() -> None:
    assert set(np.unique(decode_bytes(as_png(pixels(8, 16, 16), "1"), SPEC))) <= {0, 255}


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(9000, 9000), (10_000, 10_000), (60_000, 60_000)])
def test_decompression_bombs_are_rejected_before_decoding(width: int, height: int) -> None:
    with pytest.raises(ImageError, match=r"at most \d+ are allowed"):
        decode_bytes(png_header(width, height), SPEC)


@pytest.mark.parametrize("spec", [SPEC, InputSpec.letterbox(64)], ids=["crop", "letterbox"])
@pytest.mark.parametrize(("width", "height"), [(320, 240), (240, 320), (640, 160)])
@pytest.mark.parametrize("options", [{}, {"orientation": 6}, {"progressive": True}], ids=["plain", "turned", "scans"])
def test_a_large_jpeg_is_reduced_while_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch, spec: InputSpec, width: int, height: int, options: dict[str, int]
) -> None:
    options = dict(options)
    exif = Image.Exif()
    exif[0x0112] = options.pop("orientation", 1)
    data = encode(Image.fromarray(pixels(2, height, width)), "JPEG", quality=95, exif=exif.tobytes(), **options)
    full = decode(data, spec)
    loaded: list[tuple[int, int]] = []
    original = images.ImageOps.exif_transpose
    monkeypatch.setattr(
        images.ImageOps, "exif_transpose", lambda image, **given: (loaded.append(image.size), original(image, **given))
    )
    monkeypatch.setattr(images, "MAX_PIXELS", width * height // 5)
    if "progressive" in options:  # its decoder would keep the coefficients of all pixels
        with pytest.raises(ImageError, match=f"has too many pixels, {width} x {height}; at most"):
            decode(data, spec, images.MAX_PIXELS)
        assert np.array_equal(decode(data, spec, width * height).pixels, full.pixels)
        return
    reduced = decode(data, spec, images.MAX_PIXELS)
    assert (reduced.width, reduced.height) == (full.width, full.height)
    assert loaded[0] in [(width // by, height // by) for by in (4, 8)]
    assert np.abs(reduced.pixels.astype(int) - full.pixels).mean() < 4


@pytest.mark.parametrize(
    "data",
    [
        as_png(pixels(2, 300, 210)),
        as_png(np.dstack([pixels(2, 300, 210), pixels(6, 300, 210, 1)])),
        as_png((pixels(2, 300, 210, 1)[..., 0].astype(np.uint16) << 8) + 77),
        encode(Image.fromarray(pixels(2, 300, 210)).quantize(200), "PNG", transparency=3),
        encode(Image.fromarray(pixels(2, 300, 210)), "WEBP", lossless=True),
        encode(Image.fromarray(pixels(2, 300, 210)), "BMP"),
    ],
    ids=["rgb", "rgba", "16-bit", "palette", "webp", "bmp"],
)
def test_other_large_images_are_decoded_within_bounds(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    full = decode(data, SPEC)
    monkeypatch.setattr(images, "MAX_PIXELS", 300 * 210 // 5)
    monkeypatch.setattr(images, "_BAND_PIXELS", 2100)  # several bands
    with pytest.raises(ImageError, match="has too many pixels, 210 x 300; at most"):
        decode(data, SPEC, max_pixels=300 * 210 - 1)
    reduced = decode(data, SPEC, max_pixels=300 * 210)
    assert (reduced.width, reduced.height) == (210, 300)
    assert np.abs(reduced.pixels.astype(int) - full.pixels).mean() < 4


def test_a_hundred_megapixels_are_read_and_nothing_is_said(recwarn: pytest.WarningsRecorder) -> None:
    """Pillow's own bound is at 89 megapixels for a warning, and at twice as many for an error."""
    ramp = Image.linear_gradient("L").resize((20_000, 10_000), Image.Resampling.NEAREST)
    decoded = decode(encode(ramp, "JPEG", quality=80), GREY)
    assert (decoded.width, decoded.height) == (20_000, 10_000)
    assert np.abs(decoded.pixels[0].mean(1) - np.linspace(8, 247, 16)).max() < 2
    lossless = encode(Image.linear_gradient("L").resize((10_000, 10_000), 0), "PNG", compress_level=1)
    with pytest.raises(ImageError, match="has too many pixels, 10000 x 10000"):
        decode(lossless, GREY)  # a request may not take this much memory
    assert np.abs(decode(lossless, GREY, LARGE_PIXELS).pixels[0].mean(1) - np.linspace(8, 247, 16)).max() < 2
    assert not recwarn.list


@pytest.mark.parametrize(("width", "height"), [(30_000, 1), (1, 30_000), (200_000, 3)])
@pytest.mark.parametrize("spec", [InputSpec(), InputSpec.letterbox(64)], ids=["crop", "letterbox"])
def test_very_long_thin_images_are_read(width: int, height: int, spec: InputSpec) -> None:
    """Scaling the shorter side first would take gigabytes."""
    ramp = np.linspace(0, 255, max(width, height)).round().astype(np.uint8)
    strip = np.broadcast_to(ramp if width > height else ramp[:, None], (height, width))
    decoded = decode(encode(Image.fromarray(np.ascontiguousarray(strip)), "PNG"), spec)
    assert (decoded.width, decoded.height) == (width, height)
    shown = decoded.pixels[0] if spec.fit is Fit.CROP else decoded.pixels[0][decoded.pixels[0] != 114]
    assert abs(shown.mean() - 127.5) < 6


def test_a_strip_within_the_bounds_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scaling only the crop gives what scaling everything and cropping then gives, to a level."""
    strip = encode(Image.fromarray(pixels(2, 20, 400)), "PNG")
    full = decode_bytes(strip, SPEC)
    monkeypatch.setattr(images, "MAX_PIXELS", 16 * 320 - 1)
    monkeypatch.setattr(images, "_reduced", lambda image, mode: image)
    assert np.abs(decode(strip, SPEC, 20 * 400).pixels.astype(int) - full).max() <= 1


def test_a_scan_of_its_own_for_each_channel_is_not_reduced() -> None:
    """Such a JPEG is not progressive, and its decoder keeps all coefficients nevertheless."""
    data = bytearray(encode(Image.fromarray(pixels(2, 64, 64)), "JPEG"))
    start = data.index(b"\xff\xda\x00\x0c\x03")
    for scan, expected in (
        (bytes(data), True),
        (bytes(data[:start] + b"\xff\xda\x00\x08\x01" + data[start + 5 :]), False),
    ):
        assert images._has_one_scan(images._open(scan), scan) is expected


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is not a JPEG"),
        (b"hello, this is text", "is not a JPEG"),
        (os.urandom(2000), "is not a JPEG"),
        (encode(Image.fromarray(pixels(9)), "GIF"), "is not a JPEG, PNG, WEBP or BMP image"),
        (encode(Image.fromarray(pixels(9, 64, 64)), "JPEG")[:600], "is damaged"),
        (encode(Image.fromarray(pixels(9)), "PNG")[:-30], "is damaged"),
    ],
    ids=["empty", "text", "random", "gif", "truncated-jpeg", "truncated-png"],
)
def test_invalid_images_are_rejected_with_a_one_line_message(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        decode_bytes(data, SPEC)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")  # Pillow warns about damaged EXIF and continues
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
@given(data=st.data())
@settings(deadline=None, max_examples=80)
def test_a_damaged_file_gives_pixels_or_an_image_error(kind: str, data: st.DataObject) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if kind == "BMP" else {"exif": exif.tobytes()}
    damaged = bytearray(encode(Image.fromarray(pixels(10)), kind, **options))
    for position in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=8)):
        damaged[position] = data.draw(st.integers(0, 255))
    kept = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        decoded = decode_bytes(kept, SPEC)
    except ImageError as error:
        reason = str(error)
    else:
        reason = ""
        assert decoded.shape == (3, 16, 16)
    assert "\n" not in reason


def test_decode_image_reads_a_file_or_raises_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(Image.fromarray(pixels(11)), "PNG"))
    assert np.array_equal(decode_image(path, SPEC), decode_bytes(path.read_bytes(), SPEC))
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        decode_image(tmp_path / "b.png", SPEC)
    (tmp_path / "c.png").touch()
    with pytest.raises(ImageError, match="is empty"):
        decode_image(tmp_path / "c.png", SPEC)
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 100)
    with pytest.raises(ImageError, match="is larger than 100 bytes"):
        decode_image(path, SPEC)


def test_normalize_does_not_modify_its_input_and_is_contiguous() -> None:
    batch = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8).transpose(0, 3, 1, 2)
    before = batch.copy()
    normalized = normalize(batch, SPEC)
    assert normalized.flags.c_contiguous
    assert normalized.dtype == np.float32
    assert np.array_equal(batch, before)


@pytest.mark.parametrize(("mode", "channels"), [("LA", 2), ("RGBA", 4)])
def test_alpha_is_kept_for_networks_that_read_it(mode: str, channels: int) -> None:
    transforms = import_torchvision().transforms
    spec = InputSpec(12, 14, (0.4,) * channels, (0.3,) * channels)
    image = Image.fromarray(pixels(3, 40, 30)).convert(mode)
    image.putalpha(Image.fromarray(pixels(4, 40, 30)).convert("L"))
    steps = [transforms.Resize(14), transforms.CenterCrop(12), transforms.ToTensor()]
    expected = transforms.Compose([*steps, transforms.Normalize(spec.mean, spec.std)])(image)
    decoded = decode_bytes(encode(image, "PNG"), spec)
    assert np.array_equal(normalize(decoded[None], spec)[0], expected)
    opaque = decode_bytes(encode(Image.fromarray(pixels(3, 40, 30)), "JPEG"), spec)
    assert opaque.shape == (channels, 12, 12)
    assert (opaque[-1] == 255).all()
