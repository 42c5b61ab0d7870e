"""The sections of the config file, which service.config.load combines.

A bound excludes only values that cannot work; values that are merely unwise are allowed.
"""

# `setting` describes a field, as dataclasses.field does; it is called once, when the class is made.
# ruff: noqa: RUF009

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.errors import UsageError
from edged.evaluation.gates import Gates
from edged.models.names import ARCHITECTURES, CLASSIFIERS, LARGEST_STRIDES
from edged.signing.keys import PublicKey, read_public_key
from edged.spec import (
    AUTO,
    HEAD_LAYERS,
    MAX_DETECTIONS,
    PROVIDERS,
    RUNTIMES,
    STEM_POOLING,
    STRIDES_IN,
    WEIGHTS,
    Choice,
    DetectionSpec,
    InputSpec,
    Levels,
    Scheme,
)
from service.config.fields import (
    Reader,
    boolean,
    choice,
    described,
    file,
    folder_or_list,
    list_of,
    number,
    path,
    setting,
    size,
    subsection,
    text,
    whole,
)
from service.config.labels import labels
from service.config.quantization import Quantization, QuantizationConfig
from service.config.windows import Window, parse_windows
from service.config.yaml_source import Location
from service.ipc.options import Batching
from service.system.host_names import is_host_name

ANY_HOST = "*"
_MAX_THREADS = 1024  # of a process
SANDBOX = ("auto", "require", "off")
MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def _model_name(value: Any, reader: Reader, location: Location) -> str:
    if not MODEL_NAME.fullmatch(text(value, reader, location)):
        raise ValueError("use letters, digits, '.', '_' and '-', at most 128, not starting with '.' or '-'")
    return str(value)


def _windows(value: Any, reader: Reader, location: Location) -> tuple[Window, ...]:
    texts = value if isinstance(value, list) else [value]
    return parse_windows(text(each, reader, location) for each in texts)


def _stem_pooling(value: Any, reader: Reader, location: Location) -> str:
    """Read true, false or auto."""
    word = str(value).lower() if isinstance(value, bool) else value
    return choice(*STEM_POOLING)(word, reader, location)


described(_stem_pooling, ", ".join(f"`{word}`" for word in STEM_POOLING))


def _power_mode(value: Any, reader: Reader, location: Location) -> str:
    """Read the ID or the name of a power mode; `15` and `"15"` are the same."""
    return str(value) if type(value) is int else text(value, reader, location)


def _runtime(value: Any, reader: Reader, location: Location) -> RuntimeConfig:
    """Read the name of an engine, or a section of the name and more."""
    if value is None or isinstance(value, dict):
        return reader.section(RuntimeConfig, value, location)
    return RuntimeConfig(name=choice(*RUNTIMES)(value, reader, location))


def _sandbox(value: Any, reader: Reader, location: Location) -> str:
    """Read one of SANDBOX; YAML reads `off` as false."""
    return choice(*SANDBOX)("off" if value is False else value, reader, location)


described(_sandbox, ", ".join(f"`{word}`" for word in SANDBOX))

_AUTO_THREADS: int | str = "auto"


def _threads(value: Any, reader: Reader, location: Location) -> int | str:
    """Read a number of threads, or auto, which an empty value means, too."""
    if value in (None, "auto"):
        return _AUTO_THREADS
    try:
        return whole(1, _MAX_THREADS)(value, reader, location)
    except ValueError as error:
        raise ValueError(f"{error}, or auto") from None


def _public_key(value: Any, reader: Reader, location: Location) -> PublicKey:
    """Read the file of a public key."""
    try:
        return read_public_key(file(value, reader, location))
    except UsageError as error:
        raise ValueError(str(error)) from None


def _public_keys(value: Any, reader: Reader, location: Location) -> tuple[PublicKey, ...]:
    """Read a list of public keys. It may be empty, but an empty value is none: it would need no signature any more."""
    return () if value == [] else list_of(_public_key)(value, reader, location)


