"""Frozen settings of quantization, of the preparation of images, and of the predictions that become boxes."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from edged.errors import UsageError
from edged.spelling import names_to_choose

MAX_DETECTIONS = 1000  # suppression compares each box with all candidates
MAX_WHOLE = 2**63 - 1  # the largest seed of torch's generators
AUTO = "auto"
ACTIVATION_BITS = 8  # of an activation's code where activations are quantized

T = TypeVar("T")


@dataclass(frozen=True)
class Bounds:
    """The range of a numeric setting, both ends included. Infinity and NaN are never allowed.

    Attributes:
        least: Smallest value.
        most: Largest value; MAX_WHOLE or infinity for no bound that matters.
        whole: Whether the value must be an integer.
        optional: Whether None is allowed, too.
        word: A word that is allowed, too; None for no word.
    """

    least: float
    most: float
    whole: bool
    optional: bool = False
    word: str | None = None

    def allow(self, value: object) -> bool:
        """Return whether `value` is a number within the bounds, or None or the word where that is allowed."""
        if value is None:
            return self.optional
        if isinstance(value, str):
            return value == self.word
        kinds = int if self.whole else (int, float)
        number = isinstance(value, kinds) and not isinstance(value, bool)
        return number and self.least <= value <= self.most and not math.isinf(value)  # type: ignore[operator, arg-type]  # a number

    def __str__(self) -> str:
        if self.word is not None:
            numbers = f"{self.least:g}" if self.least == self.most else f"{self.least:g} to {self.most:g}"
            return f"{self.word}, {numbers} or none" if self.optional else f"{numbers} or {self.word}"
        return f"{self.least} to {self.most}" if self.most < MAX_WHOLE else f"a number from {self.least} on"


def _whole(default: T, least: int, most: int = MAX_WHOLE) -> T:
    """Declare a field that holds an integer, or None where that is its default."""
    return _bounded(default, Bounds(least, most, whole=True, optional=default is None))


def _real(default: float, least: float, most: float = math.inf) -> float:
    """Declare a field that holds a finite number."""
    return _bounded(default, Bounds(least, most, whole=False))


def _bounded(default: T, bounds: Bounds) -> T:
    field: Any = dataclasses.field(default=default, metadata={"bounds": bounds})
    return field  # type: ignore[no-any-return]  # typed as the value, like dataclasses.field itself


def bounds_of(spec: type) -> dict[str, Bounds]:
    """Return the bounds of each field of a settings dataclass that has some, by name."""
    return {field.name: field.metadata["bounds"] for field in dataclasses.fields(spec) if "bounds" in field.metadata}


def _check_bounds(spec: object) -> None:
    """Raise UsageError at the first field of a settings dataclass that is out of its bounds."""
    for name, bounds in bounds_of(type(spec)).items():
        if not bounds.allow(value := getattr(spec, name)):
            raise UsageError(f"{name} has value {value!r:.80}; choose {bounds}")


SMALL_BITS = 7  # 8 bits saturate on some processors


class Method(str, enum.Enum):
    """The method that chooses the codes."""

    FASTOBQ = "fastobq"  # one column order and one inverse Hessian for all rows (arXiv 2509.05576)
    OBQ = "obq"  # an order and an inverse Hessian for each row (arXiv 2208.11580): slow, for comparison
    RTN = "rtn"  # round to nearest
    REQUANT = "requant"  # round to nearest in a range found by golden-section search (arXiv 2510.04044)


class Order(str, enum.Enum):
    """The order in which columns are quantized."""

    SENSITIVITY = "sensitivity"  # descending sum over rows of L_q (arXiv 2509.05576, Eq. 11)
    ERROR = "error"  # descending sum over rows of |quant(w) - w|
    WEIGHT = "weight"  # descending sum over rows of |w|
    HESSIAN = "hessian"  # descending diag(H)
    MIN_PIVOT = "min-pivot"  # from the last column back, the column with the least elimination pivot
    BEST = "best"  # per layer, whichever of sensitivity, min-pivot and hessian gives the least loss
    NONE = "none"  # as stored


class Search(str, enum.Enum):
    """The search for each row's range."""

    MINMAX = "minmax"  # the full range
    MSE = "mse"  # least squared rounding error
    WEIGHTED = "weighted"  # least squared rounding error weighted by diag(H)
    LOSS = "loss"  # weighted, then refined by the true loss after compensation
    GOLDEN = "golden"  # one clip factor per layer by golden-section search (arXiv 2510.04044)


