"""Spell checkpoint files instruction by instruction, as no library would write them."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

PROTO = b"\x80\x02"
MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
VERSION = pickle.dumps(1001, 2)
MACHINE = pickle.dumps({"little_endian": True}, 2)


class Spelled(bytes):
    """Instructions that `encoded` takes as they are."""

    __slots__ = ()


def as_zip(pickled: bytes, values: int = 4, value: float = 0.0) -> bytes:
    """Return a file of torch.save with the given pickle and one storage of equal float32 values."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/data.pkl", pickled)
        archive.writestr("m/byteorder", b"little")
        archive.writestr("m/data/0", struct.pack("<f", value) * values)
        archive.writestr("m/version", b"3\n")
    return file.getvalue()


def as_legacy(pickled: bytes, values: int = 4) -> bytes:
    """Return the same in the format before torch 1.6."""
    keys = pickle.dumps(["0"], 2)
    return MAGIC + VERSION + MACHINE + pickled + keys + struct.pack("<q", values) + bytes(4 * values)


MAKERS: Mapping[str, Callable[..., bytes]] = {"zip": as_zip, "legacy": as_legacy}


def text(value: str) -> bytes:
    """Return the instruction that pushes a string."""
    encoded_text = value.encode()
    return b"X" + struct.pack("<I", len(encoded_text)) + encoded_text


def integer(value: int) -> bytes:
    """Return the instruction that pushes a whole number of any size."""
    if 0 <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    digits = pickle.encode_long(value)
    return b"\x8b" + struct.pack("<i", len(digits)) + digits


def encoded(value: Any) -> Spelled:
    """Return the instructions that push plain data; what is `Spelled` stands in it as it is."""
    if isinstance(value, Spelled):
        return value
    if value is None or isinstance(value, bool):
        return Spelled({None: b"N", True: b"\x88", False: b"\x89"}[value])
    if isinstance(value, str):
        return Spelled(text(value))
    if isinstance(value, int):
        return Spelled(integer(value))
    if isinstance(value, float):
        return Spelled(b"G" + struct.pack(">d", value))
    if isinstance(value, list):
        return Spelled(b"](" + b"".join(map(encoded, value)) + b"e")
    if isinstance(value, tuple):
        return Spelled(b"(" + b"".join(map(encoded, value)) + b"t")
    entries = b"".join(encoded(key) + encoded(each) for key, each in value.items())
    return Spelled(b"}(" + entries + b"u")


def call(name: str, *arguments: Any) -> Spelled:
    """Return the instructions that call a function by its dotted name."""
    module, _, function = name.rpartition(".")
    return Spelled(f"c{module}\n{function}\n".encode() + encoded(arguments) + b"R")


def instance(name: str, state: Mapping[str, Any]) -> Spelled:
    """Return the instructions that make an object of a class and set its attributes."""
    module, _, kind = name.rpartition(".")
    return Spelled(f"c{module}\n{kind}\n)\x81".encode("latin1") + encoded(dict(state)) + b"b")


def storage(key: str = "0", numel: int = 4, kind: bytes = b"ctorch\nFloatStorage\n") -> bytes:
    """Return the instructions that refer to a storage of the file."""
    return b"(" + text("storage") + kind + text(key) + text("cpu") + integer(numel) + b"tQ"


def tensor(offset: int, shape: tuple[int, ...], strides: tuple[int, ...], stored: bytes = storage()) -> Spelled:
    """Return the instructions that make a tensor of a storage."""
    listed = [b"(" + b"".join(map(integer, values)) + b"t" for values in (shape, strides)]
    hooks = b"ccollections\nOrderedDict\n)R"
    return Spelled(
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + stored + integer(offset) + b"".join(listed) + b"\x89" + hooks + b"tR"
    )


def state_dict(*entries: tuple[str, bytes]) -> bytes:
    """Return the pickle of a dict of spelled values."""
    return PROTO + b"}(" + b"".join(text(name) + value for name, value in entries) + b"u."


def safetensors(header: str | bytes, body: bytes = bytes(16), length: int | None = None) -> bytes:
    """Return a safetensors file with the given header, and the length that it claims."""
    written = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(written) if length is None else length) + written + body
