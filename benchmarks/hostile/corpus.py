"""A thousand hostile checkpoints, made by code: kinds of the advisories of PyTorch and of picklescan, and more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.hostile import containers, pickles
from benchmarks.hostile.detectors import VALUE, VALUES, absurd_detectors
from benchmarks.hostile.mutations import mutations
from benchmarks.hostile.spelling import MAKERS, PROTO, as_zip, call, state_dict

RANDOM_GEOMETRIES = 50
MUTATIONS = 150  # of each kind


@dataclass(frozen=True)
class Hostile:
    """A hostile file.

    Attributes:
        kind: What is wrong with it.
        name: Which one of its kind.
        content: The file.
        refused: Whether it must be refused; damage that hits nothing may be accepted.
    """

    kind: str
    name: str
    content: bytes
    refused: bool = True


def corpus(canary: str, seed: int = 0, drawn: int = MUTATIONS) -> Iterator[Hostile]:
    """Yield all hostile files.

    Args:
        canary: Path of a file that the code in them would make.
        seed: Seed of what is drawn at random.
        drawn: Number of files of each kind of random damage.
    """
    command = f"touch {canary}"
    evil = PROTO + call("posix.system", command) + b"."
    yield from _pickles(command, seed)
    families = {
        "malicious zip": containers.zips(evil),
        "inconsistent legacy file": containers.legacy_lies(evil),
        "tar archive": containers.tars(evil),
        "bare pickle": containers.bare_pickles(evil),
        "safetensors with a false header": containers.safetensors_lies(),
    }
    for kind, files in families.items():
        yield from (Hostile(kind, name, content) for name, content in files)
    for name, pickled in absurd_detectors():
        yield Hostile("absurd yaml", name, as_zip(pickled, VALUES, VALUE))
    for kind, name, content in mutations(drawn, seed):
        yield Hostile(kind, name, content, refused=False)


def _pickles(command: str, seed: int) -> Iterator[Hostile]:
    """Yield hostile pickles in zips and in legacy files."""
    for gadget in pickles.GADGETS:
        for way, pickled in pickles.gadget_calls(gadget, command):
            form = "legacy" if way == "at the top" else "zip"
            yield Hostile("function that runs code", f"{gadget} {way}", MAKERS[form](pickled))
    geometries = [(name, state_dict(("conv1.weight", tensor))) for name, tensor in pickles.GEOMETRIES.items()]
    families = {
        "impossible tensor": [*geometries, *pickles.random_geometries(RANDOM_GEOMETRIES, seed)],
        "instruction that torch.save never writes": pickles.INSTRUCTIONS.items(),
        "bomb": pickles.BOMBS.items(),
    }
    for kind, spelled in families.items():
        for name, pickled in spelled:
            yield from (Hostile(kind, f"{form}: {name}", make(pickled)) for form, make in MAKERS.items())
