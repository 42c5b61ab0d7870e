"""The file formats of checkpoints. A file is recognized by its content, checked as a whole and read as inert data."""

from __future__ import annotations

import io
import json
import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from edged.errors import CheckpointError, TooLargeError, UnsafeCheckpointError
from edged.models.file_signs import HEAD_BYTES, foreign_format, foreign_zip
from edged.models.inert_pickle import Storage, StoredTensor, read_pickle
from edged.models.pickle_scan import MAX_PICKLE_BYTES, quoted, scan_pickle

MAX_DIRECTORY_BYTES = 4 << 20  # of a zip: room for 40,000 entries
MAX_HEADER_BYTES = 4 << 20  # of a safetensors file
MAX_SAFETENSORS = 20_000
MAX_SAFETENSORS_DIMENSIONS = 64  # torch has no tensors of more
PIECE_BYTES = 8 << 20  # of a file that is read as a whole

_SAFETENSORS_TYPES: Mapping[str, torch.dtype] = {
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
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_COUNT_BYTES = 8  # before the values of each storage
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, then the lengths of the name and of the extra field
_CLOSED_WRONGLY = "it is cut off or damaged; copy it again"


@dataclass(frozen=True)
class Contents:
    """The contents of a checkpoint file.

    Attributes:
        format: "torch-zip", "torch-legacy" or "safetensors".
        tree: The saved object: plain data with `StoredTensor`s and `Inert` objects.
        places: First byte and size in bytes of each storage, by key.
        path: Path of the file, for mapping it.
    """

    format: str
    tree: Any
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    path: str = ""

    @cached_property
    def _map(self) -> mmap.mmap:
        with Path(self.path).open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    @cached_property
    def _mapped(self) -> torch.UntypedStorage:
        return torch.frombuffer(self._map, dtype=torch.uint8).untyped_storage()

    @cached_property
    def _storages(self) -> dict[str, torch.UntypedStorage]:
        return {}

    def forget_pages(self) -> None:
        """Give the mapped pages that were read back to the system; they are read from the file again when needed.

        No tensor of the file may have been written to before.
        """
        self._map.madvise(mmap.MADV_DONTNEED)  # what stays mapped counts as this process's memory

    def tensor(self, stored: StoredTensor) -> torch.Tensor:
        """Return the tensor that `stored` describes, mapped from the file copy-on-write.

        Tensors that share a storage in the file share it here, too.

        Raises:
            CheckpointError: Its values are of a type that edged does not read.
        """
        storage = stored.storage
        if storage.dtype is None:
            raise CheckpointError(f"its values are of type {quoted(storage.kind)}; save them as float32")
        if storage.key not in self._storages:
            start, _ = self.places[storage.key]
            whole = self._mapped
            self._storages[storage.key] = whole[start : start + storage.nbytes]
        empty = torch.empty(0, dtype=storage.dtype)
        return empty.set_(self._storages[storage.key], stored.offset, stored.shape, stored.strides)


def read_contents(data: mmap.mmap, path: str) -> Contents:
    """Check a checkpoint file and read it; tensors stay in the file until they are asked for.

    Args:
        data: The whole file. Only headers, the pickle and (for checksums) the entries of a zip are read.
        path: The same file, for the libraries that read it.

    Raises:
        CheckpointError: The file has none of the formats, or is damaged.
        UnsafeCheckpointError: The file names functions that run code, or is built to exhaust the machine.
        TooLargeError: A header is over its limit.
    """
    head = data[:HEAD_BYTES]
    if head[8:9] == b"{":  # after a length, whose first byte may be that of a pickle
        return _read_safetensors(data, path)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(data, path)
    if head.startswith(b"\x80"):
        return _read_legacy(data, path)
    raise CheckpointError(foreign_format(head))


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


def pieces(data: mmap.mmap, start: int, stop: int) -> Iterator[memoryview]:
    """Yield the bytes start..stop of a mapped file, a piece at a time; a piece is released before the next is read."""
    for offset in range(start, stop, PIECE_BYTES):
        with memoryview(data) as view, view[offset : min(offset + PIECE_BYTES, stop)] as piece:
            yield piece
        data.madvise(mmap.MADV_DONTNEED)  # what stays mapped counts as this process's memory


def _read_zip(data: mmap.mmap, path: str) -> Contents:
    entries = _checked_entries(data)
    pickles = [name for name in entries if name.lower().endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"it is a zip with {len(pickles)} entries */data.pkl; torch.save writes exactly one")
    prefix = pickles[0][: -len("data.pkl")]
    order = entries.get(f"{prefix}byteorder")
    if order and data[order[0] : order[0] + min(order[1], 8)] != b"little":
        raise CheckpointError("it was saved on a big-endian machine; save it again on a little-endian one")
    start, size = entries[pickles[0]]
    if size > MAX_PICKLE_BYTES:
        raise TooLargeError(f"its pickle has {size} bytes, the limit is {MAX_PICKLE_BYTES}; save only the state dict")
    pickled = data[start : start + size]
    scan_pickle(io.BytesIO(pickled))
    tree, storages, _ = read_pickle(pickled)
    places = {}
    for key, storage in storages.items():
        entry = entries.get(f"{prefix}data/{key}")
        if entry is None or entry[1] < storage.nbytes:
            raise CheckpointError(
                f"storage {quoted(key)} needs {storage.nbytes} bytes, the zip has {entry and entry[1]}"
            )
        places[key] = entry
    return Contents("torch-zip", tree, places, path)


def _checked_entries(data: mmap.mmap) -> Mapping[str, tuple[int, int]]:
    """Return the start and size of each entry, after checking that all are uncompressed and match their checksum."""
    try:
        with zipfile.ZipFile(_DirectoryFile(data)) as archive:
            infos, start = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error, EOFError, OverflowError):
        raise CheckpointError(f"its zip directory cannot be read: {_CLOSED_WRONGLY}") from None
    if not _is_plain(data, start) or any(info.filename != info.orig_filename for info in infos):
        raise UnsafeCheckpointError("its zip directory is laid out in a way that torch.save never writes")
    _check_stored(infos, len(data))
    entries: dict[str, tuple[int, int]] = {}
    for info in infos:
        start, crc = _data_start(data, info), 0
        for piece in pieces(data, start, start + info.file_size):
            crc = zlib.crc32(piece, crc)
        if crc != info.CRC:
            raise CheckpointError(f"zip entry {quoted(info.filename)} fails its checksum: {_CLOSED_WRONGLY}")
        entries[info.filename] = (start, info.file_size)
    return entries


