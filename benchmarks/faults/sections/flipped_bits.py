"""Flipped bits: checkpoints that a bad disk or a bad transfer has changed, with and without a checksum next to them."""

from __future__ import annotations

import argparse
import functools
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from benchmarks.faults.section import Row
from benchmarks.faults.trained import trained
from benchmarks.markdown import table
from edged.calibration.dataset import ImageCache, build_cache
from edged.errors import RejectedError
from edged.evaluation.gates import Gates
from edged.models.loading import load_checkpoint
from edged.pipeline.soundness import sound_network
from service.intake.claim import ChecksumError, claim
from service.intake.drop_folder import write_sidecar
from tests.support.tasks import Task
from tests.support.trained import INPUT

TITLE = "Flipped bits"
FILES = 50
AT_ONCE = 50
OUTCOMES = ("reader", "gates", "taken")
_SEED = 1
_HIGHEST = 30  # bit of a float32: the highest of its exponent
_LARGEST = 2.0  # of the values without that bit


class Checkpoint:
    """A trained network as a safetensors file.

    Args:
        task: Trained networks.

    Attributes:
        data: Content of the file.
        header_bytes: Length of its header; float32 values follow.
    """

    def __init__(self, task: Task) -> None:
        state = torch.load(task.first, weights_only=True)
        floats = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
        self.data = safetensors.torch.save(floats)
        self.header_bytes = 8 + int.from_bytes(self.data[:8], "little")

    @functools.cached_property
    def small(self) -> list[int]:
        """Indices of the values without the highest bit of an exponent."""
        values = np.frombuffer(self.data, "<f4", offset=self.header_bytes)
        return [int(index) for index in np.flatnonzero(np.abs(values) < _LARGEST)]

    def flipped(self, bits: list[int]) -> bytes:
        """Return the content with some bits flipped, counted from the lowest of the first byte on."""
        changed = bytearray(self.data)
        for bit in bits:
            changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)


def _anywhere(good: Checkpoint, draw: random.Random) -> list[int]:
    return [draw.randrange(8 * len(good.data))]


def _in_header(good: Checkpoint, draw: random.Random) -> list[int]:
    return [draw.randrange(8 * good.header_bytes)]


def _exponent(good: Checkpoint, draw: random.Random) -> list[int]:
    return [8 * (good.header_bytes + 4 * draw.choice(good.small)) + _HIGHEST]


def _many(good: Checkpoint, draw: random.Random) -> list[int]:
    return draw.sample(range(8 * len(good.data)), AT_ONCE)


KINDS: Mapping[str, Callable[[Checkpoint, random.Random], list[int]]] = {
    "one bit anywhere": _anywhere,
    "one bit of the header": _in_header,
    "the highest bit of the exponent of a value below 2": _exponent,
    f"{AT_ONCE} bits anywhere": _many,
}


def measure(options: argparse.Namespace) -> list[Row]:
    """Read --times files of each kind; return a row for each kind."""
    with trained() as (task, folder):
        good, images = Checkpoint(task), build_cache(task.calibration, folder / "cache", INPUT)
        return [tried(kind, good, images, folder, options.times or FILES) for kind in KINDS]


def tried(kind: str, good: Checkpoint, images: ImageCache, folder: Path, files: int) -> Row:
    """Return what became of files of one kind: with a checksum, and without.

    Args:
        kind: One of KINDS.
        good: The checkpoint that bits are flipped of.
        images: Its calibration images.
        folder: Folder to work in.
        files: Number of files.
    """
    draw = random.Random(_SEED)  # noqa: S311 - not for secrets
    path, claimed = folder / "flipped.safetensors", folder / "claimed"
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    for _ in range(files):
        bits = KINDS[kind](good, draw)
        path.write_bytes(good.flipped(bits))
        try:
            outcomes[outcome_of(path, images)] += 1
            write_sidecar(path, hashlib.sha256(good.data).hexdigest())
            claim(path, claimed)
        except ChecksumError:
            outcomes["checksum"] += 1
        except Exception as error:  # what is looked for
            faults.append(f"{kind}, {bits}: {error!r}")
        else:
            faults.append(f"{kind}, {bits}: the file was taken in spite of its checksum")
        path.with_name(f"{path.name}.sha256").unlink(missing_ok=True)
    return {
        "kind": kind,
        "files": files,
        **{name: outcomes[name] for name in ("checksum", *OUTCOMES)},
        "faults": faults,
    }


def outcome_of(path: Path, images: ImageCache) -> str:
    """Return who refuses a file before it is quantized, the reader or the gates; "taken" if nobody does.

    Raises:
        ValueError: The reason is not one line.
    """
    try:
        network = load_checkpoint(path, input_settings={"size": INPUT.size, "resize": INPUT.resize})
    except RejectedError as error:
        return _checked("reader", error)
    try:
        sound_network(network, images, Gates())
    except RejectedError as error:
        return _checked("gates", error)
    return "taken"


def _checked(outcome: str, error: RejectedError) -> str:
    if not str(error).isprintable():
        raise ValueError(f"the reason is not one printable line: {str(error)!r}")
    return outcome


def page(rows: list[Row]) -> str:
    """Return text and table."""
    keys = ("files", "checksum", *OUTCOMES)
    total = [sum(row[key] for row in rows) for key in keys]
    lines = [(row["kind"], *(row[key] for key in keys), len(row["faults"])) for row in rows]
    lines.append(("**all**", *total, sum(len(row["faults"]) for row in rows)))
    text = (
        "A trained ResNet-20 as a safetensors file, a format without checksums, with bits flipped at places that were"
        " drawn at random. With its `.sha256` next to it, each file is refused when it is claimed. Without, what is no"
        " checkpoint any more is refused when it is read, and weights that no training leaves are refused by the gates,"
        " both before anything is quantized. The others are taken: some weights have other values, within what is"
        " plausible, and nothing in the file says so. `drop.require_checksum` refuses files without a checksum. Faults"
        " are files that are taken in spite of their checksum, other errors, and reasons that are not one line."
    )
    header = (
        *("flipped", "files", "refused with a checksum", "without: refused by the reader", "by the gates", "taken"),
        "faults",
    )
    return f"{text}\n\n{table(header, lines)}"
