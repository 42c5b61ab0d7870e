import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.calibration.color_histograms import BINS, color_histograms, population_stability
from edged.calibration.dataset import build_cache
from edged.calibration.images import decode_image
from edged.spec import InputSpec

SEED = st.integers(0, 2**32 - 1)


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_each_axis_matches_values_computed_by_hand():
    # Gray: brightness 100 / 255 * 32 = 12.5; both opponents 0, in the middle. Red: 85 of 255; R - G = 1 at the end.
    pixels = np.zeros((2, 3, 1, 2), np.uint8)
    pixels[0] = 100
    pixels[1, 0] = 255
    grey, red = color_histograms(pixels)
    assert [axis.argmax() for axis in grey] == [12, BINS // 2, BINS // 2]
    assert [axis.argmax() for axis in red] == [10, BINS - 1, int((math.sqrt(0.5) + 1) / 2 * BINS)]


@given(SEED, st.floats(-0.4, 0.4))
def test_rounding_errors_do_not_move_a_pixel_to_another_bin(seed, error):
    pixels = np.repeat(noise(seed, 1, 1, 16, 16), 3, axis=1)  # gray: on the edge of a bin of both opponents
    floats = pixels + error * np.random.default_rng(seed).random(pixels.shape)
    np.testing.assert_array_equal(color_histograms(floats), color_histograms(pixels))


def test_shares_are_those_of_the_pixels():
    pixels = np.array([[[[0, 0, 0, 255]]]], np.uint8)
    [[brightness]] = color_histograms(pixels)
    assert (brightness[0], brightness[-1], brightness.sum()) == (0.75, 0.25, 1)


@given(SEED, st.sampled_from([1, 3]), st.integers(1, 130), st.integers(1, 130))
def test_shares_add_up_to_one(seed, channels, height, width):
    shares = color_histograms(noise(seed, 2, channels, height, width))
    assert shares.shape == (2, channels, BINS)
    np.testing.assert_allclose(shares.sum(axis=-1), 1)


def test_a_subsampled_large_image_has_nearly_the_same_histogram():
    image = noise(0, 1, 3, 448, 448)
    part = image[:, :, ::8, ::8]
    np.testing.assert_array_equal(color_histograms(image), color_histograms(part))


@given(SEED, SEED)
def test_the_index_is_symmetric_nonnegative_and_zero_for_equal_histograms(first, second):
    p, q = (np.random.default_rng(seed).dirichlet(np.ones(BINS), 3) for seed in (first, second))
    assert population_stability(p, p) == 0
    assert population_stability(p, q) == pytest.approx(population_stability(q, p))
    assert population_stability(p, q) >= 0


def test_the_index_matches_a_value_computed_by_hand():
    p, q = np.zeros((2, 1, BINS))
    p[0, :2] = 0.5, 0.5
    q[0, :2] = 0.25, 0.75
    rest = 1 + (BINS - 2) * 0.001
    expected = (0.25 * math.log(2) + 0.25 * math.log(1.5)) / rest
    assert population_stability(p, q) == pytest.approx(expected)
    assert population_stability(np.vstack([p, p]), np.vstack([p, q])) == pytest.approx(
        expected
    )  # the largest index of the axes


def test_a_caches_histogram_is_that_of_its_calibration_images(tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    for index in range(40):
        Image.fromarray(noise(index, 8, 8, 3)).save(tmp_path / "images" / f"{index:02}.png")
    cache = build_cache(tmp_path / "images", tmp_path / "cache", InputSpec(8, 8))
    expected = color_histograms(np.array(cache.images)[cache.calibration.numpy()]).mean(axis=0)
    np.testing.assert_allclose(cache.color_histogram(), expected)


CHANGES = {
    "darker": lambda pixels: (pixels * 0.7).astype(np.uint8),
    "brighter": lambda pixels: np.minimum(pixels * 1.3, 255).astype(np.uint8),
    "negative": lambda pixels: 255 - pixels,
    "swapped": lambda pixels: pixels[:, ::-1],
    "grey": lambda pixels: np.repeat(pixels.mean(axis=1, keepdims=True), 3, axis=1).astype(np.uint8),
}


@pytest.mark.parametrize(("folder", "spec"), [("imagenette", InputSpec(224, 256)), ("cifar10", InputSpec(32, 32))])
def test_real_images_of_one_source_are_close_and_changed_ones_distant(real_data, folder, spec):
    def pixels(part, count):
        files = sorted((real_data / folder / part).rglob("*.*"))
        chosen = [path for path in files if path.suffix.lower() in (".png", ".jpg", ".jpeg")]
        picked = np.random.default_rng(0).permutation(len(chosen))[:count]
        return np.stack([decode_image(chosen[index], spec) for index in picked])

    def drift(images):
        return population_stability(reference, color_histograms(images).mean(axis=0))

    reference = color_histograms(pixels("calib", 256)).mean(axis=0)
    live = pixels("val" if (real_data / folder / "val").is_dir() else "test", 128)
    assert drift(live) < 0.1
    for name, change in CHANGES.items():
        assert drift(change(live)) > 0.12, name


def test_alpha_is_no_color():
    colors, alpha = noise(5, 2, 3, 8, 8), noise(6, 2, 1, 8, 8)
    np.testing.assert_array_equal(color_histograms(np.concatenate([colors, alpha], 1)), color_histograms(colors))
    grey = colors[:, :1]
    np.testing.assert_array_equal(color_histograms(np.concatenate([grey, alpha], 1)), color_histograms(grey))
