"""The file formats of checkpoints: where each tensor's bytes lie. Detected by content, never by the file's name."""

from __future__ import annotations

import io
import json
import mmap
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from edged.errors import CheckpointError, TooLargeError, UnsafeCheckpointError
from edged.models.pickle_reader import MAX_PICKLE_BYTES, read_pickle
from edged.models.refs import StorageRef, non_negative, quoted, tensor_ref

MAX_DIRECTORY_BYTES = 4 << 20  # of a zip: room for 40,000 entries
MAX_HEADER_BYTES = 4 << 20  # of a safetensors file

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, then the lengths of the name and of the extra field
_CLOSED_WRONGLY = "it is cut off or damaged; copy it again"
_SAFETENSORS_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Contents:
    """A file taken apart.

    Attributes:
        format: "torch-zip", "torch-legacy" or "safetensors".
        tree: What was saved: plain data with `TensorRef` leaves.
        starts: Where each storage begins in the file, bytes, by storage key. Each storage is known to fit.
    """

    format: str
    tree: Any
    starts: Mapping[str, int]


def read_contents(data: mmap.mmap) -> Contents:
    """Take a checkpoint file apart without running anything of it.

    Args:
        data: The whole file. Only headers, the pickle and (for checksums) the entries of a zip are read.

    Raises:
        CheckpointError: It is none of the formats, or damaged.
        UnsafeCheckpointError: It names code, or is built to exhaust the machine.
        TooLargeError: A header is over its limit.
    """
    head = data[:16]
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(data)
    if head.startswith(b"\x80"):
        return _read_legacy(data)
    if head[8:9] == b"{":
        return _read_safetensors(data)
    raise CheckpointError(f"{_guess(head)}; give a file of torch.save(model.state_dict()) or a .safetensors file")


def _guess(head: bytes) -> str:
    known = {b"\x1f\x8b": "it is gzip-compressed", b"\x89HDF": "it is an HDF5 file", b"GGUF": "it is a GGUF file"}
    for start, reason in known.items():
        if head.startswith(start):
            return reason
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return "it is a text file"
    return f"it is no checkpoint (it starts with the bytes {head[:4].hex(' ')})"


