"""How the colors of images are distributed, and how far one distribution is from another.

Each image is looked at along three axes: brightness (R + G + B) / 3, and the opponents R - G and (R + G) / 2 - B. A
camera that got darker moves the first, a lamp of another color, swapped channels or a negative the others. Images of
one channel have the first axis only.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BINS = 32  # along each axis
_ENOUGH = 56  # pixels a side: every fourth pixel of every fourth row of 224 says as much as all
_LEAST_SHARE = 1e-3  # of a bin: an empty one would be infinitely far from any other

Histograms = npt.NDArray[np.float64]


def color_histograms(pixels: npt.NDArray[np.generic]) -> Histograms:
    """Shares of the pixels in each bin.

    Args:
        pixels: Intensities 0 to 255, rounded here, [n, channels, height, width]. Not modified.

    Returns:
        [n, axes, BINS], each row of which adds up to 1; 3 axes for 3 channels, else 1.
    """
    step = max(1, min(pixels.shape[2:]) // _ENOUGH)
    # Whole levels, as all decoded images have: grey is in the middle, and must not fall to either side by rounding.
    small = np.rint(pixels[:, :, ::step, ::step].astype(np.float64)).clip(0, 255) / 255
    brightness = small.mean(axis=1)
    axes = [brightness]
    if small.shape[1] == 3:
        red, green, blue = small.transpose(1, 0, 2, 3)
        # Most pixels are nearly grey: the root gives the little that tells colors apart most of the bins.
        axes += [(_signed_root(opponent) + 1) / 2 for opponent in (red - green, (red + green) / 2 - blue)]
    return np.stack([_histograms(axis.reshape(len(small), -1)) for axis in axes], axis=1)


def population_stability(reference: Histograms, recent: Histograms) -> float:
    """The largest population stability index of the axes: PSI = sum over bins of (q - p) ln(q / p).

    p are the shares of the reference, q the recent ones, none below 0.001. By custom a PSI below 0.1 is no change, 0.1
    to 0.25 a moderate one, and more a large one.

    Args:
        reference: [axes, BINS].
        recent: Likewise.
    """
    p, q = (np.maximum(shares, _LEAST_SHARE) for shares in (reference, recent))
    p, q = (shares / shares.sum(axis=-1, keepdims=True) for shares in (p, q))
    return float(((q - p) * np.log(q / p)).sum(axis=-1).max())


def _signed_root(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.sign(values) * np.sqrt(np.abs(values))


def _histograms(shares: npt.NDArray[np.float64]) -> Histograms:
    """[n, values from 0 to 1] to [n, BINS]."""
    bins = np.clip((shares * BINS).astype(np.int64), 0, BINS - 1)
    counts = np.stack([np.bincount(row, minlength=BINS) for row in bins])
    return np.asarray(counts / shares.shape[1], np.float64)
