"""The facts of an update as values, which the page and the terminal report render.

Pure and cheap to import. Most keys of the data may be missing, because the update may have ended early or an older
daemon may have written its files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from edged.signing.keys import shown
from edged.spec import AUTO, Levels
from service.reporting.candidates import kept_in_float, served_by
from service.reporting.parts import if_whole
from service.units import format_bytes, format_seconds

JSON = Mapping[str, Any]

# Key in the report -> displayed name. The top-5 accuracy of a classifier appears in report.json only.
NAMES: Mapping[str, str] = {"top1": "top-1", "map50": "mAP50", "map50_95": "mAP50-95"}


class Outcome(NamedTuple):
    """The identity of an update and the way it ended.

    Attributes:
        id: Number of the update.
        model: Model that it updates.
        state: State of the update, for example COMMITTED.
        file_name: Name of the dropped file.
        problem: Code and reason of a failure or rejection; None without one.
        made_by: Update that produced the files of the report. It is an earlier update if the same file was dropped
            again.
    """

    id: int
    model: str
    state: str
    file_name: str
    problem: str | None
    made_by: int

    @property
    def is_reused(self) -> bool:
        """Return whether an earlier update produced the files of the report."""
        return self.made_by != self.id


class Stage(NamedTuple):
    """One stage of an update, placed in time.

    Attributes:
        name: Name of the stage.
        start_s: Start in seconds since the file was dropped.
        seconds: Duration.
    """

    name: str
    start_s: float
    seconds: float

    @property
    def end_s(self) -> float:
        """Return the end in seconds since the file was dropped."""
        return self.start_s + self.seconds


class Memory(NamedTuple):
    """The resident memory of a worker over time.

    Attributes:
        started_at: Start of the worker in seconds since 1970.
        samples: Seconds since the start of the worker, and bytes of resident memory; at least one sample.
    """

    started_at: float
    samples: Sequence[tuple[float, int]]

    @property
    def span_s(self) -> float:
        """Return the seconds from the start of the worker to the last sample, at least 0.1."""
        return max(self.samples[-1][0], 0.1)

    @property
    def peak_bytes(self) -> int:
        """Return the largest sample in bytes."""
        return max(used for _, used in self.samples)

    def peaks(self, count: int) -> Iterator[tuple[float, int]]:
        """Yield the end in seconds and the peak in bytes of `count` equal parts of the time that have samples."""
        for part in range(count):
            begin, end = self.span_s * part / count, self.span_s * (part + 1) / count
            if within := [used for at, used in self.samples if begin < at <= end]:
                yield end, max(within)


class Layer(NamedTuple):
    """One quantized layer.

    Attributes:
        name: Name of the layer in the checkpoint.
        bits: Bits of a weight.
        relative_loss: Squared error of the output as a share of its energy.
        kind: Type of the module; None if unknown.
        size: Rows and columns of the weight matrix, for example "64 x 576".
        order: Order in which the columns were quantized; None if unknown.
        images: Number of calibration images of the layer; None if unknown.
    """

    name: str
    bits: int
    relative_loss: float
    kind: str | None
    size: str
    order: str | None
    images: int | None


def outcome(data: JSON) -> Outcome:
    """Return the outcome of an update.

    Args:
        data: Data of the update, see `service.reporting.data.gather`.
    """
    update: JSON = data["update"]
    problem = f"{update['code']}: {update['reason']}" if update.get("code") else None
    course: JSON = data.get("course") or {}
    made_by: int = course.get("update", update["id"])
    return Outcome(update["id"], update["model"], update["state"], update["file_name"], problem, made_by)


def stages(data: JSON) -> list[Stage]:
    """Return the stages whose times are known, in the order in which they began."""
    return [Stage(span["stage"], span["start_s"], span["seconds"]) for span in data["timeline"]]


def memory(data: JSON) -> Memory | None:
    """Return the memory of the worker over time, or None if there are no samples."""
    course: JSON = data.get("course") or {}
    samples = course.get("memory")
    return Memory(course["started_at"], samples) if samples else None


def layers(data: JSON) -> list[Layer]:
    """Return the quantized layers in the order of the network."""
    return [
        Layer(
            name=str(layer["name"]),
            relative_loss=float(layer["relative_loss"]),
            bits=int(layer["bits"]),
            kind=layer.get("kind"),
            size=f"{layer.get('rows')} x {layer.get('columns')}",
            order=layer.get("order"),
            images=layer.get("images"),
        )
        for layer in (data.get("report") or {}).get("layers") or []
    ]


def worst_first(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers sorted by their relative loss, the largest first."""
    return sorted(layers, key=lambda layer: -layer.relative_loss)


