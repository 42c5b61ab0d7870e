"""The calibration images in the order in which the engine takes them, with further versions of each where asked."""

from __future__ import annotations

import torch
from torch import Tensor

from edged.calibration.dataset import ImageCache
from edged.device import CPU, moved

CROP = 8  # a random crop moves the image by up to 1/CROP of its side; what that uncovers repeats the border


class AugmentedImages:
    """Every calibration image once, in an order drawn from the seed; then again, flipped and moved at random.

    Args:
        cache: Its calibration images are used.
        versions: How many versions of each image; 1 for the images alone.
        seed: Draws the order and the versions.
        device: Where batches go.
    """

    def __init__(self, cache: ImageCache, versions: int, seed: int, device: torch.device = CPU) -> None:
        self._cache, self._versions, self._seed, self._device = cache, versions, seed, device
        order = torch.randperm(len(cache.calibration), generator=torch.Generator().manual_seed(seed))
        self._indices = cache.calibration[order]

    def __len__(self) -> int:
        return len(self._indices) * self._versions

    def batch(self, start: int, stop: int) -> Tensor:
        """Images start..stop, normalized float32 [b, C, H, W] in channels-last layout."""
        places = torch.arange(start, min(stop, len(self)))
        images = self._cache.batch(self._indices[places % len(self._indices)])
        for image, place in zip(images, places.tolist(), strict=True):
            if place >= len(self._indices):
                image.copy_(_varied(image, torch.Generator().manual_seed(self._seed + place)))
        return moved(images.to(memory_format=torch.channels_last), self._device)


def _varied(image: Tensor, generator: torch.Generator) -> Tensor:
    """A random horizontal flip and shift of an image [C, H, W]."""
    reach = max(1, image.shape[-1] // CROP)
    flip, down, right = (int(torch.randint(n, (), generator=generator)) for n in (2, 2 * reach + 1, 2 * reach + 1))
    if flip:
        image = image.flip(-1)
    padded = torch.nn.functional.pad(image[None], (reach,) * 4, mode="replicate")[0]
    return padded[:, down : down + image.shape[1], right : right + image.shape[2]]
