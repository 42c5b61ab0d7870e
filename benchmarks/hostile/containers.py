"""Hostile containers: zips, legacy files, tar archives and safetensors whose headers lie."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping

from benchmarks.hostile.spelling import as_legacy, as_zip, call, safetensors, state_dict, tensor

GOOD = state_dict(("w", tensor(0, (4,), (1,))))
_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"

# What stands after the keys of a legacy file's one storage of four values.
LEGACY_LIES: Mapping[str, bytes] = {
    "a count above the file's": struct.pack("<q", 1 << 40) + bytes(16),
    "a count below zero": struct.pack("<q", -1) + bytes(16),
    "another count than the pickle's": struct.pack("<q", 3) + bytes(16),
    "no values": struct.pack("<q", 4),
    "no count": b"",
}


def described(**changes: object) -> str:
    """Return the header's entry of a tensor of four values, with changes."""
    return json.dumps({"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes)


HEADERS: Mapping[str, str] = {
    "a name twice": f'{{"w": {described()}, "w": {described(data_offsets=[0, 16])}}}',
    "overlapping tensors": f'{{"a": {described()}, "b": {described(shape=[2], data_offsets=[8, 16])}}}',
    "a gap": f'{{"a": {described(shape=[2], data_offsets=[8, 16])}}}',
    "an end beyond the file": f'{{"a": {described(shape=[1 << 30], data_offsets=[0, 4 << 30])}}}',
    "a size below zero": f'{{"a": {described(shape=[-4])}}}',
    "a size that overflows": f'{{"a": {described(shape=[1 << 62, 1 << 62])}}}',
    "a size as text": f'{{"a": {described(shape=["4"])}}}',
    "an unknown type": f'{{"a": {described(dtype="Q4")}}}',
    "a list": "[]",
    "half a header": '{"a": {"dtype": "F32"',
    "metadata of a wrong kind": f'{{"__metadata__": [1], "a": {described()}}}',
}


def zip_of(*entries: tuple[str, bytes], compression: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    """Return a zip of entries by name, in this order."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names that occur twice
        for name, content in entries:
            archive.writestr(name, content)
        archive.comment = comment
    return file.getvalue()


def patched(data: bytes, *changes: tuple[bytes, int, bytes]) -> bytes:
    """Return `data` with bytes replaced at a distance from the last occurrence of a signature."""
    changed = bytearray(data)
    for signature, distance, new in changes:
        start = data.rindex(signature) + distance
        changed[start : start + len(new)] = new
    return bytes(changed)


def zips(evil: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield zips that readers understand differently, that expand, or that hold other files.

    Args:
        evil: A pickle that runs code where it is loaded.
    """
    good = as_zip(GOOD)
    pair = ("m/data.pkl", GOOD), ("m/data/0", bytes(16))
    yield "a bomb of 64 MB", zip_of(pair[0], ("m/data/0", bytes(64 << 20)), compression=zipfile.ZIP_DEFLATED)
    yield "a pickle that is compressed", zip_of(*pair, compression=zipfile.ZIP_DEFLATED)
    yield "a pickle in bzip2", zip_of(*pair, compression=zipfile.ZIP_BZIP2)
    yield "a pickle in LZMA", zip_of(*pair, compression=zipfile.ZIP_LZMA)
    yield "a zip in a zip", zip_of(("m/data.pkl", good), ("m/data/0", bytes(16)))
    yield "a checkpoint in a zip", zip_of(("best.pt", good))
    nested = good
    for depth in range(50):
        nested = zip_of((f"{depth}/data.pkl", nested))
    yield "fifty zips in each other", nested
    yield "two pickles", zip_of(*pair, ("n/data.pkl", evil))
    yield "a second pickle in capitals", zip_of(*pair, ("M/DATA.PKL", evil))
    yield "the same name twice", zip_of(*pair, ("m/data.pkl", evil))
    yield "a storage twice", zip_of(*pair, ("m/data/0", bytes(16)))
    yield "a path upwards", zip_of(("../../m/data.pkl", evil), pair[1])
    yield "an absolute path", zip_of(("/m/data.pkl", evil), pair[1])
    yield "a name with a null", patched(zip_of(("m/data.pklXx", evil), pair[1]), (b"m/data.pklXx", 10, b"\0"))
    yield "no pickle", zip_of(pair[1])
    yield "no storage", zip_of(pair[0])
    yield "no entries", zip_of()
    yield "a storage too short", zip_of(pair[0], ("m/data/0", bytes(15)))
    yield "a comment with a directory of its own", zip_of(*pair, comment=zip_of(("m/data.pkl", evil)))
    yield "a zip after a zip", good + zip_of(("m/data.pkl", evil), pair[1])
    yield "a pickle before a zip", pickle.dumps([0] * 9, 2) + good
    yield "bytes after the end", good + bytes(100)
    yield "an end record twice", good + good[good.rindex(_END) :]
    yield "big-endian", zip_of(*pair, ("m/byteorder", b"big"))
    yield "code of TorchScript", zip_of(*pair, ("m/constants.pkl", evil), ("m/code/a.py", b"import os"))
    yield "a torch.package", zip_of(*pair, ("m/.data/version", b"6"), ("m/x.py", b"import os"))
    yield "40,001 entries", zip_of(*pair, *((f"m/{index}", b"") for index in range(40_001)))
    yield "names of 60 KB", zip_of(*pair, *((f"{index}" * 12_000, b"") for index in range(10_000, 10_100)))
    yield from _lying_zips(good, zip_of(pair[0], ("m/data/0", bytes(16)), ("m/evil.pkl", evil)))


def _lying_zips(good: bytes, two: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield zips whose records contradict each other."""
    huge = struct.pack("<I", 0xFFFFFFF0)
    fields = {"method": (10, b"\x08\x00"), "flags": (8, b"\x01\x00"), "checksum": (16, b"\xde\xad\xbe\xef")}
    fields |= {"compressed size": (20, huge), "size": (24, huge), "size of a value less": (24, b"\x0c\0\0\0")}
    fields |= {"length of the name": (28, b"\xff\xff"), "length of the extra field": (30, b"\xff\xff")}
    fields |= {"length of the comment": (32, b"\xff\xff"), "disk": (34, b"\x01\x00"), "place": (42, huge)}
    fields |= {"place of another entry": (42, bytes(4)), "all sizes of 64 bits": (20, b"\xff" * 8)}
    for name, (distance, new) in fields.items():
        yield f"another {name} in the directory", patched(good, (_CENTRAL, distance, new))
    for name, (distance, new) in fields.items():
        if 8 <= distance <= 30:
            yield f"another {name} in the entry", patched(good, (_LOCAL, distance - 2, new))
    ends = {
        "disk": 4,
        "disk of the directory": 6,
        "entries here": 8,
        "entries": 10,
        "size": 12,
        "start": 16,
        "comment": 20,
    }
    for name, distance in ends.items():
        for value in (b"\xff\xff", b"\x00\x00", b"\x01\x00"):
            changed = patched(good, (_END, distance, value))
            if changed != good:
                yield f"{name} {int.from_bytes(value, 'little')} in the end record", changed
    first, second = two.index(_CENTRAL), two.rindex(_CENTRAL)
    place = two[first + 42 : first + 46]
    yield "overlapping entries", two[: second + 42] + place + two[second + 46 :]
    yield "no signature", b"PK\x03\x05" + good[4:]
    yield "no directory", good[: good.index(_CENTRAL)]


def tars(evil: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield tar archives, which torch.load reads as its oldest format, past its own checks (CVE-2025-32434)."""
    members = {
        "sys_info": MACHINE_OF_TAR,
        "pickle": evil,
        "storages": pickle.dumps(0, 2),
        "tensors": pickle.dumps(0, 2),
    }
    for kind in ("", "gz", "bz2", "xz"):
        for names in (tuple(members), ("pickle",), ("../pickle", "storages")):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode=f"w:{kind}" if kind else "w") as archive:
                for name in names:
                    info = tarfile.TarInfo(name)
                    content = members.get(name.removeprefix("../"), b"")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
            yield f"{kind or 'plain'} with {', '.join(names)}", file.getvalue()


MACHINE_OF_TAR = pickle.dumps({"protocol_version": 1000, "little_endian": True, "type_sizes": {}}, 2)


def legacy_lies(evil: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield legacy files whose parts contradict each other."""
    head = as_legacy(GOOD, 0)[:-8]
    for name, end in LEGACY_LIES.items():
        yield name, head + end
    magic, rest = as_legacy(GOOD)[:14], as_legacy(GOOD)
    yield "another magic number", magic.replace(b"\x6c", b"\x6d") + rest[len(magic) :]
    yield "code in place of the magic number", b"\x80\x02" + call("posix.system", "touch x") + b"." + rest
    yield "code in place of the keys", head[: head.rindex(b"\x80\x02")] + evil + bytes(64)
    yield "no keys", head[: head.rindex(b"\x80\x02")]
    for keys in (["1"], ["0", "0"], [], [0], {"0": 0}, "0", ["../0"], ["0"] * 100_000):
        yield f"keys {str(keys)[:20]}", head[: head.rindex(b"\x80\x02")] + pickle.dumps(keys, 2) + bytes(64)
    yield "ten copies", as_legacy(GOOD)[:-1] * 10


def safetensors_lies() -> Iterator[tuple[str, bytes]]:
    """Yield safetensors files whose header cannot be, or costs more than it should."""
    for name, header in HEADERS.items():
        yield name, safetensors(header)
    good = f'{{"a": {described()}}}'
    for length in (
        0,
        1,
        7,
        len(good) - 1,
        len(good) + 1,
        1 << 22,
        (1 << 22) + 1,
        1 << 40,
        (1 << 63) - 1,
        (1 << 64) - 1,
    ):
        yield f"a length of {length}", safetensors(good, length=length)
    yield "1,000,000 brackets", safetensors('{"a":' + "[" * 1_000_000)
    yield "100,000 dicts in each other", safetensors('{"a":' * 100_000 + "1" + "}" * 100_000)
    yield "metadata of 4 MB", safetensors(f'{{"__metadata__": {{"x": "{"y" * (4 << 20)}"}}, "a": {described()}}}')
    yield "metadata in metadata", safetensors(f'{{"__metadata__": {{"x": {{"y": "z"}}}}, "a": {described()}}}')
    yield (
        "20,001 tensors",
        safetensors(
            json.dumps({f"t{k}": {"dtype": "U8", "shape": [1], "data_offsets": [k, k + 1]} for k in range(20_001)}),
            bytes(20_001),
        ),
    )
    yield "bytes that are no text", safetensors(b'{"\xff\xfe": ' + described().encode() + b"}")
    yield "half of a surrogate", safetensors(f'{{"\\ud800": {described()}}}')
    yield (
        "a number of 100,000 digits",
        safetensors(f'{{"a": {described(shape="N")}}}'.replace('"N"', f"[{'9' * 100_000}]")),
    )
    for number in ("1e400", "NaN", "-0", "4.0", "true", "null", "1e1"):
        yield f"a size of {number}", safetensors(f'{{"a": {described(shape="N")}}}'.replace('"N"', f"[{number}]"))
    yield (
        "100,000 dimensions",
        safetensors(f'{{"a": {described(shape=[1] * 100_000, dtype="F32", data_offsets=[0, 4])}}}'),
    )
    yield "no dimension of 2 ** 62", safetensors(f'{{"a": {described(shape=[0, 1 << 62], data_offsets=[0, 0])}}}', b"")
    yield "a missing key", safetensors('{"a": {"dtype": "F32", "shape": [4]}}')
    yield "an unknown key", safetensors(f'{{"a": {described(code="import os")}}}')
    yield "offsets in the wrong order", safetensors(f'{{"a": {described(data_offsets=[16, 0])}}}')
    yield "three offsets", safetensors(f'{{"a": {described(data_offsets=[0, 8, 16])}}}')
    yield "offsets of 64 bits", safetensors(f'{{"a": {described(data_offsets=[0, (1 << 64) - 1])}}}')
    yield "more bytes than tensors", safetensors(good, bytes(17))
    yield "fewer bytes than tensors", safetensors(good, bytes(15))
    yield "a name of 1 MB", safetensors(f'{{"{"a" * 1_000_000}": {described()}}}')
    yield "a null in a name", safetensors(f'{{"a\\u0000b": {described()}}}')
    for kind in ("F8_E4M3", "F8_E5M2", "F4", "C64", "U64", "U16", "f32", "", "object"):
        yield f"type {kind or 'of no name'}", safetensors(f'{{"a": {described(dtype=kind)}}}')


def bare_pickles(evil: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield pickles without a container, and with bytes around them."""
    yield "as it is", evil
    yield "after a legacy file", as_legacy(GOOD) + evil
    yield "after zeros", bytes(64) + evil
    yield "twice", evil * 2
    yield "in the storage of a legacy file", as_legacy(GOOD)[:-16] + evil[:16].ljust(16, b"\0")
    yield "in the storage of a zip", zip_of(("m/data.pkl", GOOD), ("m/data/0", evil.ljust(16, b"\0")))
    yield "in the storage that is the pickle", zip_of(("m/data.pkl", GOOD), ("m/data/0/data.pkl", evil))