described(_public_key, "path of a public key in PEM")
described(_public_keys, "list: path of a public key in PEM")
described(_threads, "`auto`, or a whole number, at least 1")
described(_model_name, "name: letters, digits, `.`, `_`, `-`; at most 128")
described(_windows, "times of day as `HH:MM-HH:MM`")
described(_power_mode, "name or number")


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """Preprocessing of images; the architecture determines the keys that are not given."""

    size: int | None = setting(whole(1, 4096), None)
    resize: int | None = setting(whole(1, 8192), None)
    mean: tuple[float, ...] | None = setting(list_of(number()), None)
    std: tuple[float, ...] | None = setting(list_of(number(above=0)), None)

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError("give mean and std together, or neither")
        # Omitted keys get values that fit the given ones, so that only given keys can contradict each other.
        given = self.overrides()
        resize = given.setdefault("resize", given.get("size", InputSpec.resize))
        given.setdefault("size", min(resize, InputSpec.size))
        try:
            InputSpec.from_dict(InputSpec().to_dict() | given)
        except UsageError as error:
            raise ValueError(str(error)) from None

    def overrides(self) -> dict[str, Any]:
        """Return the given settings by the field names of InputSpec, as plain JSON types."""
        given = {key: value for key, value in vars(self).items() if value is not None}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """The images that calibrate the quantization."""

    dir: Path = setting(folder_or_list)
    images: int = setting(whole(32), 1024)


@dataclass(frozen=True, kw_only=True)
class GatesConfig:
    """Conditions that a quantized model must meet to be served, and to stay in service during its probation."""

    min_agreement: float = setting(number(0, 100), 50.0)
    max_drop: float | None = setting(number(0, 100), None)
    min_accuracy: float | None = setting(number(0, 100), None)
    varied_outputs: bool = setting(boolean, True)
    above_chance: bool = setting(boolean, True)
    plausible_weights: bool = setting(boolean, True)
    same_interface: bool = setting(boolean, True)
    max_latency_ratio: float | None = setting(number(above=0), None)
    max_memory: int | None = setting(size, None)
    max_error_rate: float = setting(number(0, 100), 5.0)
    max_p99_ratio: float | None = setting(number(above=0), None)
    min_shadow_agreement: float | None = setting(number(0, 100), None)
    shadow_percent: float = setting(number(0, 100, above=0), 10.0)

    def to_gates(self) -> Gates:
        """Return the gates that the worker checks."""
        return Gates(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Gates)})


