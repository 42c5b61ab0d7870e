"""Standard errors of scores, and of differences of two scores on the same images.

Two quantized networks err mostly on the same images, so their difference is known far better than either score. A
sample holds what that takes, in plain JSON types: which images a classifier gets right, or a detector's mAP without
each of some groups of images (jackknife). Pure Python.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

Sample = Mapping[str, Any]


def sample_of_hits(hits: Sequence[bool]) -> Sample:
    """Return the sample of a share of images.

    Args:
        hits: Whether each image counts, in the order of the images.
    """
    packed = int("".join("1" if hit else "0" for hit in hits) or "0", 2)
    data = zlib.compress(packed.to_bytes(-(-len(hits) // 8), "big"))
    return {"images": len(hits), "hits": base64.b64encode(data).decode()}


def sample_of_groups(values: Sequence[float]) -> Sample:
    """Return the sample of a score that is no mean over images.

    Args:
        values: The score without each group of images, in percent.
    """
    return {"without_group": list(values)}


def standard_error(sample: Sample, other: Sample | None = None) -> float:
    """Return the standard error of a score, or of its difference to another one on the same images, in points.

    It is that of a mean over images, sqrt(sum (d_i - mean d)^2 / (n (n - 1))), where d_i is 1 for an image that only
    the first network gets right, -1 for one that only the second does, and otherwise 0. From the scores without each of
    g groups it is the jackknife's, sqrt((g - 1) / g sum (d_i - mean d)^2). It is NaN for a single image or group.

    Args:
        sample: Sample of the score.
        other: Sample of the other score; None for the error of the score itself.

    Raises:
        ValueError: The samples are of different images or kinds.
    """
    if other is not None and (sample.keys() != other.keys() or _count(sample) != _count(other)):
        raise ValueError("the samples are of different images")
    count = _count(sample)
    if count < 2:
        return math.nan
    if "hits" in sample:
        mine, theirs = _bits(sample), 0 if other is None else _bits(other)
        better, worse = (mine & ~theirs).bit_count(), (theirs & ~mine).bit_count()
        mean = (better - worse) / count
        return 100 * math.sqrt(max(0.0, (better + worse) / count - mean**2) / (count - 1))
    others = [0.0] * count if other is None else other["without_group"]
    differences = [a - b for a, b in zip(sample["without_group"], others, strict=True)]
    mean = math.fsum(differences) / count
    return math.sqrt((count - 1) / count * math.fsum((value - mean) ** 2 for value in differences))


def _count(sample: Sample) -> int:
    return int(sample["images"]) if "hits" in sample else len(sample["without_group"])


def _bits(sample: Sample) -> int:
    return int.from_bytes(zlib.decompress(base64.b64decode(sample["hits"])), "big")
