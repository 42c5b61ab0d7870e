"""Color histograms of images, and the distance between two of them.

A histogram has three axes: brightness (R + G + B) / 3 and the opponent colors R - G and (R + G) / 2 - B. A darker
camera shifts the first axis; a light of another color, swapped channels or a negative shift the others. Images with
one channel have only the first axis.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BINS = 32  # along each axis
_ENOUGH = 56  # pixels per side: every fourth pixel of every fourth row of 224 gives the same histogram as all
_LEAST_SHARE = 1e-3  # of the pixels in a bin: the PSI of an empty bin would be infinite

Histograms = npt.NDArray[np.float64]


def color_histograms(pixels: npt.NDArray[np.generic]) -> Histograms:
    """Compute the share of each image's pixels in each bin.

    Args:
        pixels: Intensities from 0 to 255 [n, channels, height, width], rounded to integers here. Not modified.

    Returns:
        Shares [n, axes, BINS] that add up to 1 along the last dimension; 3 axes for 3 channels or more, else 1.
    """
    step = max(1, min(pixels.shape[2:]) // _ENOUGH)
    # Integer intensities, as in decoded images: gray is at the edge of two bins, and rounding errors must not move it.
    small = np.rint(pixels[:, :, ::step, ::step].astype(np.float64)).clip(0, 255) / 255
    colored = small.shape[1] >= 3  # a further channel is alpha, which has no brightness
    brightness = small[:, : 3 if colored else 1].mean(axis=1)
    axes = [brightness]
    if colored:
        red, green, blue = small[:, :3].transpose(1, 0, 2, 3)
        # Most pixels are nearly gray; the square root spreads small color differences over most of the bins.
        axes += [(_signed_root(opponent) + 1) / 2 for opponent in (red - green, (red + green) / 2 - blue)]
    return np.stack([_histograms(axis.reshape(len(small), -1)) for axis in axes], axis=1)


def population_stability(reference: Histograms, recent: Histograms) -> float:
    """Return the largest population stability index of all axes, PSI = sum over bins of (q - p) ln(q / p).

    p are the reference shares and q the recent shares, both at least 0.001. By convention a PSI below 0.1 means no
    change, 0.1 to 0.25 a moderate change, and a higher PSI a large change.

    Args:
        reference: Reference shares [axes, BINS]. Not modified.
        recent: Recent shares [axes, BINS]. Not modified.
    """
    p, q = (np.maximum(shares, _LEAST_SHARE) for shares in (reference, recent))
    p, q = (shares / shares.sum(axis=-1, keepdims=True) for shares in (p, q))
    return float(((q - p) * np.log(q / p)).sum(axis=-1).max())


def _signed_root(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.sign(values) * np.sqrt(np.abs(values))


def _histograms(shares: npt.NDArray[np.float64]) -> Histograms:
    """Convert rows of values from 0 to 1 [n, values] to histograms [n, BINS]."""
    bins = np.clip((shares * BINS).astype(np.int64), 0, BINS - 1)
    counts = np.stack([np.bincount(row, minlength=BINS) for row in bins])
    return np.asarray(counts / shares.shape[1], np.float64)
