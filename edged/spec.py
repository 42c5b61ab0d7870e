"""What to do, as frozen data: how a model is quantized and how its images are prepared."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edged.errors import UsageError

MIN_BITS, MAX_BITS = 2, 8
MAX_BEAM = 64
MAX_DETECTIONS = 1000  # suppression compares each with all candidates
MAX_SEED = 2**63 - 1
# Least and most value of each numeric field of QuantSpec.
_WHOLE_NUMBERS: Mapping[str, tuple[int, int]] = {
    "bits": (MIN_BITS, MAX_BITS),
    "first_bits": (MIN_BITS, MAX_BITS),
    "last_bits": (MIN_BITS, MAX_BITS),
    "beam": (1, MAX_BEAM),
    "descent_passes": (0, MAX_SEED),
    "block_size": (1, MAX_SEED),
    "rows_at_once": (1, MAX_SEED),
    "augmentation": (1, MAX_SEED),
    "seed": (0, MAX_SEED),
}
_REAL_NUMBERS: Mapping[str, tuple[float, float]] = {
    "damp_ratio": (0, math.inf),
    "damp_absolute": (0, math.inf),
    "propagation": (0, 1),
}


class Method(str, enum.Enum):
    """How codes are chosen."""

    FASTOBQ = "fastobq"  # one column order and one inverse Hessian for all rows (arXiv 2509.05576)
    OBQ = "obq"  # an order and an inverse Hessian for each row (arXiv 2208.11580): slow, for comparison
    RTN = "rtn"  # round to nearest


class Order(str, enum.Enum):
    """Which column is quantized first."""

    SENSITIVITY = "sensitivity"  # descending sum over rows of L_q (arXiv 2509.05576, Eq. 11)
    ERROR = "error"  # descending sum over rows of |quant(w) - w|
    WEIGHT = "weight"  # descending sum over rows of |w|
    HESSIAN = "hessian"  # descending diag(H)
    MIN_PIVOT = "min-pivot"  # so that, from the last column back, each elimination pivot is the least
    BEST = "best"  # per layer, whichever of sensitivity, min-pivot and hessian gives the least loss
    NONE = "none"  # as stored


class Search(str, enum.Enum):
    """How each row's range is found."""

    MINMAX = "minmax"  # the full range
    MSE = "mse"  # least squared rounding error
    WEIGHTED = "weighted"  # least squared rounding error weighted by diag(H)
    LOSS = "loss"  # weighted, then refined by the true loss after compensation
    GOLDEN = "golden"  # one clip factor per layer by golden-section search (arXiv 2510.04044), on the true loss


class Statistics(str, enum.Enum):
    """What becomes of BatchNorm statistics and biases. Kept only if it lowers the held-out error."""

    NONE = "none"  # as trained
    BIAS = "bias"  # means moved by what quantization changed, variances as trained (edged.engine.statistics)
    MATCH = "match"  # means and variances moved likewise
    REESTIMATE = "reestimate"  # replaced by those of the calibration images, as in the paper


class Scheme(str, enum.Enum):
    """Where zero lies on the grid."""

    SYMMETRIC = "symmetric"  # zero_point is the middle code
    ASYMMETRIC = "asymmetric"  # zero_point follows each row's range


