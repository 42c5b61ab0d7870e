"""Measurements as rows of a JSON file, so that parts can be measured again and put among the others."""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Key = tuple[str, int, str]


@dataclass(frozen=True)
class Row:
    """One network quantized once by one method.

    Attributes:
        network: A key of NETWORKS.
        bits: Bits per weight.
        method: Recipe or comparator.
        top1: Percent.
        reference_top1: Of full precision, percent.
        agreement: Test images given the same class as by full precision, percent.
        held_out: Geometric mean over layers of the held-out relative loss.
        held_out_sum_ratio: Sum of held-out losses over sum of energies.
        seconds: Wall time of quantizing.
        cpu_seconds: CPU time of quantizing, all threads.
        added_mib: Peak resident memory while quantizing, less what was resident before, MiB.
        hits: Which test images are classified right: packed bits, deflated, base64.
        images: Number of test images.
        threads: Of torch.
        torch: Its version.
    """

    network: str
    bits: int
    method: str
    top1: float
    reference_top1: float
    agreement: float
    held_out: float
    held_out_sum_ratio: float
    seconds: float
    cpu_seconds: float
    added_mib: float
    hits: str
    images: int
    threads: int
    torch: str

    @property
    def key(self) -> Key:
        """What the row measures."""
        return self.network, self.bits, self.method

    @property
    def drop(self) -> float:
        """Points of top-1 lost against full precision."""
        return self.reference_top1 - self.top1


class Results:
    """Rows by key, and the file that they are kept in.

    Args:
        file: JSON; made when the first row comes.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        data: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
        self.rows: dict[Key, Row] = {}
        for row in (Row(**entry) for entry in data):
            self.rows[row.key] = row

    def add(self, row: Row) -> None:
        """Keep a row, in place of the one before."""
        self.rows[row.key] = row
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps([dataclasses.asdict(kept) for kept in self.rows.values()], indent=1))
        temporary.replace(self._file)

    def names(self, among: Iterable[str], place: int) -> list[str]:
        """Those of `among` that some row has at this place of its key, in the order of `among`."""
        present = {key[place] for key in self.rows}
        return [name for name in among if name in present]


def pack_hits(hits: npt.NDArray[np.bool_]) -> str:
    """The text form of bool [n]."""
    return base64.b64encode(zlib.compress(np.packbits(hits).tobytes())).decode()


def unpack_hits(row: Row) -> npt.NDArray[np.bool_]:
    """Inverse of `pack_hits`."""
    packed = np.frombuffer(zlib.decompress(base64.b64decode(row.hits)), np.uint8)
    return np.unpackbits(packed, count=row.images).astype(bool)


def paired_difference(row: Row, other: Row) -> tuple[float, float]:
    """Top-1 of `row` less that of `other`, and the standard error of the difference on the same images, in points.

    Far smaller than that of two separate accuracies, since both are right or wrong on mostly the same images.
    """
    difference = unpack_hits(row).astype(np.float64) - unpack_hits(other)
    return 100 * float(difference.mean()), 100 * float(difference.std(ddof=1)) / float(np.sqrt(len(difference)))
