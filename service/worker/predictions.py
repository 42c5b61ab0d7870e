"""Sample predictions of both networks on held-out images, with pictures, for the report. Imports torch.

Pictures are made from the pixels that the networks received, so that no image is read again.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edged.calibration.dataset import ImageCache
from edged.compress import Compressed
from edged.evaluation.detection import agreement
from edged.models.detections import Detections
from edged.models.registry import Architecture
from edged.pipeline.evaluation import Labels

MAX_PICTURE_BYTES = 400 << 10  # total size of all encoded pictures
_CLASSIFIED_SIDE, _DETECTED_SIDE = 160, 400  # longer side of a picture, pixels
_SMALL_SIDE = 64  # up to here PNG is as small as JPEG, and exact
_MAX_BOXES = 50

JSON = dict[str, Any]


def sample_predictions(
    compressed: Compressed,
    architecture: Architecture,
    labels: Labels,
    boxes: Mapping[str, list[Detections]] | None,
    count: int,
    names: Sequence[str] | None = None,
) -> JSON:
    """Return predictions of both networks; half of the images are those on which they differ most.

    Args:
        compressed: Both networks, evaluated, and their images.
        architecture: Architecture of the networks.
        labels: Labels of the held-out images.
        boxes: Boxes that a detector found, see `edged.pipeline.evaluation.Evaluation`; None for a classifier.
        count: Most images; fewer if their pictures take more than MAX_PICTURE_BYTES.
        names: Names of the classes; None for those of the folders, where their number fits, or of the detector.

    Returns:
        {"task", "images": [{"file", "picture" (a data URI), "width", "height", "fp32", "quantized"}]}. A classifier
        says {"class", "name", "probability"}, with "truth" where it is known; a detector a list of {"box": [x1, y1, x2,
        y2] in pixels of the image, "class", "name", "score"}. Names are null where they are not known.
    """
    if architecture.plan is None or boxes is None:
        if names is None and len(compressed.cache.classes) == architecture.num_classes:
            names = compressed.cache.classes
        images = _classified(compressed, labels, count, names)
    else:
        images = _detected(boxes, compressed.cache, names or architecture.plan.names, count)
    return {"task": architecture.task, "images": _within_budget(images)}


def choose(differences: Tensor, count: int) -> list[int]:
    """Choose images: half of them those that differ most, the rest spread evenly over the others. Sorted ascending.

    Args:
        differences: Difference between the two networks on each image [n]; 0 for equal outputs.
        count: Most images to choose.
    """
    order = torch.sort(differences, descending=True, stable=True).indices.tolist()
    worst = [index for index in order[: count // 2] if differences[index] > 0]
    others = [index for index in range(len(order)) if index not in worst]
    left = min(count - len(worst), len(others))
    return sorted([*worst, *(others[i * len(others) // left] for i in range(left))])


def _classified(compressed: Compressed, labels: Labels, count: int, names: Sequence[str] | None) -> list[JSON]:
    cache = compressed.cache
    said = {"fp32": compressed.reference_logits.softmax(1), "quantized": compressed.logits.softmax(1)}
    differ = said["fp32"].argmax(1) != said["quantized"].argmax(1)
    # A different class counts more than a different probability of the same class.
    differences = (said["fp32"] - said["quantized"]).abs().sum(1) + 2.0 * differ
    return [
        {
            **_picture(cache, int(cache.held_out[place]), _CLASSIFIED_SIDE),
            "truth": None if labels.classes is None else _named(int(labels.classes[place]), names),
            **{key: _most_likely(probabilities[place], names) for key, probabilities in said.items()},
        }
        for place in choose(differences, count)
    ]


def _detected(boxes: Mapping[str, list[Detections]], cache: ImageCache, names: Sequence[str], count: int) -> list[JSON]:
    pairs = list(zip(boxes["fp32"], boxes["quantized"], strict=True))
    differences = torch.tensor([100.0 - agreement([before], [after]) for before, after in pairs])
    return [
        {
            **_picture(cache, int(cache.held_out[place]), _DETECTED_SIDE),
            **{key: _listed(found[place], names) for key, found in boxes.items()},
        }
        for place in choose(differences, count)
    ]


def _most_likely(probabilities: Tensor, names: Sequence[str] | None) -> JSON:
    best = int(probabilities.argmax())
    return {**_named(best, names), "probability": round(float(probabilities[best]), 4)}


def _listed(found: Detections, names: Sequence[str] | None) -> list[JSON]:
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True)
    return [
        {"box": [round(side, 1) for side in box], **_named(kind, names), "score": round(score, 4)}
        for box, score, kind in list(rows)[:_MAX_BOXES]
    ]


def _named(kind: int, names: Sequence[str] | None) -> JSON:
    return {"class": kind, "name": names[kind] if names else None}


def _picture(cache: ImageCache, index: int, longest: int) -> JSON:
    """Return file name, picture and the size of the image that boxes refer to: the original if it was letterboxed."""
    pixels = cache.images[index]
    width = height = cache.input.size
    if cache.sizes:
        letterbox = cache.letterbox(index)
        (left, top), (wide, high) = letterbox.corner, letterbox.inner
        pixels = pixels[:, top : top + high, left : left + wide]
        width, height = letterbox.width, letterbox.height
    picture = _data_uri(np.ascontiguousarray(pixels.transpose(1, 2, 0)), longest)
    return {"file": cache.files[index], "picture": picture, "width": width, "height": height}


def _data_uri(pixels: Any, longest: int) -> str:
    colors = np.ascontiguousarray(pixels[..., :3]) if pixels.shape[2] >= 3 else pixels[..., 0]  # without alpha
    image = Image.fromarray(np.ascontiguousarray(colors))
    image.thumbnail((longest, longest))
    kind = "PNG" if max(image.size) <= _SMALL_SIDE else "JPEG"
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=80)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _within_budget(images: list[JSON]) -> list[JSON]:
    kept, total = [], 0
    for image in images:
        total += len(image["picture"])
        if total > MAX_PICTURE_BYTES:
            break
        kept.append(image)
    return kept
