"""The sections of the config file; service.config puts them together.

A bound that stands here is one that no value beyond it could ever work; what is merely unwise is allowed.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from edged.errors import UsageError
from edged.spec import MAX_BITS, MIN_BITS, InputSpec, QuantSpec
from service.units import parse_bytes

MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def _size(value: object) -> int:
    try:
        return parse_bytes(value)  # type: ignore[arg-type]  # anything can stand in YAML; it refuses other types itself
    except UsageError:
        raise ValueError("write bytes as a number or for example 800MiB") from None


def _path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("must be a path")
    base = info.context["base"] if info.context else Path.cwd()
    return Path(base, value)


def _existing_folder(path: Path) -> Path:
    try:
        if path.is_dir():
            return path
    except OSError as error:  # no access, or too long a name
        raise ValueError(f"cannot be looked at: {error.strerror}") from None
    raise ValueError("is no folder; create it or correct the path")


def _existing_file(path: Path) -> Path:
    try:
        if path.is_file():
            return path
    except OSError as error:
        raise ValueError(f"cannot be looked at: {error.strerror}") from None
    raise ValueError("is no file; create it or correct the path")


def _model_name(name: str) -> str:
    if not MODEL_NAME.fullmatch(name):
        raise ValueError("use letters, digits, '.', '_' and '-', at most 128, not starting with '.' or '-'")
    return name


ByteSize = Annotated[int, BeforeValidator(_size)]
AnyPath = Annotated[Path, BeforeValidator(_path)]
Folder = Annotated[Path, BeforeValidator(_path), AfterValidator(_existing_folder)]
File = Annotated[Path, BeforeValidator(_path), AfterValidator(_existing_file)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """Strict: no unknown key, no silent conversion; never changed after it was read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=False)


class InputConfig(Section):
    """How images become network inputs; what is not given follows the architecture."""

    size: Annotated[int | None, Field(ge=1, le=4096)] = None
    resize: Annotated[int | None, Field(ge=1, le=8192)] = None
    mean: list[float] | None = None
    std: list[float] | None = None

    @model_validator(mode="after")
    def _possible(self) -> InputConfig:
        given = self.overrides()
        given.setdefault("resize", given.get("size", InputSpec.resize))
        given.setdefault("size", min(given["resize"], InputSpec.size))
        if ("mean" in given) != ("std" in given):
            raise ValueError("give mean and std together, or neither")
        try:
            InputSpec.from_dict(InputSpec().to_dict() | given)
        except UsageError as error:
            raise ValueError(str(error)) from None
        return self

    def overrides(self) -> dict[str, Any]:
        """What was given, by the names of InputSpec."""
        return self.model_dump(exclude_none=True)


class CalibrationConfig(Section):
    """The images that quantization looks at."""

    dir: Folder
    images: Annotated[int, Field(ge=32)] = 1024


class QuantizationConfig(Section):
    """The fields of QuantSpec, with its defaults."""

    method: Literal["fastobq", "rtn"] = "fastobq"
    bits: Annotated[int, Field(ge=MIN_BITS, le=MAX_BITS)] = QuantSpec.bits
    scheme: Literal["symmetric", "asymmetric"] = "asymmetric"
    order: Literal["sensitivity", "error", "weight", "hessian", "none"] = "sensitivity"
    damp_ratio: Annotated[float, Field(gt=0, le=1)] = QuantSpec.damp_ratio
    block_size: Annotated[int, Field(ge=1)] = QuantSpec.block_size
    propagation: Annotated[float, Field(ge=0, le=1)] = QuantSpec.propagation
    bn_reestimation: bool = QuantSpec.bn_reestimation
    seed: Annotated[int, Field(ge=0)] = QuantSpec.seed

    def to_spec(self) -> QuantSpec:
        """As the library takes it."""
        return QuantSpec.from_dict(self.model_dump())


class GatesConfig(Section):
    """What a quantized model must reach before it gets traffic."""

    min_agreement: Annotated[float, Field(ge=0, le=100)] = 50.0
    max_drop: Annotated[float | None, Field(ge=0, le=100)] = None


class ModelConfig(Section):
    """One model: what is dropped for it, how it is quantized and served."""

    name: Annotated[str, AfterValidator(_model_name)]
    calibration: CalibrationConfig
    arch: str | None = None
    input: InputConfig = InputConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    gates: GatesConfig = GatesConfig()
    swap: Literal["auto", "availability", "resource"] = "auto"
    runtime: Literal["auto", "torch"] = "auto"
    keep: Annotated[int, Field(ge=2)] = 3

    def digest(self) -> str:
        """Hash of all that shapes the outcome for a given file: not of how it is swapped in or how many are kept."""
        data = self.model_dump(mode="json", exclude={"swap", "runtime", "keep"})
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def key(self, sha256: str) -> str:
        """Idempotency key of an update: the same file under the same config."""
        return f"{sha256}:{self.digest()[:16]}"


class WatchConfig(Section):
    """The drop folder."""

    mode: Literal["auto", "poll"] = "auto"
    settle_s: Seconds = 2.0
    rescan_s: Seconds = 30.0
    max_bytes: ByteSize = 2 << 30


class WorkerConfig(Section):
    """The child process that quantizes."""

    memory_max: ByteSize | None = None
    threads: Annotated[int | None, Field(ge=1)] = None
    nice: Annotated[int, Field(ge=0, le=19)] = 19
    deadline_s: Seconds = 3600.0
    tries: Annotated[int, Field(ge=1)] = 3
    retry_s: Seconds = 60.0


class ServeConfig(Section):
    """HTTP."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    socket: AnyPath | None = None
    threads: Annotated[int | None, Field(ge=1)] = None
    queue: Annotated[int, Field(ge=1)] = 64
    deadline_ms: Annotated[int, Field(ge=1)] = 10_000
    max_body_bytes: ByteSize = 64 << 20
    token_file: File | None = None


class LogConfig(Section):
    """What goes to stderr."""

    format: Literal["auto", "human", "json"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"