def _check_stored(infos: list[zipfile.ZipInfo], size: int) -> None:
    """Check that each entry occurs once and uncompressed, and that together they are no larger than the file."""
    if foreign := foreign_zip([info.filename for info in infos]):
        raise CheckpointError(foreign)
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise UnsafeCheckpointError(
                f"zip entry {quoted(info.filename)} is compressed or encrypted; torch.save stores entries as they are"
            )
    if sum(info.file_size for info in infos) > size:
        raise UnsafeCheckpointError("its zip entries overlap: together they are larger than the file")
    if len({info.filename.lower() for info in infos}) < len(infos):
        raise UnsafeCheckpointError("a zip entry occurs twice; torch.save writes each once")


def _is_plain(data: mmap.mmap, start: int) -> bool:
    """Return whether torch's zip library is bound to find the directory at `start`, too."""
    if data[-22:-18] != b"PK\x05\x06" or data[-2:] != b"\0\0":  # the end record, without a comment
        return False
    if data[-42:-38] != b"PK\x06\x07":  # the locator of a 64-bit end record
        return int.from_bytes(data[-6:-2], "little") == start
    located, offset = int.from_bytes(data[-34:-26], "little"), int.from_bytes(data[-50:-42], "little")
    return located == len(data) - 98 and data[-98:-94] == b"PK\x06\x06" and offset == start