class Statistics(str, enum.Enum):
    """The treatment of BatchNorm statistics and biases. A change is kept only if it lowers the held-out error."""

    NONE = "none"  # as trained
    BIAS = "bias"  # means moved by what quantization changed, variances as trained (edged.engine.statistics)
    MATCH = "match"  # means and variances moved by what quantization changed
    REESTIMATE = "reestimate"  # replaced by those of the calibration images, as in the paper


class Levels(str, enum.Enum):
    """The spacing of the values that codes stand for."""

    UNIFORM = "uniform"  # equal steps
    POWER = "power"  # denser around zero, for storage: weights are decoded to floats (arXiv 2510.04044)


class Scheme(str, enum.Enum):
    """The position of zero in the grid."""

    SYMMETRIC = "symmetric"  # zero_point is the middle code
    ASYMMETRIC = "asymmetric"  # zero_point follows each row's range


@dataclass(frozen=True)
class QuantSpec:
    """The settings of a quantization.

    The bounds of each number are declared with its field; the config file and the command line read them from here.

    Attributes:
        method: Method that chooses the codes.
        bits: Bits per weight code; AUTO chooses them for each layer, within `size_limit` or `max_drop`.
        size_limit: Most bytes of the artifact's weights file with bits AUTO; None for no limit but `max_drop`.
        max_drop: Most points of top-1 or mAP50-95 to lose on the held-out images with bits AUTO, which takes as few
            bytes as that needs; None to lose as little as `size_limit` allows.
        scheme: Symmetric or asymmetric per-channel grid.
        levels: Spacing of the grid's values. Those of POWER need method REQUANT, and activations in float.
        order: Column order of FastOBQ.
        descending: Whether the highest score of the order comes first.
        search: Search for each row's range.
        beam: Partial assignments that are kept in each row; 1 is the greedy choice.
        descent_passes: Passes of coordinate descent over the codes.
        first_bits: Bits of the first layer, None for `bits`.
        last_bits: Bits of the last layer, None for `bits`.
        small_bits: Bits of each layer with at most a two-hundredth of the weights (a hundredth in a detector) and of a
            detector's output layers, unless `first_bits` or `last_bits` says otherwise. None for `bits`, or for 7 if
            `bits` is less and activations are quantized: these layers lose the most, and integer engines compute them
            as fast.
        activation_bits: Bits per code of activations, None to compute with activations in float. AUTO quantizes them,
            and a measurement chooses between integers and floats.
        damp_ratio: Share of mean(diag H) that is added to diag H. H is positive semi-definite, so any ratio above 0
            makes it positive definite; the larger the ratio, the closer the codes are to round-to-nearest.
        damp_absolute: Constant that is added to diag H as well, in squared input units, as in the paper.
        block_size: Columns per lazy update; changes speed, not codes.
        rows_at_once: Rows that are searched together; changes memory and speed, not codes.
        propagation: How far each layer corrects the errors of the layers before it: 0 (not at all) to 1 (in full).
        statistics: Treatment of BatchNorm statistics and biases.
        cluster_affine: Whether a classifier's logits are brought closer to full precision by a transformation that
            depends on the nearest of some centroids (arXiv 2509.26277); kept only if it lowers the held-out error.
        augmentation: Versions of each calibration image that are used: the image itself, then random flips and crops.
        seed: Seed of every random choice.

    Raises:
        UsageError: A number is out of its bounds.
    """

    method: Method = Method.FASTOBQ
    bits: int | str = _bounded(4, Bounds(2, 8, whole=True, word=AUTO))
    size_limit: int | None = _whole(None, 1)
    max_drop: float | None = _bounded(None, Bounds(0, 100, whole=False, optional=True))
    scheme: Scheme = Scheme.ASYMMETRIC
    levels: Levels = Levels.UNIFORM
    order: Order = Order.SENSITIVITY
    descending: bool = True
    search: Search = Search.LOSS
    beam: int = _whole(1, 1, 64)
    descent_passes: int = _whole(0, 0)
    first_bits: int | None = _whole(None, 2, 8)
    last_bits: int | None = _whole(None, 2, 8)
    small_bits: int | None = _whole(None, 2, 8)
    activation_bits: int | str | None = _bounded(
        None, Bounds(ACTIVATION_BITS, ACTIVATION_BITS, whole=True, optional=True, word=AUTO)
    )
    damp_ratio: float = _real(0.01, 0)
    damp_absolute: float = _real(0.0, 0)
    block_size: int = _whole(256, 1)
    rows_at_once: int = _whole(256, 1)
    propagation: float = _real(1.0, 0, 1)
    statistics: Statistics = Statistics.MATCH
    cluster_affine: bool = False
    augmentation: int = _whole(1, 1)
    seed: int = _whole(0, 0)

    def __post_init__(self) -> None:
        _check_bounds(self)
        given = [name for name in ("size_limit", "max_drop") if getattr(self, name) is not None]
        if self.bits == AUTO and not given:
            raise UsageError("bits is auto without a limit; give size_limit or max_drop, too")
        if self.bits != AUTO and given:
            raise UsageError(f"{given[0]} is for bits auto, and bits has value {self.bits}; give bits auto, or drop it")
        if self.cluster_affine and self.size_limit is not None:
            raise UsageError("cluster_affine adds bytes that size_limit does not count; leave one of them out")
        if self.levels is Levels.POWER:
            self._check_power_levels()

    def _check_power_levels(self) -> None:
        if self.method is not Method.REQUANT:
            raise UsageError(f"levels has value power, and method {self.method.value}; give method requant, too")
        if self.activation_bits not in (None, AUTO):
            raise UsageError(
                f"levels has value power, which no engine computes on integers, and activation_bits"
                f" {self.activation_bits}; leave activation_bits out, or give levels uniform"
            )
        if self.size_limit is not None:
            raise UsageError("levels power adds bytes that size_limit does not count; leave one of them out")

    @property
    def uniform_bits(self) -> int | None:
        """Bits of each layer that no other setting gives bits; None where they are chosen for each layer."""
        return None if isinstance(self.bits, str) else self.bits

    @property
    def width(self) -> int:
        """Bits of each code by settings of a single layer, whose bits are known."""
        assert isinstance(self.bits, int)  # noqa: S101 - see `edged.engine.layerwise.spec_of_layer`
        return self.bits

    @property
    def quantizes_activations(self) -> bool:
        """Whether activations are quantized, for certain or to be compared with floats."""
        return self.activation_bits is not None and self.levels is Levels.UNIFORM

    @property
    def bits_of_small_layers(self) -> int | None:
        """Bits of layers with few weights, and of a detector's output layers; None where they are chosen for each."""
        bits = self.uniform_bits
        if self.small_bits is not None or bits is None:
            return self.small_bits
        return max(bits, SMALL_BITS) if self.quantizes_activations else bits

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, enums as their values."""
        return {k: v.value if isinstance(v, enum.Enum) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> QuantSpec:
        """Read what `to_dict` returns; fields that are missing have their defaults.

        Raises:
            UsageError: A key is unknown or a value impossible.
        """
        kinds: dict[str, type[enum.Enum]] = {
            "method": Method,
            "scheme": Scheme,
            "levels": Levels,
            "order": Order,
            "search": Search,
            "statistics": Statistics,
        }
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise UsageError(
                f"unknown quantization setting {unknown[0]!r}; {names_to_choose(unknown[0], sorted(known), 'known:')}"
            )
        values: dict[str, Any] = {}
        for key, value in data.items():
            try:
                values[key] = kinds[key](value) if key in kinds else value
            except ValueError:
                allowed = names_to_choose(str(value), [member.value for member in kinds[key]], "choose one of")
                raise UsageError(f"{key} has value {value!r}; {allowed}") from None
        return cls(**values)


RECIPES: Mapping[str, Mapping[str, Any]] = {
    # Each layer is quantized on its own: one pass over the images.
    "fast": {"propagation": 0.0},
    # Each layer corrects the errors of the layers before it.
    "balanced": {},
    # As balanced, with several orders tried and the codes improved afterwards.
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
    """Return the QuantSpec of a recipe, with some of its fields replaced.

    Args:
        name: A key of RECIPES.
        overrides: Fields of QuantSpec; None leaves the recipe's value.

    Raises:
        UsageError: There is no such recipe or field, or a value is impossible.
    """
    if name not in RECIPES:
        raise UsageError(f"recipe has value {name!r}; {names_to_choose(name, RECIPES, 'choose one of')}")
    given = {key: value for key, value in overrides.items() if value is not None}
    return QuantSpec.from_dict({**RECIPES[name], **given})


# Channels of an image -> Pillow's mode. Images without alpha are opaque.
IMAGE_MODES: Mapping[int, str] = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


class Fit(str, enum.Enum):
    """The way in which an image of any shape becomes a square."""

    CROP = "crop"  # shorter side to `resize`, then the middle: classifiers
    LETTERBOX = "letterbox"  # longer side to `size`, then gray borders: detectors, which must see everything


@dataclass(frozen=True)
class InputSpec:
    """The preparation of an image as input: scaled (bilinear, antialiased), cropped or bordered, then normalized.

    Attributes:
        size: Side of the square input, pixels.
        resize: Length that the shorter side is scaled to before the crop, pixels; not used by a letterbox.
        mean: Per-channel mean that is subtracted, in units of 0..1 intensity.
        std: Per-channel divisor, same units.
        fit: Way in which the image becomes a square.

    Raises:
        UsageError: The values do not fit together.
    """

    size: int = 224
    resize: int = 256
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    fit: Fit = Fit.CROP

    def __post_init__(self) -> None:
        if self.size < 1 or self.resize < self.size:
            raise UsageError(f"input size {self.size} with resize {self.resize}: need 1 <= size <= resize")
        if len(self.mean) != len(self.std) or len(self.mean) not in IMAGE_MODES:
            raise UsageError(
                f"mean has {len(self.mean)} and std {len(self.std)} values; give both one value a channel:"
                " 3 (RGB), 1 (gray), 4 (RGB with alpha) or 2 (gray with alpha)"
            )
        if any(value <= 0 for value in self.std):
            raise UsageError(f"std has value {list(self.std)}; every entry must be positive")

    @classmethod
    def letterbox(cls, size: int, channels: int = 3) -> InputSpec:
        """Return the input of a detector: letterboxed to `size` pixels, intensities from 0 to 1."""
        return cls(size, size, (0.0,) * channels, (1.0,) * channels, Fit.LETTERBOX)

    @property
    def channels(self) -> int:
        """Number of channels of an image, a key of IMAGE_MODES."""
        return len(self.mean)

    def describe(self) -> str:
        """Describe the preparation in one line for people."""
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        how = f"shorter side to {self.resize}, then the central {self.size} pixels"
        if self.fit is Fit.LETTERBOX:
            how = f"letterboxed to {self.size} pixels"
        return f"{how}; mean {mean}; std {std}"

    def override(self, settings: Mapping[str, Any]) -> InputSpec:
        """Return this spec with the user's settings; a size alone keeps the share of border that is cropped.

        Args:
            settings: Values by field name; None leaves a field as it is.

        Raises:
            UsageError: A setting is unknown, or the result is impossible.
        """
        known = self.to_dict()
        given = {key: value for key, value in settings.items() if value is not None}
        if unknown := sorted(set(given) - set(known)):
            raise UsageError(f"unknown input setting {unknown[0]!r}; {names_to_choose(unknown[0], known, 'known:')}")
        if self.fit is Fit.LETTERBOX and given.get("resize", self.resize) != self.resize:
            raise UsageError(
                f"input resize has value {given['resize']}; a detector's images are letterboxed, so give the size alone"
            )
        if "size" in given and self.fit is Fit.LETTERBOX:
            given["resize"] = given["size"]
        if "size" in given and "resize" not in given:
            given["resize"] = round(given["size"] * self.resize / self.size)
        return InputSpec.from_dict(known | given)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        plain = {"size": self.size, "resize": self.resize, "mean": list(self.mean), "std": list(self.std)}
        return plain | {"fit": self.fit.value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> InputSpec:
        """Read what `to_dict` returns; manifests from before letterboxes existed have no key "fit".

        Raises:
            UsageError: The values do not fit together.
        """
        given = data.get("fit", Fit.CROP.value)
        if given not in [fit.value for fit in Fit]:
            raise UsageError(f"input fit has value {given!r}; choose crop or letterbox")
        return cls(int(data["size"]), int(data["resize"]), tuple(data["mean"]), tuple(data["std"]), Fit(given))


@dataclass(frozen=True)
class DetectionSpec:
    """The rules for the predictions of a detector that become boxes.

    Attributes:
        confidence: Least score (objectness times class probability) of a box.
        iou: Largest overlap of two boxes of one class, intersection over union; the weaker of two that overlap more is
            dropped.
        max_detections: Most boxes per image.
        multi_label: Whether a prediction gives a box for every class above `confidence`, or for its best class only.

    Raises:
        UsageError: A value is out of its bounds.
    """

    confidence: float = _real(0.25, 0, 1)
    iou: float = _real(0.45, 0, 1)
    max_detections: int = _whole(300, 1, MAX_DETECTIONS)
    multi_label: bool = False

    def __post_init__(self) -> None:
        _check_bounds(self)
        if not isinstance(self.multi_label, bool):
            raise UsageError(f"multi_label has value {self.multi_label!r:.80}; choose true or false")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DetectionSpec:
        """Read what `to_dict` returns; fields that are missing have their defaults.

        Raises:
            UsageError: A key is unknown or a value impossible.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise UsageError(
                f"unknown detection setting {unknown[0]!r}; {names_to_choose(unknown[0], sorted(known), 'known:')}"
            )
        return cls(**data)


