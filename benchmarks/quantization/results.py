"""Measurements as rows of a JSON file, so that single rows can be measured again."""

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
        top1: Top-1 accuracy, percent.
        reference_top1: Top-1 accuracy of full precision, percent.
        agreement: Test images with the same class as in full precision, percent.
        held_out: Geometric mean over layers of the held-out relative loss.
        held_out_sum_ratio: Sum of held-out losses over sum of energies.
        seconds: Wall time of quantizing.
        cpu_seconds: CPU time of quantizing, all threads.
        added_mib: Peak resident memory while quantizing, less what was resident before, MiB.
        hits: Which test images are classified correctly: packed bits, deflated, base64.
        images: Number of test images.
        threads: Threads of torch.
        torch: Version of torch.
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
        """Return network, bits and method."""
        return self.network, self.bits, self.method

    @property
    def drop(self) -> float:
        """Return the loss of top-1 relative to full precision in points."""
        return self.reference_top1 - self.top1


class Results:
    """Rows by key, and the file in which they are stored.

    Args:
        file: JSON file; created with the first row.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        data: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
        self.rows: dict[Key, Row] = {}
        for row in (Row(**entry) for entry in data):
            self.rows[row.key] = row

    def add(self, row: Row) -> None:
        """Store a row; it replaces an earlier row with the same key."""
        self.rows[row.key] = row
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps([dataclasses.asdict(kept) for kept in self.rows.values()], indent=1))
        temporary.replace(self._file)

    def names(self, among: Iterable[str], place: int) -> list[str]:
        """Return the values of `among` that occur at this place of a row's key, in the order of `among`."""
        present = {key[place] for key in self.rows}
        return [name for name in among if name in present]


def pack_hits(hits: npt.NDArray[np.bool_]) -> str:
    """Encode bool [n] as text."""
    return base64.b64encode(zlib.compress(np.packbits(hits).tobytes())).decode()


def unpacked(hits: str, images: int) -> npt.NDArray[np.bool_]:
    """Return what `pack_hits` packed for a number of images."""
    packed = np.frombuffer(zlib.decompress(base64.b64decode(hits)), np.uint8)
    return np.unpackbits(packed, count=images).astype(bool)


def unpack_hits(row: Row) -> npt.NDArray[np.bool_]:
    """Decode the hits of a row to bool [n]."""
    return unpacked(row.hits, row.images)


def paired_difference(row: Row, other: Row) -> tuple[float, float]:
    """Return top-1 of `row` minus that of `other`, and its standard error on the same images, in points.

    The error is far smaller than that of two independent accuracies, because both methods classify mostly the same
    images correctly.
    """
    difference = unpack_hits(row).astype(np.float64) - unpack_hits(other)
    return 100 * float(difference.mean()), 100 * float(difference.std(ddof=1)) / float(np.sqrt(len(difference)))
