"""The image formats that edged reads: the one list for calibration, evaluation, requests and captures. No Pillow."""

from __future__ import annotations

from collections.abc import Mapping

# Format, as Pillow names it -> suffixes of its files in lower case, the usual one first. A phone's MPO is a JPEG with
# further images behind it.
FORMATS: Mapping[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
NAMES = f"{', '.join(list(FORMATS)[:-1])} or {list(FORMATS)[-1]}"
# Suffixes of pictures that edged does not read.
OTHER_PICTURES = frozenset(
    {
        ".gif",
        ".tif",
        ".tiff",
        ".heic",
        ".heif",
        ".avif",
        ".jxl",
        ".jp2",
        ".j2k",
        ".psd",
        ".dng",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".raf",
        ".orf",
        ".rw2",
        ".tga",
        ".ppm",
        ".pgm",
        ".pnm",
        ".ico",
        ".svg",
        ".exr",
        ".hdr",
    }
)
_PNG = b"\x89PNG\r\n\x1a\n"


def format_of(data: bytes) -> str | None:
    """Return the format of an encoded image by its first bytes, one of FORMATS; None for any other data."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(_PNG):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    return "BMP" if data.startswith(b"BM") else None


def other_format_of(data: bytes) -> str | None:
    """Return the name of a known format that edged does not read, by the first bytes; None for any other data."""
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith((b"II*\0", b"MM\0*")):
        return "TIFF"
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        return "AVIF" if brand in (b"avif", b"avis") else "HEIC" if brand[:2] in (b"he", b"mi", b"ms") else None
    return "JPEG XL" if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")) else None
