"""Reads the generations in service and the previous ones again, now and then, to find damage before it is needed."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from edged.artifacts.integrity import DamageError, ExpectedFile, check_manifest_digest, expected_files
from service.storage.generations import GenerationRepository
from service.system.disk_thread import Disk

PIECE_BYTES = 2 << 20
PAUSE_S = 0.1  # after each piece: 20 MB/s at most, which an SD card gives without making others wait


class InterruptedScrubError(Exception):
    """Other work has begun."""


class Scrub:
    """Compares the files of a generation with the digests in its manifest, slowly.

    The pages of a file are dropped from the cache first: what has to be found is damage on the disk.

    Args:
        generations: Published generations.
        disk: Thread for disk work. It is given one piece of a file at a time.
        may_go_on: See the attribute.

    Attributes:
        may_go_on: Returns whether nothing else needs the disk.
    """

    def __init__(self, generations: GenerationRepository, disk: Disk, may_go_on: Callable[[], bool]) -> None:
        self._generations = generations
        self._disk = disk
        self.may_go_on = may_go_on

    async def find_damage(self, model: str, number: int) -> str | None:
        """Return what is damaged in a generation; None if it is whole.

        Raises:
            InterruptedScrubError: Other work has begun; nothing is known of the generation.
        """
        directory = self._generations.path(model, number)
        try:
            await self._disk(check_manifest_digest, directory)
            for file in await self._disk(expected_files, directory):
                await self._disk(file.check_size)
                file.check_digest(await self._digest(file))
        except DamageError as error:
            return str(error)
        return None

    async def _digest(self, file: ExpectedFile) -> str:
        digest, start = hashlib.sha256(), 0
        while True:
            if not self.may_go_on():
                raise InterruptedScrubError
            piece = await self._disk(_read, file.path, start)
            if not piece:
                return digest.hexdigest()
            digest.update(piece)
            start += len(piece)
            await asyncio.sleep(PAUSE_S)


async def scrub_models(
    scrub: Scrub, pending: list[tuple[str, int]], found: Callable[[str, int, str | None], Awaitable[None]]
) -> None:
    """Check generations one after another, and remove each from `pending` once it is checked.

    Args:
        scrub: Checks one generation.
        pending: Model and number of each generation.
        found: Receives model, number and what is damaged, None if nothing is.

    Raises:
        InterruptedScrubError: Other work has begun; what is left is still pending.
    """
    while pending:
        model, number = pending[0]
        await found(model, number, await scrub.find_damage(model, number))
        pending.pop(0)


def _read(path: Path, start: int) -> bytes:
    """Read a piece of a file from the disk, not from the cache.

    Raises:
        DamageError: It cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, start, PIECE_BYTES, os.POSIX_FADV_DONTNEED)
            piece = os.pread(descriptor, PIECE_BYTES, start)
            os.posix_fadvise(descriptor, start, PIECE_BYTES, os.POSIX_FADV_DONTNEED)
            return piece
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DamageError(f"cannot read {path}: {error.strerror}") from error