INTEGER, FLOAT = PRECISIONS = ("integer", "float")  # of the activations, and so of the computation
RUNTIMES = ("auto", "onnxruntime", "openvino", "torch", "tensorrt")  # engines that compute a model in service
PROVIDERS = ("tensorrt", "cuda", "cpu")  # where ONNX Runtime computes
WEIGHTS = ("auto", "averaged", "last")
STEM_POOLING = ("auto", "true", "false")
STRIDES_IN = ("auto", "3x3", "1x1")
IDLE_LAYERS = ("dropout", "flatten")  # they change nothing at inference
HEAD_LAYERS = (
    *("linear", "batchnorm", "relu", "leaky_relu", "gelu", "silu", "hardswish", "tanh", "sigmoid", "concat_pool"),
    *IDLE_LAYERS,
)
MAX_HEAD_LAYERS = 32


@dataclass(frozen=True)
class Choice:
    """The user's answers to what a checkpoint file leaves open: which network, and what its tensors do not tell.

    Attributes:
        key: Key of its state dict in the file, nested keys joined by dots, "" for the top; None to look for it.
        prefix: Prefix of the names of its tensors; None to look for it.
        weights: "averaged", "last", or "auto" for the averaged weights (EMA, SWA) where there are any.
        stem_pooling: Whether max-pooling follows the first convolution, "true" or "false"; "auto" for what is usual.
        stride_in: Convolution of a bottleneck block that has the stride, "3x3" (ResNet v1.5) or "1x1" (the first one,
            ResNet v1); "auto" for what is usual.
        head: Layers of a head of several layers, in order, each one of HEAD_LAYERS; empty for one linear layer.

    Raises:
        UsageError: A field has another value.
    """

    key: str | None = None
    prefix: str | None = None
    weights: str = "auto"
    stem_pooling: str = "auto"
    stride_in: str = "auto"
    head: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in (("weights", WEIGHTS), ("stem_pooling", STEM_POOLING), ("stride_in", STRIDES_IN)):
            if (value := getattr(self, name)) not in allowed:
                raise UsageError(f"{name} has value {value!r:.80}; choose one of {', '.join(allowed)}")
        if unknown := [layer for layer in self.head if layer not in HEAD_LAYERS]:
            raise UsageError(f"head has the layer {unknown[0]!r:.80}; edged knows {', '.join(HEAD_LAYERS)}")
        if self.head and ("linear" not in self.head or len(self.head) > MAX_HEAD_LAYERS):
            raise UsageError(f"head has {len(self.head)} layers; give 1 to {MAX_HEAD_LAYERS}, one of them linear")
        if "concat_pool" in self.head_layers[1:]:
            raise UsageError("head has concat_pool after another layer; it pools the maps, so it must be the first")

    @property
    def head_layers(self) -> tuple[str, ...]:
        """The layers of `head` that compute something at inference; empty where that is one linear layer."""
        layers = tuple(layer for layer in self.head if layer not in IDLE_LAYERS)
        return () if layers == ("linear",) else layers

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**vars(self), "head": list(self.head)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Choice:
        """Read what `to_dict` returns."""
        return cls(**{**data, "head": tuple(data.get("head", ()))})


# Settings for measuring mAP: they keep every box that could still count.
EVALUATION = DetectionSpec(confidence=0.001, iou=0.6, max_detections=300, multi_label=True)
