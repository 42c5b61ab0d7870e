"""Recognize by its first bytes a file that is no checkpoint, to say what it is and what to do."""

from __future__ import annotations

_TRAINED = "give the .pt or .pth that training saved with torch.save, before it was exported"
_UNPACK = "unpack it and give the checkpoint inside"
_CONVERT = "edged reads PyTorch's checkpoints and .safetensors files only"
_COPY = "copy it again"

# First bytes -> what the file is, and what to do.
_STARTS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "it is gzip-compressed", _UNPACK),
    (b"BZh", "it is bzip2-compressed", _UNPACK),
    (b"\xfd7zXZ\0", "it is xz-compressed", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "it is zstd-compressed", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "it is a 7z archive", _UNPACK),
    (b"Rar!", "it is a RAR archive", _UNPACK),
    (b"\x89HDF", "it is an HDF5 file, as Keras writes them (.h5)", _CONVERT),
    (b"GGUF", "it is a GGUF file, a quantized language model", _CONVERT),
    (b"ftrt", "it is a TensorRT engine, built for one GPU", _TRAINED),
    (b"ptrt", "it is a TensorRT engine, built for one GPU", _TRAINED),
    (b"\x93NUMPY", "it is a NumPy array (.npy)", "save a state dict with torch.save"),
    (b"version https://git-lfs", "it is a Git LFS pointer, not the file itself", "run git lfs pull and copy it again"),
    (b"7767517", "it is an ncnn model (.param)", _TRAINED),
    (b"\x89PNG", "it is a PNG image", "put images into the calibration folder"),
    (b"\xff\xd8\xff", "it is a JPEG image", "put images into the calibration folder"),
    (b"%PDF", "it is a PDF document", _CONVERT),
    (b"\x7fELF", "it is a program or a library", _CONVERT),
)
_LATER: tuple[tuple[int, bytes, str, str], ...] = (
    (4, b"TFL3", "it is a TensorFlow Lite model", _CONVERT),
    (4, b"ET12", "it is an ExecuTorch program", _TRAINED),
    (257, b"ustar", "it is a tar archive", _UNPACK),
)
HEAD_BYTES = 4096


def foreign_format(head: bytes) -> str:
    """Return what a file is that is no checkpoint, and what to do.

    Args:
        head: The first bytes of the file, up to `HEAD_BYTES`.
    """
    found = [(what, advice) for start, what, advice in _STARTS if head.startswith(start)]
    found += [(what, advice) for place, sign, what, advice in _LATER if head[place:].startswith(sign)]
    if found:
        return "; ".join(found[0])
    if head[:1] == b"\x08" and head[2:3] in (
        b"\x12",
        b"\x1a",
        b"\x22",
        b"\x3a",
    ):  # version, producer, ... of a ModelProto
        return f"it is an ONNX file, which holds no training checkpoint; {_TRAINED}"
    if head[:1] == b"\x08" and b"\x12\x04" in head[:64] and b"saved_model" in head:
        return f"it is a TensorFlow SavedModel; {_CONVERT}"
    if not any(head):
        return f"it holds zeros only; its copy was cut off: {_COPY}"
    if _is_text(head):
        return _text(head)
    if head[:1] in (b"(", b"c", b"]", b"}", b"I", b"L") and _ends_like_pickle(head):
        return "it is in pickle protocol 0 or 1; save it with torch.save's own, which is 2"
    shown = head[:4].hex(" ")
    advice = "give a file of torch.save(model.state_dict()) or a .safetensors file"
    return f"it is no checkpoint (it starts with the bytes {shown}); {advice}"


def _is_text(head: bytes) -> bool:
    """Return whether bytes are UTF-8 text; the last character may be cut off."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or not error.start:
            return False
        text = head[: error.start].decode()
    return all(character.isprintable() or character in "\t\r\n\f" for character in text)


def _text(head: bytes) -> str:
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is a web page, not the file that it links to; download the file itself"
    if start.startswith(b"<?xml") and b"<net" in start:
        return f"it is an OpenVINO model (.xml); {_TRAINED}"
    if start.startswith(b"{") and b"weight_map" in start:
        return "it is the index of a model in several .safetensors files; save the network in one file"
    if head[:1] in (b"(", b"c") and b"\n" in head[:200] and (b"\np" in head or b"\n(" in head):
        return "it is in pickle protocol 0 or 1; save it with torch.save's own, which is 2"
    return "it is a text file; give a file of torch.save(model.state_dict()) or a .safetensors file"


def _ends_like_pickle(head: bytes) -> bool:
    return any(sign in head for sign in (b"\nq", b"\np", b"q\x00", b"q\x01"))


def foreign_zip(names: list[str]) -> str | None:
    """Return what a zip is that is no checkpoint, by the names of its entries, and what to do; None if unknown.

    Args:
        names: Names of its entries.
    """
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        yolo = any("__torch__/models/yolo" in name or "__torch__/ultralytics" in name for name in names)
        what = "the .pt that its training saved" if yolo else "save model.state_dict() instead"
        return f"it is a TorchScript archive, whose network is code; {f'give {what}' if yolo else what}"
    if "archive_format" in last or any(
        name.endswith(".json") and "serialized_exported_program" in name for name in names
    ):
        return f"it is an exported program (.pt2); {_TRAINED}"
    if any(name.endswith((".data/version", ".data/extern_modules")) for name in names):
        return "it is a torch.package archive, whose network is code; save model.state_dict() instead"
    if "model.weights.h5" in last:
        return f"it is a Keras model (.keras); {_CONVERT}"
    if last and all(name.endswith(".npy") for name in last):
        return "it is a NumPy archive (.npz); save a state dict with torch.save"
    inside = sorted(name for name in names if name.endswith((".pt", ".pth", ".ckpt", ".safetensors", ".bin")))
    if inside:
        return f"it is a zip of other files; {_UNPACK} ({inside[0][:60]!a})"
    return None
