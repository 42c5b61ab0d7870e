"""Sample predictions as HTML: each picture with the predictions of both networks, and boxes drawn over it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.reporting.facts import class_name, count_text, prediction_text
from service.reporting.html import Html, fill, join

JSON = Mapping[str, Any]

_NOTHING = Html("")
_DRAWN_WIDTH, _DRAWN_HEIGHT = 320.0, 270.0  # maximum size of a picture with boxes, in user units that the page scales
_SMALL_PREFIX = "data:image/png"  # format of pictures with few pixels, see service.worker.predictions
_PICTURE_PREFIXES = ("data:image/png;base64,", "data:image/jpeg;base64,")
_SECTION = """<section aria-labelledby="predictions"><h2 id="predictions">Sample predictions</h2>
<p class="note">{note}</p><div class="samples {kind}">{samples}</div></section>"""
_CLASSIFIED = """<div class="sample">{picture}<p class="name">{file}{truth}</p>
<p>full precision: {before}</p><p>quantized: {after} <span class="badge {mood}">{verdict}</span></p></div>"""
_DETECTED = """<div class="sample"><p class="name">{file}</p>{shared}<div class="pair">{before}{after}</div></div>"""
_DRAWING = """<figure><figcaption>{caption}</figcaption>
<svg role="img" aria-label="{label}" viewBox="{left} 0 {full} {height}">{picture}{boxes}</svg></figure>"""
_BOX = """<rect class="halo" x="{x}" y="{y}" width="{width}" height="{height}"/>
<rect class="box" x="{x}" y="{y}" width="{width}" height="{height}"><title>{text}</title></rect>
<rect class="plate" x="{left}" y="{plate}" width="{long}" height="15"/>
<text class="tag" x="{inside}" y="{base}">{text}</text>"""


def predictions(sampled: JSON) -> Html:
    """Return the section of sample predictions, which is empty if there are none.

    Args:
        sampled: Data of `service.worker.predictions.sample_predictions`; pictures may be missing.
    """
    images: Sequence[JSON] = sampled.get("images") or []
    if not images:
        return _NOTHING
    detected = sampled.get("task") == "detection"
    made = (_detected(number, image) if detected else _classified(image) for number, image in enumerate(images))
    note = f"{len(images)} held-out images; half of them are those on which the two differ most."
    if not any(_source(image) for image in images):
        note += " To see them, request the page with a token or through the UNIX socket, as `edged report` does."
    return fill(_SECTION, note=note, kind="wide" if detected else "", samples=join(made))


def _classified(image: JSON) -> Html:
    before, after, truth = image["fp32"], image["quantized"], image.get("truth")
    same = before["class"] == after["class"]
    return fill(
        _CLASSIFIED,
        picture=_picture(image),
        file=image["file"],
        truth="" if truth is None else f", labeled {class_name(truth)}",
        before=prediction_text(before),
        after=prediction_text(after),
        mood="good" if same else "bad",
        verdict="same" if same else "differs",
    )


def _picture(image: JSON) -> Html:
    source = _source(image)
    if not source:
        return _NOTHING
    small = "small" if source.startswith(_SMALL_PREFIX) else ""
    return fill('<img class="{small}" src="{source}" alt="{file}">', small=small, source=source, file=image["file"])


def _detected(number: int, image: JSON) -> Html:
    scale = min(_DRAWN_WIDTH / image["width"], _DRAWN_HEIGHT / image["height"])
    wide, high = image["width"] * scale, image["height"] * scale
    width, height = f"{wide:.1f}", f"{high:.1f}"
    source, identity = _source(image), f"picture-{number}"
    # The picture is stored once, although it is shown twice.
    shared = fill(
        '<svg class="hidden" aria-hidden="true"><symbol id="{id}" viewBox="0 0 {width} {height}">'
        '<image href="{source}" width="{width}" height="{height}" preserveAspectRatio="none"/></symbol></svg>',
        id=identity,
        width=width,
        height=height,
        source=source,
    )
    use = fill('<use href="#{id}" width="{width}" height="{height}"/>', id=identity, width=width, height=height)
    drawings = {
        key: fill(
            _DRAWING,
            caption=f"{title}: {count_text(image[key])}",
            label=f"{title}: {', '.join(map(prediction_text, image[key])) or 'nothing'}",
            left=f"{(wide - _DRAWN_WIDTH) / 2:.1f}",  # centers a narrow picture
            full=f"{_DRAWN_WIDTH:.0f}",
            height=height,
            picture=use if source else _NOTHING,
            boxes=join(_box(box, scale, wide) for box in reversed(image[key])),  # the highest score on top
        )
        for key, title in (("fp32", "Full precision"), ("quantized", "Quantized"))
    }
    return fill(
        _DETECTED,
        file=image["file"],
        shared=shared if source else _NOTHING,
        before=drawings["fp32"],
        after=drawings["quantized"],
    )


def _box(box: JSON, scale: float, wide: float) -> Html:
    x1, y1, x2, y2 = (side * scale for side in box["box"])
    text = f"{class_name(box)} {box['score']:.2f}"
    top = max(y1 - 15, 0.0)
    long = 6.6 * len(text) + 6  # approximate width of the text, which cannot be measured without a script
    left = max(0.0, min(x1, wide - long))
    return fill(
        _BOX,
        x=f"{x1:.1f}",
        y=f"{y1:.1f}",
        width=f"{x2 - x1:.1f}",
        height=f"{y2 - y1:.1f}",
        text=text,
        left=f"{left:.1f}",
        plate=f"{top:.1f}",
        long=f"{long:.1f}",
        inside=f"{left + 3:.1f}",
        base=f"{top + 11.5:.1f}",
    )


def _source(image: JSON) -> str:
    """Return the picture as a data URL, or "" unless the worker made it."""
    source = str(image.get("picture") or "")
    return source if source.startswith(_PICTURE_PREFIXES) else ""
