"""Calibration images in the engine's order, with augmented versions of each if requested."""

from __future__ import annotations

import torch
from torch import Tensor

from edged.calibration.dataset import ImageCache
from edged.device import CPU, moved

CROP = 8  # a random shift is at most 1/CROP of the image's side; the uncovered area repeats the border


class AugmentedImages:
    """All calibration images in an order drawn from the seed, then versions of them, flipped and shifted at random.

    Args:
        cache: Cache of the calibration images.
        versions: Number of versions per image; 1 for the images without augmentation.
        seed: Seed of the order and of the augmentation.
        device: Device of the batches.
    """

    def __init__(self, cache: ImageCache, versions: int, seed: int, device: torch.device = CPU) -> None:
        self._cache, self._versions, self._seed, self._device = cache, versions, seed, device
        order = torch.randperm(len(cache.calibration), generator=torch.Generator().manual_seed(seed))
        self._indices = cache.calibration[order]

    def __len__(self) -> int:
        return len(self._indices) * self._versions

    def batch(self, start: int, stop: int) -> Tensor:
        """Return images start..stop, normalized, float32 [b, C, H, W] in channels-last layout."""
        places = torch.arange(start, min(stop, len(self)))
        images = self._cache.batch(self._indices[places % len(self._indices)])
        for image, place in zip(images, places.tolist(), strict=True):
            if place >= len(self._indices):
                image.copy_(_varied(image, torch.Generator().manual_seed(self._seed + place)))
        return moved(images.to(memory_format=torch.channels_last), self._device)


def _varied(image: Tensor, generator: torch.Generator) -> Tensor:
    """Flip and shift an image [C, H, W] at random."""
    reach = max(1, image.shape[-1] // CROP)
    flip, down, right = (int(torch.randint(n, (), generator=generator)) for n in (2, 2 * reach + 1, 2 * reach + 1))
    if flip:
        image = image.flip(-1)
    padded = torch.nn.functional.pad(image[None], (reach,) * 4, mode="replicate")[0]
    return padded[:, down : down + image.shape[1], right : right + image.shape[2]]