@dataclass(frozen=True, kw_only=True)
class BatchingConfig:
    """How many requests are computed in one batch, and how long a batch waits for them."""

    max_batch: int = setting(whole(1, 128), 1)
    max_delay_ms: float = setting(number(0, 10_000), 0.0)

    def __post_init__(self) -> None:
        if self.max_batch == 1 and self.max_delay_ms:
            raise ValueError("max_delay_ms waits for a batch, and max_batch is 1; raise max_batch or remove the delay")

    def to_batching(self) -> Batching:
        """Return the options that a generation is started with."""
        return Batching(self.max_batch, self.max_delay_ms / 1000)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Where the network is in a checkpoint file that holds several."""

    key: str | None = setting(text, None)
    prefix: str | None = setting(text, None)


@dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """Filters for the predictions of a detector that become boxes of a response; not for classifiers."""

    confidence: float = setting(number(0, 1), DetectionSpec.confidence)
    iou: float = setting(number(0, 1), DetectionSpec.iou)
    max_detections: int = setting(whole(1, MAX_DETECTIONS), DetectionSpec.max_detections)

    def to_spec(self) -> DetectionSpec:
        """Return the settings as a DetectionSpec of the library."""
        return DetectionSpec(self.confidence, self.iou, self.max_detections)


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """The engine that computes requests, and where."""

    name: str = setting(choice(*RUNTIMES), "auto")
    providers: tuple[str, ...] = setting(list_of(choice(*PROVIDERS)), ("cpu",))

    def __post_init__(self) -> None:
        for provider in self.providers:
            if self.providers.count(provider) > 1:
                raise ValueError(f"providers names {provider} twice; remove one")
        if "cpu" in self.providers[:-1]:
            raise ValueError("providers names cpu before others, which would never compute; write cpu last")
        if self.providers != ("cpu",) and self.name != "onnxruntime":
            raise ValueError(
                f"providers are ONNX Runtime's, and name is {self.name}; set name: onnxruntime or remove them"
            )


@dataclass(frozen=True, kw_only=True)
class CaptureConfig:
    """A random sample of live requests, stored as images; off by default."""

    share: float = setting(number(0, 1), 0.0)
    max_images: int = setting(whole(1), 1000)
    max_bytes: int = setting(size, 256 << 20)
    max_age_days: float = setting(number(above=0), 30.0)

    @property
    def max_age_s(self) -> float:
        """Greatest age of an image in seconds."""
        return self.max_age_days * 86400


@dataclass(frozen=True, kw_only=True)
class DriftConfig:
    """Share of the live requests that are compared with the calibration images; none of them is stored."""

    share: float = setting(number(0, 1), 0.0)


@dataclass(frozen=True, kw_only=True)
class TrustConfig:
    """Who may sign checkpoints; without keys, checkpoints need no signature."""

    keys: tuple[PublicKey, ...] = setting(_public_keys, ())
    refuse_downgrade: bool = setting(boolean, False)
    wait_s: float = setting(number(0), 600.0)

    def __post_init__(self) -> None:
        if self.refuse_downgrade and not self.keys:
            raise ValueError("refuse_downgrade compares signed versions, and there are no keys; add keys or remove it")
        for key in self.keys:
            if (same := [other.name for other in self.keys if other.raw == key.raw])[1:]:
                raise ValueError(f"keys has one key twice, as {' and '.join(same)}; remove one")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The settings of one model: its checkpoints, its quantization and its serving."""

    name: str = setting(_model_name)
    calibration: CalibrationConfig = setting(subsection(CalibrationConfig))
    arch: str | None = setting(choice(*ARCHITECTURES), None)
    weights: str = setting(choice(*WEIGHTS), "auto")
    checkpoint: CheckpointConfig = setting(subsection(CheckpointConfig), CheckpointConfig())
    stem_pooling: str = setting(_stem_pooling, "auto")
    stride_in: str = setting(choice(*STRIDES_IN), "auto")
    head: tuple[str, ...] | None = setting(list_of(choice(*HEAD_LAYERS)), None)
    input: InputConfig = setting(subsection(InputConfig), InputConfig())
    quantization: Quantization = setting(subsection(QuantizationConfig), QuantizationConfig())
    detection: DetectionConfig = setting(subsection(DetectionConfig), DetectionConfig())
    labels: tuple[str, ...] | None = setting(labels, None)
    gates: GatesConfig = setting(subsection(GatesConfig), GatesConfig())
    batching: BatchingConfig = setting(subsection(BatchingConfig), BatchingConfig())
    swap: str = setting(choice("auto", "availability", "resource"), "auto")
    runtime: RuntimeConfig = setting(described(_runtime, "name or section", RuntimeConfig), RuntimeConfig())
    keep: int = setting(whole(2), 3)
    probation_s: float = setting(number(0), 10.0)
    report_images: int = setting(whole(0, 64), 8)
    priority: int = setting(whole(-100, 100), 0)
    capture: CaptureConfig = setting(subsection(CaptureConfig), CaptureConfig())
    drift: DriftConfig = setting(subsection(DriftConfig), DriftConfig())
    trust: TrustConfig = setting(subsection(TrustConfig), TrustConfig())

    def __post_init__(self) -> None:
        if self.arch in CLASSIFIERS and self.detection != DetectionConfig():
            raise ValueError(f"detection is for detectors, and {self.arch} is a classifier; remove one of them")
        try:
            _ = self.choice
        except UsageError as error:
            raise ValueError(str(error)) from None
        if self.runtime.name == "tensorrt" and self.quantization.to_spec().scheme is not Scheme.SYMMETRIC:
            raise ValueError(
                "runtime is tensorrt, which takes symmetric weights only; set quantization.scheme: symmetric"
            )
        if self.arch is None or self.arch not in LARGEST_STRIDES:
            return
        if self.input.resize is not None:
            raise ValueError(
                f"{self.arch} letterboxes its images, so input.resize has no effect; remove it and keep input.size"
            )
        stride = LARGEST_STRIDES[self.arch]
        if stride is not None and self.input.size is not None and self.input.size % stride:
            raise ValueError(f"input.size is {self.input.size}; {self.arch} needs a multiple of {stride}")

    @property
    def choice(self) -> Choice:
        """Network that is chosen from a checkpoint file, and what its tensors do not tell."""
        place = self.checkpoint
        return Choice(place.key, place.prefix, self.weights, self.stem_pooling, self.stride_in, self.head or ())

    @property
    def shadow_percent(self) -> float | None:
        """Percentage of live requests that also go to the previous generation during probation, or None."""
        asked = self.gates.min_shadow_agreement is not None and self.probation_s > 0
        return self.gates.shadow_percent if asked else None

    def digest(self) -> str:
        """Return a hash of all settings that affect the result for a file, not of those for swapping or retention."""
        data = dataclasses.asdict(self) | {"quantization": self.quantization.to_spec().to_dict()}
        # Settings at their defaults are left out, so that digests of before those settings existed stay valid.
        irrelevant = [
            key
            for key, usual in (
                ("detection", DetectionConfig()),
                ("weights", "auto"),
                ("checkpoint", CheckpointConfig()),
                ("stem_pooling", "auto"),
                ("stride_in", "auto"),
                ("head", None),
            )
            if getattr(self, key) == usual
        ]
        unused = {
            "activation_bits": AUTO,
            "small_bits": None,
            "cluster_affine": False,
            "levels": Levels.UNIFORM.value,
            "size_limit": None,
            "max_drop": None,
        }
        for key, usual in unused.items():
            if data["quantization"][key] == usual:
                del data["quantization"][key]
        # The engine decides whether activations are quantized, and which candidates can pass the gates.
        data["runtime"] = self.runtime.name
        if self.runtime.name == "auto":
            irrelevant.append("runtime")
        served = ("labels", "batching", "swap", "keep", "probation_s", "report_images", "capture", "drift", "trust")
        for key in (*served, "priority", *irrelevant):
            del data[key]
        usual_gates = vars(GatesConfig())
        for key in data["gates"].keys() - {"min_agreement", "max_drop"}:
            if data["gates"][key] == usual_gates[key]:
                del data["gates"][key]
        if self.gates.min_shadow_agreement is None:
            data["gates"].pop("shadow_percent", None)
        return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()

    def key(self, sha256: str) -> str:
        """Return the idempotency key of an update, which is the same for the same file and the same config."""
        return f"{sha256}:{self.digest()[:16]}"