@dataclass(frozen=True)
class QuantSpec:
    """How a model is quantized.

    Attributes:
        method: How codes are chosen.
        bits: Bits per weight code, 2..8.
        scheme: Symmetric or asymmetric per-channel grid.
        order: Column order of FastOBQ.
        descending: Whether the highest score of the order comes first.
        search: How each row's range is found.
        beam: Partial assignments that are kept in each row, 1..64; 1 is the greedy choice.
        descent_passes: Passes of coordinate descent over the codes.
        first_bits: Bits of the first layer, None for `bits`.
        last_bits: Bits of the last layer, None for `bits`.
        damp_ratio: Share of mean(diag H) added to diag H.
        damp_absolute: Added to diag H besides, in squared input units; the paper's way.
        block_size: Columns per lazy update; changes speed, not codes.
        rows_at_once: Rows that are searched together; changes memory and speed, not codes.
        propagation: How far each layer corrects the errors of the layers before it, 0 (stands for itself) to 1.
        statistics: What becomes of BatchNorm statistics and biases.
        augmentation: Versions of each calibration image that are used: itself, then random flips and crops.
        seed: Seeds every random choice.
    """

    method: Method = Method.FASTOBQ
    bits: int = 4
    scheme: Scheme = Scheme.ASYMMETRIC
    order: Order = Order.SENSITIVITY
    descending: bool = True
    search: Search = Search.LOSS
    beam: int = 1
    descent_passes: int = 0
    first_bits: int | None = None
    last_bits: int | None = None
    damp_ratio: float = 0.01
    damp_absolute: float = 0.0
    block_size: int = 256
    rows_at_once: int = 256
    propagation: float = 1.0
    statistics: Statistics = Statistics.MATCH
    augmentation: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (least, most) in _WHOLE_NUMBERS.items():
            value = getattr(self, name)
            optional = value is None and name in ("first_bits", "last_bits")
            if not optional and (not _is_number(value, int) or not least <= value <= most):
                raise UsageError(f"{name} has value {value!r}; choose {_between(least, most)}")
        for name, (low, high) in _REAL_NUMBERS.items():
            value = getattr(self, name)
            if not _is_number(value, (int, float)) or not low <= value <= high or math.isinf(value):
                raise UsageError(f"{name} has value {value!r}; choose {_between(low, high)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, enums as their values."""
        return {k: v.value if isinstance(v, enum.Enum) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> QuantSpec:
        """Inverse of `to_dict`; unknown keys raise UsageError."""
        kinds: dict[str, type[enum.Enum]] = {
            "method": Method,
            "scheme": Scheme,
            "order": Order,
            "search": Search,
            "statistics": Statistics,
        }
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise UsageError(f"unknown quantization setting {unknown[0]!r}; known: {', '.join(sorted(known))}")
        values: dict[str, Any] = {}
        for key, value in data.items():
            try:
                values[key] = kinds[key](value) if key in kinds else value
            except ValueError:
                allowed = ", ".join(str(member.value) for member in list(kinds[key]))
                raise UsageError(f"{key} has value {value!r}; choose one of {allowed}") from None
        return cls(**values)


def _is_number(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _between(least: float, most: float) -> str:
    return f"{least} to {most}" if most < MAX_SEED else f"a number from {least} on"


RECIPES: Mapping[str, Mapping[str, Any]] = {
    # Each layer stands for itself: one pass over the images.
    "fast": {"propagation": 0.0},
    # Each layer makes up for those before it.
    "balanced": {},
    # Likewise, trying several orders and improving the codes afterwards.
    "best": {"order": Order.BEST, "beam": 4, "descent_passes": 2},
    # arXiv 2509.05576 as published.
    "paper": {
        "propagation": 0.0,
        "scheme": Scheme.SYMMETRIC,
        "search": Search.MSE,
        "damp_ratio": 0.0,
        "damp_absolute": 0.1,
        "statistics": Statistics.REESTIMATE,
        "augmentation": 10,
    },
}
DEFAULT_RECIPE = "balanced"


def recipe(name: str, **overrides: Any) -> QuantSpec:
    """The QuantSpec of a recipe, with some of its fields set otherwise.

    Args:
        name: A key of RECIPES.
        overrides: Fields of QuantSpec; None leaves the recipe's value.

    Raises:
        UsageError: There is no such recipe or field.
    """
    if name not in RECIPES:
        raise UsageError(f"recipe has value {name!r}; choose one of {', '.join(RECIPES)}")
    given = {key: value for key, value in overrides.items() if value is not None}
    return QuantSpec.from_dict({**RECIPES[name], **given})


class Fit(str, enum.Enum):
    """How an image of any shape becomes a square."""

    CROP = "crop"  # shorter side to `resize`, then the middle: classifiers
    LETTERBOX = "letterbox"  # longer side to `size`, then grey borders: detectors, which must see everything


@dataclass(frozen=True)
class InputSpec:
    """How an image becomes a network input: scaled (bilinear, antialiased), cropped or bordered, then normalized.

    Attributes:
        size: Side of the square input, pixels.
        resize: Length that the shorter side is scaled to before the crop, pixels; plays no part in a letterbox.
        mean: Per-channel mean that is subtracted, in units of 0..1 intensity.
        std: Per-channel divisor, same units.
        fit: How the image becomes a square.
    """

    size: int = 224
    resize: int = 256
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    fit: Fit = Fit.CROP

    def __post_init__(self) -> None:
        if self.size < 1 or self.resize < self.size:
            raise UsageError(f"input size {self.size} with resize {self.resize}: need 1 <= size <= resize")
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise UsageError(f"mean has {len(self.mean)} and std {len(self.std)} values; give both 3 (RGB) or 1 (grey)")
        if any(value <= 0 for value in self.std):
            raise UsageError(f"std has value {list(self.std)}; every entry must be positive")

    @property
    def channels(self) -> int:
        """3 for RGB, 1 for greyscale."""
        return len(self.mean)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        plain = {"size": self.size, "resize": self.resize, "mean": list(self.mean), "std": list(self.std)}
        return plain | {"fit": self.fit.value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> InputSpec:
        """Inverse of `to_dict`; manifests from before there was a letterbox have no key "fit"."""
        given = data.get("fit", Fit.CROP.value)
        if given not in [fit.value for fit in Fit]:
            raise UsageError(f"input fit has value {given!r}; choose crop or letterbox")
        return cls(int(data["size"]), int(data["resize"]), tuple(data["mean"]), tuple(data["std"]), Fit(given))


@dataclass(frozen=True)
class DetectionSpec:
    """Which of a detector's predictions count as boxes.

    Attributes:
        confidence: Least score, objectness times class, 0 to 1.
        iou: Of two boxes of one class that overlap by more, the weaker goes.
        max_detections: Most boxes an image.
        multi_label: Whether a prediction gives a box for every class above `confidence`, or for its best class only.
    """

    confidence: float = 0.25
    iou: float = 0.45
    max_detections: int = 300
    multi_label: bool = False

    def __post_init__(self) -> None:
        for name in ("confidence", "iou"):
            value = getattr(self, name)
            if not _is_number(value, (int, float)) or not 0 <= value <= 1:
                raise UsageError(f"{name} has value {value!r:.80}; choose 0 to 1")
        if not _is_number(self.max_detections, int) or not 1 <= self.max_detections <= MAX_DETECTIONS:
            raise UsageError(f"max_detections has value {self.max_detections!r:.80}; choose 1 to {MAX_DETECTIONS}")
        if not isinstance(self.multi_label, bool):
            raise UsageError(f"multi_label has value {self.multi_label!r:.80}; choose true or false")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DetectionSpec:
        """Inverse of `to_dict`; what is not given has its default. Unknown keys raise UsageError."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise UsageError(f"unknown detection setting {unknown[0]!r}; known: {', '.join(sorted(known))}")
        return cls(**data)


# How mAP is measured: every box that could still count.
EVALUATION = DetectionSpec(confidence=0.001, iou=0.6, max_detections=300, multi_label=True)
