"""Valid checkpoints with random damage, and with their checksums recomputed, so that the damage gets past those."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
from collections.abc import Iterator

import safetensors.torch
import torch

from benchmarks.hostile.spelling import MACHINE, MAGIC, VERSION
from edged.models.resnet import CifarResNet

_INTERESTING = (b"\0", b"\xff", b"\xff\xff\xff\x7f", b"\x80\x02", b".", b"R", b"cposix\nsystem\n", b"(", b"\xff" * 8)


def valid_files(seed: int = 0) -> dict[str, bytes]:
    """Return a ResNet-20 in each format."""
    torch.manual_seed(seed)
    state = {
        name: torch.randn(tensor.shape) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in CifarResNet(3).state_dict().items()
    }
    state = {name: tensor.abs() + 0.1 if "running_var" in name else tensor for name, tensor in state.items()}
    zipped = io.BytesIO()
    torch.save(state, zipped)
    return {"zip": zipped.getvalue(), "legacy": _as_legacy(zipped), "safetensors": safetensors.torch.save(state)}


def _as_legacy(zipped: io.BytesIO) -> bytes:
    """Return the same network in the format before torch 1.6. torch names its storages by their addresses there."""
    with zipfile.ZipFile(zipped) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    storages = {name.removeprefix("data/"): data for name, data in entries.items() if name.startswith("data/")}
    whole = {key: 8 if len(data) == 8 else 4 for key, data in storages.items()}  # counters are int64
    values = [struct.pack("<q", len(data) // whole[key]) + data for key, data in storages.items()]
    return b"".join([MAGIC, VERSION, MACHINE, entries["data.pkl"], pickle.dumps(list(storages), 2), *values])


def damaged(data: bytes, draw: random.Random, reach: int | None = None) -> bytes:
    """Return `data` with up to four changes: bits flipped, bytes replaced, removed, repeated, or the end cut off.

    Args:
        data: A file, or a part of one.
        draw: Random numbers.
        reach: Number of first bytes that are changed; None for all.
    """
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(min(reach or len(changed), len(changed)))
        kind = draw.randrange(5)
        if kind == 0:
            changed[start] ^= 1 << draw.randrange(8)
        elif kind == 1:
            new = draw.choice(_INTERESTING)
            changed[start : start + len(new)] = new
        elif kind == 2:
            del changed[start : start + draw.randint(1, 64)]
        elif kind == 3:
            piece = bytes(changed[start : start + draw.randint(1, 64)])
            changed[start:start] = piece * draw.choice((1, 2, 50))
        elif reach is None and draw.random() < 0.2:
            del changed[start:]
        if not changed:
            break
    return bytes(changed)


def mutations(count: int, seed: int = 0) -> Iterator[tuple[str, str, bytes]]:
    """Yield `count` damaged files of each kind: the kind, a name and the content."""
    draw, files = random.Random(seed), valid_files(seed)  # noqa: S311 - no secret
    reaches = {"zip": None, "legacy": 20_000, "safetensors": 12_000}  # of the latter two mostly the headers
    for number in range(count):
        for form, data in files.items():
            yield f"damaged {form}", f"drawn {number}", damaged(data, draw, reaches[form])
        yield "damaged pickle, checksum recomputed", f"drawn {number}", _mended(files["zip"], draw)


def _mended(data: bytes, draw: random.Random) -> bytes:
    """Return a zip whose pickle is damaged and whose checksums are right."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(info.filename, damaged(content, draw) if info.filename.endswith("data.pkl") else content)
    return file.getvalue()