@dataclass(frozen=True, kw_only=True)
class DropConfig:
    """Conditions that a dropped file has to meet before it is read."""

    require_checksum: bool = setting(boolean, False)


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """How the drop folder is watched."""

    mode: str = setting(choice("auto", "poll"), "auto")
    settle_s: float = setting(number(above=0), 2.0)
    settle_max_s: float = setting(number(above=0), 3600.0)
    rescan_s: float = setting(number(above=0), 30.0)
    max_bytes: int = setting(size, 2 << 30)


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """Limits and scheduling conditions of the worker, the child process that quantizes."""

    memory_max: int | None = setting(size, None)
    threads: int | str = setting(_threads, _AUTO_THREADS)
    device: str = setting(choice("auto", "cpu", "cuda"), "cpu")
    nice: int = setting(whole(0, 19), 19)
    sandbox: str = setting(_sandbox, "auto")
    deadline_s: float = setting(number(above=0), 3600.0)
    tries: int = setting(whole(1), 3)
    retry_s: float = setting(number(above=0), 30.0)
    window: tuple[Window, ...] | None = setting(_windows, None)
    defer_above_c: float | None = setting(number(0, 150), None)
    min_free_memory: int | None = setting(size, None)
    defer_on_battery: bool = setting(boolean, False)
    power_modes: tuple[str, ...] | None = setting(list_of(_power_mode), None)
    recheck_s: float = setting(number(above=0), 60.0)

    @property
    def fixed_threads(self) -> int | None:
        """Number of threads that the worker always computes with; None if it gives way to requests."""
        return self.threads if isinstance(self.threads, int) else None