class _DirectoryFile(io.RawIOBase):
    """The mapped file for zipfile, which reads a directory of any size in one go: this refuses an oversized one."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._position = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._data)}[whence]
        if base + offset < 0:
            raise OSError("seek before the start")
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        end = len(self._data) if size < 0 else min(self._position + size, len(self._data))
        if end - self._position > MAX_DIRECTORY_BYTES:
            raise TooLargeError(f"its zip directory is over {MAX_DIRECTORY_BYTES} bytes")
        piece = self._data[self._position : end]
        self._position += len(piece)
        return piece


def _read_zip(data: mmap.mmap) -> Contents:
    entries = _checked_entries(data)
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"it is a zip with {len(pickles)} entries */data.pkl; torch.save writes exactly one")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in entries:
        raise CheckpointError("it is a TorchScript archive; save model.state_dict() instead")
    order = entries.get(f"{prefix}byteorder")
    if order and data[order[0] : order[0] + min(order[1], 8)] != b"little":
        raise CheckpointError("it was saved on a big-endian machine; save it again on a little-endian one")
    start, size = entries[pickles[0]]
    if size > MAX_PICKLE_BYTES:
        raise TooLargeError(f"its pickle has {size} bytes, the limit is {MAX_PICKLE_BYTES}; save only the state dict")
    tree, storages = read_pickle(io.BytesIO(data[start : start + size]))
    starts = {}
    for key, storage in storages.items():
        entry = entries.get(f"{prefix}data/{key}")
        if entry is None or entry[1] < storage.nbytes:
            raise CheckpointError(
                f"storage {quoted(key)} needs {storage.nbytes} bytes, the zip has {entry and entry[1]}"
            )
        starts[key] = entry[0]
    return Contents("torch-zip", tree, starts)


def _checked_entries(data: mmap.mmap) -> dict[str, tuple[int, int]]:
    """Start and size of each entry; all are known to be stored as they are, inside the file, and true to their CRC."""
    try:
        with zipfile.ZipFile(_DirectoryFile(data)) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error, EOFError, OverflowError):
        raise CheckpointError(f"its zip directory cannot be read: {_CLOSED_WRONGLY}") from None
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise UnsafeCheckpointError(
                f"zip entry {quoted(info.filename)} is compressed or encrypted; torch.save stores entries as they are"
            )
    if sum(info.file_size for info in infos) > len(data):
        raise UnsafeCheckpointError("its zip entries overlap: together they are larger than the file")
    view = memoryview(data)
    entries: dict[str, tuple[int, int]] = {}
    for info in infos:
        start = _data_start(data, info)
        if info.filename in entries:
            raise UnsafeCheckpointError(f"zip entry {quoted(info.filename)} is there twice")
        if zlib.crc32(view[start : start + info.file_size]) != info.CRC:
            raise CheckpointError(f"zip entry {quoted(info.filename)} fails its checksum: {_CLOSED_WRONGLY}")
        entries[info.filename] = (start, info.file_size)
    return entries


def _data_start(data: mmap.mmap, info: zipfile.ZipInfo) -> int:
    header = data[info.header_offset : info.header_offset + _LOCAL_HEADER.size] if info.header_offset >= 0 else b""
    if len(header) == _LOCAL_HEADER.size:
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start: int = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if signature == b"PK\x03\x04" and start + info.file_size <= len(data):
            return start
    raise CheckpointError(f"zip entry {quoted(info.filename)} lies outside the file: {_CLOSED_WRONGLY}")


def _read_legacy(data: mmap.mmap) -> Contents:
    """The format before torch 1.6.

    Five pickles (magic, protocol, machine, object, storage keys), then count and bytes of each storage.
    """
    stream = io.BytesIO(data[:MAX_PICKLE_BYTES])
    if read_pickle(stream)[0] != LEGACY_MAGIC or read_pickle(stream)[0] != LEGACY_PROTOCOL:
        raise CheckpointError("it is a pickle, but not one of torch.save; save model.state_dict() with torch.save")
    machine, _ = read_pickle(stream)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise CheckpointError("it was saved on a big-endian machine; save it again on a little-endian one")
    tree, storages = read_pickle(stream)
    keys, _ = read_pickle(stream)
    if not isinstance(keys, list):
        raise CheckpointError("its list of storages is damaged; save it again with a current torch")
    position = stream.tell()
    starts: dict[str, int] = {}
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None or key in starts:
            raise CheckpointError(
                f"its list of storages names {quoted(key)}, which no tensor uses or which is there twice"
            )
        count = int.from_bytes(data[position : position + 8], "little", signed=True)
        starts[key] = position + 8
        position += 8 + storage.nbytes
        if count != storage.numel or position > len(data):
            raise CheckpointError(f"storage {quoted(key)} lacks values: {_CLOSED_WRONGLY}")
    if missing := sorted(storages.keys() - starts.keys()):
        raise CheckpointError(f"storage {quoted(missing[0])} has no data: {_CLOSED_WRONGLY}")
    return Contents("torch-legacy", tree, starts)


def _read_safetensors(data: mmap.mmap) -> Contents:
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise TooLargeError(f"its safetensors header claims {length} bytes, the limit is {MAX_HEADER_BYTES}")
    if 8 + length > len(data):
        raise CheckpointError(f"its safetensors header has {length} bytes, the file {len(data)}: {_CLOSED_WRONGLY}")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        raise CheckpointError("its safetensors header is not JSON: it is no checkpoint, or damaged") from None
    header.pop("__metadata__", None)
    tree, starts, total = {}, {}, 0
    for name, entry in header.items():
        kind = entry.get("dtype") if isinstance(entry, dict) else None
        dtype = _SAFETENSORS_DTYPES.get(kind) if isinstance(kind, str) else None
        if dtype is None:
            raise CheckpointError(f"tensor {quoted(name)} has no type that edged knows; save it as F32 or F16")
        shape, offsets = non_negative(entry.get("shape")), non_negative(entry.get("data_offsets"))
        begin, end = offsets if len(offsets) == 2 else (0, -1)
        stride = [1]
        for size in reversed(shape[1:]):
            stride.insert(0, stride[0] * max(size, 1))
        numel = (end - begin) // dtype.itemsize
        ref = tensor_ref(StorageRef(name, dtype, max(numel, 0)), 0, shape, stride[: len(shape)])
        if ref.nbytes != end - begin or 8 + length + end > len(data):
            raise CheckpointError(f"tensor {quoted(name)} lies outside the file or has another size: {_CLOSED_WRONGLY}")
        tree[name], starts[name], total = ref, 8 + length + begin, max(total, end)
    if 8 + length + total != len(data):
        raise CheckpointError(
            f"its tensors take {8 + length + total} bytes, the file has {len(data)}: {_CLOSED_WRONGLY}"
        )
    return Contents("safetensors", tree, starts)