def _data_start(data: mmap.mmap, info: zipfile.ZipInfo) -> int:
    header = data[info.header_offset : info.header_offset + _LOCAL_HEADER.size] if info.header_offset >= 0 else b""
    if len(header) == _LOCAL_HEADER.size:
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start: int = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if signature == b"PK\x03\x04" and start + info.file_size <= len(data):
            return start
    raise CheckpointError(f"zip entry {quoted(info.filename)} is outside the file: {_CLOSED_WRONGLY}")


def _read_legacy(data: mmap.mmap, path: str) -> Contents:
    """Read the format before torch 1.6.

    Five pickles (magic, version, machine, object, storage keys), then count and bytes of each storage.
    """
    stream = io.BytesIO(data[:MAX_PICKLE_BYTES])
    scan_pickle(stream)  # reports the fault of a plain pickle
    magic, _, _ = read_pickle(stream.getvalue())
    if magic != _LEGACY_MAGIC:
        raise CheckpointError("it is a pickle, but not one of torch.save; save model.state_dict() with torch.save")
    for _ in ("version", "machine"):
        scan_pickle(stream)
    start = stream.tell()
    scan_pickle(stream)
    tree, storages, _ = read_pickle(stream.getvalue(), start)
    start = stream.tell()
    scan_pickle(stream)
    keys, _, end = read_pickle(stream.getvalue(), start)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise CheckpointError("its list of storages is not that of its tensors; save it again with a current torch")
    places = {}
    for key in keys:
        count = int.from_bytes(data[end : end + _COUNT_BYTES], "little")
        end += _COUNT_BYTES
        if count != storages[key].numel or end + storages[key].nbytes > len(data):
            needed = sum(storage.nbytes for storage in storages.values())
            raise CheckpointError(f"its storages need {needed} bytes, more than it has: {_CLOSED_WRONGLY}")
        places[key] = end, storages[key].nbytes
        end += storages[key].nbytes
    return Contents("torch-legacy", tree, places, path)


def _read_safetensors(data: mmap.mmap, path: str) -> Contents:
    """Read the header, which the library has checked; it says the type, the shape and the place of each tensor."""
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise TooLargeError(f"its safetensors header claims {length} bytes, the limit is {MAX_HEADER_BYTES}")
    if 8 + length > len(data):
        raise CheckpointError(f"its safetensors header has {length} bytes, the file {len(data)}: {_CLOSED_WRONGLY}")
    try:
        with safe_open(path, framework="np"):  # raises if tensors overlap, leave gaps or do not fill the file
            header = json.loads(data[8 : 8 + length], object_pairs_hook=_without_repetition)
            header.pop("__metadata__", None)
            if len(header) > MAX_SAFETENSORS:
                raise TooLargeError(f"the state dict has {len(header)} entries, the limit is {MAX_SAFETENSORS}")
            described = {name: _described(name, entry) for name, entry in header.items()}
            places = {name: (8 + length + begin, end - begin) for name, (_, begin, end) in described.items()}
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"its safetensors header is damaged ({quoted(error)}): {_CLOSED_WRONGLY}") from None
    return Contents("safetensors", {name: tensor for name, (tensor, _, _) in described.items()}, places, path)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _described(name: str, entry: Mapping[str, Any]) -> tuple[StoredTensor, int, int]:
    """Return a tensor as the header describes it, and the first byte and the end of its values."""
    shape, (begin, end), kind = entry["shape"], entry["data_offsets"], entry["dtype"]
    if len(shape) > MAX_SAFETENSORS_DIMENSIONS:
        raise CheckpointError(f"tensor {quoted(name)} has {len(shape)} dimensions; save the network as float32")
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    storage = Storage(name, _SAFETENSORS_TYPES.get(kind), math.prod(shape), kind)
    return StoredTensor(storage, 0, tuple(shape), strides), begin, end