def facts(data: JSON) -> list[tuple[str, str]]:
    """List the name and value of each known fact of an update; unknown facts are left out.

    Args:
        data: Data of the update, see `service.reporting.data.gather`.
    """
    update: JSON = data["update"]
    report, manifest = data.get("report") or {}, data.get("manifest") or {}
    totals: JSON = report.get("totals") or update.get("report") or {}
    settings: JSON = manifest.get("quantization") or {}
    known: list[tuple[str, Callable[[], object]]] = [
        ("Generation", lambda: update.get("generation")),
        ("Architecture", lambda: (manifest.get("architecture") or {}).get("name")),
        ("Weights", lambda: weights(totals)),
        ("Reading", lambda: reading(totals)),
        ("Bits", lambda: bits_text(totals) or bits_text(settings)),
        ("Method", lambda: settings.get("method")),
        ("Levels", lambda: levels(totals)),
        ("Served by", lambda: served_by(totals)),
        ("Layers in float", lambda: ", ".join(kept_in_float(totals)) or None),
        ("Integer kernels", lambda: kernels(totals)),
        ("Logits", lambda: logits(totals)),
    ]
    more: list[tuple[str, Callable[[], object]]] = [
        ("Calibration", lambda: _calibration(manifest.get("calibration") or {})),
        ("Images", lambda: "; ".join(report.get("image_notes") or ()) or None),
        ("Checkpoint", lambda: format_bytes(update["file_bytes"])),
        ("Artifact", lambda: _artifact(totals)),
        ("Device", lambda: totals.get("device")),
        ("Peak memory of the worker", lambda: _peak(data, totals)),
        ("Worker held back for requests", lambda: _held_back(data)),
        ("Time of all stages", lambda: format_seconds(sum(update["stages"].values())) if update["stages"] else None),
        ("Tries", lambda: update["attempt"] if update["attempt"] > 1 else None),
        ("SHA-256", lambda: update.get("sha256")),
        ("Signature", lambda: signature(update)),
    ]
    found = [
        *_computed(known),
        *((name.capitalize() if name.islower() else name, value) for name, value in measurements(totals)),
        *_computed(more),
    ]
    return [(name, str(value)) for name, value in found if value is not None]


def signature(update: JSON) -> str | None:
    """Return the version that was signed, and with which key; None if the update has no signature.

    Args:
        update: Update as JSON.
    """
    signed: JSON = update.get("signature") or {}
    if not signed:
        return None
    return f"version {signed.get('version')}, {shown(str(signed.get('key')), str(signed.get('key_id')))}"


def measurements(totals: JSON) -> list[tuple[str, str]]:
    """Return the `figures` of a report, or none if they are damaged.

    Args:
        totals: Totals of a report.
    """
    nothing: list[tuple[str, str]] = []
    return if_whole("the measurements", lambda: list(figures(totals)), nothing)


def _computed(known: Sequence[tuple[str, Callable[[], object]]]) -> Iterator[tuple[str, object]]:
    for name, value in known:
        yield name, if_whole(f"the fact {name!r}", value, None)


def _calibration(calibration: JSON) -> str | None:
    return f"{calibration['images']} images" if "images" in calibration else None


def totals_of(data: JSON) -> JSON:
    """Return the totals of the worker's report; {} without any.

    Args:
        data: Data of the update, see `service.reporting.data.gather`.
    """
    totals: JSON = (data.get("report") or {}).get("totals") or {}
    return totals


def _held_back(data: JSON) -> str | None:
    """Return how long the worker was kept off a core for requests; None if it was not, or if that is unknown."""
    seconds = (data.get("course") or {}).get("held_back_s")
    return format_seconds(seconds) if seconds else None


def bits_text(settings: JSON) -> str | None:
    """Return the bits of the codes, for example "4, first layer 8, activations 8"; None if they are unknown.

    Args:
        settings: Totals of a report, or the quantization of a manifest.
    """
    bits = settings.get("bits")
    if bits is None:
        return None
    activations = settings.get("activation_bits")
    after = [] if activations is None else [f"activations {activations}"]
    if bits == AUTO:
        widths = settings.get("layer_bits") or {}
        found = [f"{widths['least']} to {widths['most']}, {widths['mean']:.2f} on average"] if widths else []
        return ", ".join([": ".join([AUTO, *found]), *after])
    small = settings.get("small_bits") or bits
    others = ((which, settings.get(f"{which}_bits")) for which in ("first", "last"))
    layers = [f"{which} layer {own}" for which, own in others if own not in (None, bits, small)]
    layers += [f"small layers {small}"] if small != bits else []
    return ", ".join([str(bits), *layers, *after])