@dataclass(frozen=True, kw_only=True)
class RejectedConfig:
    """How many rejected files are stored, and for how long."""

    keep: int = setting(whole(0), 20)
    keep_days: float = setting(number(above=0), 30.0)


def _host(value: Any, _: Reader, __: Location) -> str:
    """Check a host name, one that begins with a dot, or "*"."""
    name = value.lower().rstrip(".") if isinstance(value, str) else ""
    if name != ANY_HOST and not is_host_name(name.removeprefix(".")):
        raise ValueError('it must be a host name, without "http://" and port, such as edge.example.org, or "*" for all')
    return name


described(_host, 'host name, `.` and a domain, or `"*"`')


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The HTTP server."""

    host: str = setting(text, "127.0.0.1")
    port: int = setting(whole(0, 65535), 8080)
    grpc_port: int | None = setting(whole(0, 65535), None)
    hosts: tuple[str, ...] | None = setting(list_of(_host), None)
    socket: Path | None = setting(path, None)
    threads: int | None = setting(whole(1, _MAX_THREADS), None)
    device: str = setting(choice("auto", "cpu", "cuda"), "cpu")
    queue: int = setting(whole(1), 64)
    deadline_ms: int = setting(whole(1), 10_000)
    max_body_bytes: int = setting(size, 64 << 20)
    max_json_bytes: int = setting(size, 16 << 20)
    max_arriving_bytes: int | None = setting(size, None)
    max_connections: int = setting(whole(1, 1_000_000), 1024)
    head_timeout_s: float = setting(number(above=0), 20.0)
    body_timeout_s: float = setting(number(above=0), 30.0)
    min_body_rate: int = setting(size, 16 << 10)
    token_file: Path | None = setting(file, None)
    inference_token_file: Path | None = setting(file, None)
    allow_public: bool = setting(boolean, False)

    @property
    def arriving_bytes(self) -> int:
        """Bytes that the bodies of all requests may take together."""
        return self.max_body_bytes if self.max_arriving_bytes is None else self.max_arriving_bytes

    @property
    def named_hosts(self) -> tuple[str, ...]:
        """The hosts of `hosts`, if there are any."""
        return self.hosts or ()

    @property
    def admin_token(self) -> Path | None:
        """File with the administration token: token_file, or the systemd credential edged-token."""
        if self.token_file is not None:
            return self.token_file
        credentials = os.environ.get("CREDENTIALS_DIRECTORY")
        credential = Path(credentials, "edged-token") if credentials else None
        return credential if credential is not None and credential.is_file() else None

    @property
    def public(self) -> bool:
        """Whether other machines can reach `host`; a host name other than localhost counts as reachable."""
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name
            return self.host != "localhost"


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """Disk space for generations and caches, and how often generations are checked for damage."""

    max_bytes: int | None = setting(size, None)
    scrub_hours: float = setting(number(0), 24.0)


@dataclass(frozen=True, kw_only=True)
class HistoryConfig:
    """How much history the journal stores."""

    max_updates: int = setting(whole(10), 2000)
    max_age_days: float = setting(number(above=0), 730.0)


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Format and level of the log, which is written to stderr."""

    format: str = setting(choice("auto", "human", "json"), "auto")
    level: str = setting(choice("debug", "info", "warning", "error"), "info")
