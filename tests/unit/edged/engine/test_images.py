from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edged.calibration.dataset import ImageCache, build_cache
from edged.engine.images import AugmentedImages
from edged.spec import InputSpec
from tests.support.pictures import write_folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ImageCache:
    root: Path = tmp_path_factory.mktemp("images")
    write_folder(root / "images", classes=2, images=20)
    return build_cache(root / "images", root / "cache", InputSpec(16, 16))


def test_each_image_occurs_once_in_an_order_drawn_from_the_seed(cache: ImageCache):
    images = AugmentedImages(cache, versions=1, seed=3)
    seen = torch.cat([images.batch(start, start + 7) for start in range(0, len(images), 7)])
    assert len(seen) == len(cache.calibration)
    expected = cache.batch(cache.calibration)
    # The same images in another order: each is found exactly once.
    assert sorted(int((expected == image).all((1, 2, 3)).nonzero()) for image in seen) == list(range(len(expected)))
    assert torch.equal(seen, AugmentedImages(cache, 1, 3).batch(0, len(images)))
    assert not torch.equal(seen, AugmentedImages(cache, 1, 4).batch(0, len(images)))


def test_augmented_versions_are_flipped_shifted_and_reproducible(cache: ImageCache):
    images = AugmentedImages(cache, versions=3, seed=0)
    n = len(cache.calibration)
    assert len(images) == 3 * n
    plain, second, third = (images.batch(k * n, (k + 1) * n) for k in range(3))
    assert not torch.equal(plain, second)
    assert not torch.equal(second, third)
    assert torch.equal(second, AugmentedImages(cache, 3, 0).batch(n, 2 * n))
    # Every value of a version occurs in its image.
    assert all(set(v.flatten().tolist()) <= set(p.flatten().tolist()) for p, v in zip(plain, second, strict=True))