def levels(totals: JSON) -> str | None:
    """Return what the codes of the weights stand for, where they are for storage only; None where levels are uniform.

    Args:
        totals: Totals of a report.
    """
    if totals.get("levels", Levels.UNIFORM.value) == Levels.UNIFORM.value:
        return None
    return f"{totals['levels']}, for storage only: computed in float"


def kernels(totals: JSON) -> str | None:
    """Return why integers take more time than they could on this device; None if they do not.

    Args:
        totals: Totals of a report.
    """
    if not totals.get("exact_kernels"):
        return None
    return (
        "exact ones, because the processor has no VNNI and codes of 8 bits would saturate; those of 7 bits (--bits 7,"
        " quantization.bits) take about a quarter less time"
    )


def logits(totals: JSON) -> str | None:
    """Return what became of the transformation of the logits; None if none was asked for.

    Args:
        totals: Totals of a report.
    """
    if "corrected_share" not in totals:
        return None
    share: float | None = totals["corrected_share"]
    if share is None:
        return "as the network computes them: a transformation does not help on held-out images"
    return f"transformed by the nearest centroid: the error on held-out images is {100 * share:.1f} % lower"


def weights(totals: JSON) -> str | None:
    """Return which weights of the checkpoint were taken, from where, and how many other tensors were left out.

    Args:
        totals: Totals of a report.
    """
    taken: JSON = totals.get("checkpoint") or {}
    if not taken:
        return None
    place = [f"{name} {taken[name]!r}" for name in ("key", "prefix") if taken.get(name)]
    left_out = [f"{len(taken['left_out'])} other tensors left out"] if taken.get("left_out") else []
    return ", ".join([str(taken.get("weights")), *place, *left_out])


def reading(totals: JSON) -> str | None:
    """Return how the file was read where its tensors leave it open: what images spoke for, or what was assumed.

    Args:
        totals: Totals of a report.
    """
    taken: JSON = totals.get("checkpoint") or {}
    texts = []
    if tried := taken.get("readings"):
        of = f"of {tried['images']} labeled images right"
        each = [f"{entry['reading']}: {entry['correct']} {of}" for entry in tried["tried"] if entry["taken"]]
        others = [f"{entry['reading']}: {entry['correct']}" for entry in tried["tried"] if not entry["taken"]]
        undecided = "" if tried["decided"] else "; no clear difference"
        texts.append(f"{'; '.join(each)} ({'; '.join(others)}{undecided})")
    texts += [f"assumed: {text}" for text in taken.get("assumptions") or []]
    return "; ".join(texts) or None


def _artifact(totals: JSON) -> str | None:
    if "artifact_bytes" not in totals:
        return None
    return f"{format_bytes(totals['artifact_bytes'])}, {totals['compression']:.1f} times smaller"


def _peak(data: JSON, totals: JSON) -> str | None:
    course: JSON = data.get("course") or {}
    sampled = memory(data)
    peak = totals.get("peak_memory_bytes") or (sampled and sampled.peak_bytes)
    if peak is None:
        return None
    plan: JSON = (data.get("report") or {}).get("plan") or {}
    planned = f", {format_bytes(plan['peak_bytes'])} planned" if "peak_bytes" in plan else ""
    limit = f", {format_bytes(course['memory_max'])} allowed" if course.get("memory_max") else ""
    return f"{format_bytes(peak)}{planned}{limit}"


def figures(totals: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name and value of each measurement on the held-out images.

    Args:
        totals: Totals of a report.
    """
    before, after = totals.get("fp32", {}), totals.get("quantized", {})
    for key, name in NAMES.items():
        if key in before and key in after:
            drop = before[key] - after[key]
            yield name, f"{after[key]:.2f} % (full precision {before[key]:.2f} %, drop {drop:+.2f})"
    if "agreement" in totals:
        images = f"{totals.get('held_out_images', '?')} held-out images"
        boxes = totals.get("boxes")
        of = images if boxes is None else f"{_boxes(boxes)} in {images}"
        yield "agreement", f"{totals['agreement']:.2f} % of {of}"


def _boxes(counts: Mapping[str, int]) -> str:
    return f"{counts.get('quantized', '?')} boxes (full precision {counts.get('fp32', '?')})"


def prediction_text(prediction: JSON) -> str:
    """Return the class and score of a classification or a box, for example "cat 97.1 %"."""
    share = prediction.get("probability", prediction.get("score", 0.0))
    return f"{class_name(prediction)} {100 * share:.1f} %"


def class_name(prediction: JSON) -> str:
    """Return the name of a predicted class, or "class N" if it has none."""
    name = prediction.get("name")
    return f"class {prediction['class']}" if name is None else str(name)


def count_text(boxes: Sequence[JSON]) -> str:
    """Return the number of boxes with its noun, for example "1 box"."""
    return f"{len(boxes)} box" if len(boxes) == 1 else f"{len(boxes)} boxes"
