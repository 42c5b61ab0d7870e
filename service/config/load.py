"""Loading of the config file, which configs/edged.yaml documents key by key.

Relative paths are relative to the folder of the config file. All mistakes are reported together, each with its line.
"""

# `setting` describes a field, as dataclasses.field does; it is called once, when the class is made.
# ruff: noqa: RUF009

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from edged.errors import ConfigError
from edged.file_kind import FOLDER, kind_of
from edged.spelling import one_line
from service.config.fields import Reader, folder, list_of, path, setting, subsection
from service.config.quantization import Quantization, QuantizationConfig
from service.config.sections import (
    MODEL_NAME,
    CalibrationConfig,
    CaptureConfig,
    DetectionConfig,
    DriftConfig,
    DropConfig,
    GatesConfig,
    HistoryConfig,
    InputConfig,
    LogConfig,
    ModelConfig,
    RejectedConfig,
    RuntimeConfig,
    ServeConfig,
    StorageConfig,
    TrustConfig,
    WatchConfig,
    WorkerConfig,
)
from service.config.yaml_source import Problem, Source, parse_yaml

__all__ = [
    "MODEL_NAME",
    "CalibrationConfig",
    "CaptureConfig",
    "Config",
    "DetectionConfig",
    "DriftConfig",
    "DropConfig",
    "GatesConfig",
    "HistoryConfig",
    "InputConfig",
    "InvalidConfigError",
    "LogConfig",
    "ModelConfig",
    "Quantization",
    "QuantizationConfig",
    "RejectedConfig",
    "RuntimeConfig",
    "ServeConfig",
    "StorageConfig",
    "TrustConfig",
    "WatchConfig",
    "WorkerConfig",
    "load_config",
]

_MAX_FILE_BYTES = 1 << 20
MAX_PROBLEMS = 100  # in a message
_MAX_SOCKET_PATH = 107  # bytes; sun_path of sockaddr_un, less its NUL


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a daemon. Create it with `load_config`."""

    models: tuple[ModelConfig, ...] = setting(list_of(subsection(ModelConfig)))
    state_dir: Path = setting(path, Path("/var/lib/edged"))
    drop_dir: Path | None = setting(folder, None)
    drop: DropConfig = setting(subsection(DropConfig), DropConfig())
    watch: WatchConfig = setting(subsection(WatchConfig), WatchConfig())
    worker: WorkerConfig = setting(subsection(WorkerConfig), WorkerConfig())
    rejected: RejectedConfig = setting(subsection(RejectedConfig), RejectedConfig())
    serve: ServeConfig = setting(subsection(ServeConfig), ServeConfig())
    storage: StorageConfig = setting(subsection(StorageConfig), StorageConfig())
    history: HistoryConfig = setting(subsection(HistoryConfig), HistoryConfig())
    log: LogConfig = setting(subsection(LogConfig), LogConfig())

    @property
    def drop_folder(self) -> Path:
        """Path of the drop folder: `drop_dir`, or drop/ in the state folder, which the daemon creates."""
        return self.drop_dir or self.state_dir / "drop"

    @property
    def socket(self) -> Path:
        """Path of the UNIX socket on which the daemon serves the commands of the CLI."""
        return self.serve.socket or self.state_dir / "edged.sock"

    def model(self, name: str) -> ModelConfig | None:
        """Return the configuration of a model; None if the model is not configured."""
        return next((model for model in self.models if model.name == name), None)


class InvalidConfigError(ConfigError):
    """The file has mistakes; the message lists them, one per line, the first MAX_PROBLEMS of them.

    Attributes:
        problems: Mistakes in the order of their lines.
    """

    def __init__(self, file: Path, problems: list[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: (problem.line, problem.key))
        listed = [f"{file}:{p.line}: {p.key}{' ' if p.key else ''}{p.message}" for p in self.problems[:MAX_PROBLEMS]]
        if len(self.problems) > MAX_PROBLEMS:
            listed.append(f"{file}: and {len(self.problems) - MAX_PROBLEMS:,} more; correct these first")
        super().__init__("\n".join(map(one_line, listed)))


def load_config(
    file: Path,
    problem_of_images: Callable[[Path], str | None] | None = None,
    problem_of_labels: Callable[[Config, ModelConfig], str | None] | None = None,
) -> Config:
    """Read and check a config file.

    Args:
        file: Path of the file.
        problem_of_images: Returns what is wrong with the images of a calibration folder, or None. Without it only the
            folders themselves are checked, as the daemon does, which needs no images before the first update.
        problem_of_labels: Returns what is wrong with the labels of a model, or None. Without it only their form is
            checked, as the daemon does, which serves a generation that they do not fit with the names it has.

    Raises:
        InvalidConfigError: The file has mistakes.
        ConfigError: The file cannot be read.
    """
    source = parse_yaml(_read(file))
    if source.data is None:
        empty = Problem(1, "", "is empty; it needs at least models, see configs/edged.yaml")
        raise InvalidConfigError(file, source.problems or [empty])
    reader = Reader(source, file.absolute().parent)
    config = reader.read(Config, source.data) if isinstance(source.data, dict) else None
    if not isinstance(source.data, dict):
        reader.report((), "is not a mapping of keys to values; see configs/edged.yaml")
    _find_repeated_names(source, reader)
    if problem_of_images is not None:
        _find_unusable_images(source, reader, problem_of_images)
    if config is not None:
        _find_impossible_paths(config, reader)
        _find_unprotected_server(config.serve, reader)
        _find_missing_grpc(config.serve, reader)
        _find_shared_port(config.serve, reader)
        _find_too_small_memory(config.serve, reader)
        if problem_of_labels is not None:
            _find_misfit_labels(config, reader, problem_of_labels)
    if config is None or reader.problems:
        raise InvalidConfigError(file, reader.problems)
    return config


def _find_repeated_names(source: Source, reader: Reader) -> None:
    """Report models of the same name. Uses the raw data, so that they are reported together with all other mistakes."""
    models = source.data.get("models") if isinstance(source.data, dict) else None
    seen: dict[str, int] = {}
    for index, model in enumerate(models if isinstance(models, list) else []):
        name = model.get("name") if isinstance(model, dict) else None
        if isinstance(name, str) and seen.setdefault(name, index) != index:
            message = f"has value {name!r}, the name of models[{seen[name]}] too; give each model its own"
            reader.report(("models", index, "name"), message)


def _find_unusable_images(source: Source, reader: Reader, problem_of: Callable[[Path], str | None]) -> None:
    """Report calibration folders whose images cannot be used, together with all other mistakes."""
    models = source.data.get("models") if isinstance(source.data, dict) else None
    for index, model in enumerate(models if isinstance(models, list) else []):
        calibration = model.get("calibration") if isinstance(model, dict) else None
        given, location = calibration.get("dir") if isinstance(calibration, dict) else None, ("models", index)
        try:
            images = folder(given, reader, location)
        except ValueError:  # reported already
            continue
        if (problem := problem_of(images)) is not None:
            reader.report((*location, "calibration", "dir"), f"has value {given!r}; {images} {problem}")


def _find_misfit_labels(
    config: Config, reader: Reader, problem_of: Callable[[Config, ModelConfig], str | None]
) -> None:
    for index, model in enumerate(config.models):
        if model.labels is not None and (problem := problem_of(config, model)) is not None:
            reader.report(("models", index, "labels"), problem)


def _find_impossible_paths(config: Config, reader: Reader) -> None:
    if (length := len(bytes(config.socket))) > _MAX_SOCKET_PATH:
        location = ("serve", "socket") if config.serve.socket else ("state_dir",)
        message = f"makes the socket path {length} bytes long, at most {_MAX_SOCKET_PATH} work; set serve.socket"
        reader.report(location, message)
    state = config.state_dir
    if kind_of(state) not in (None, FOLDER):
        reader.report(("state_dir",), f"has value {str(state)!r}, which is a file; remove it or choose a folder")
    if config.drop_dir is not None and config.state_dir.resolve() == config.drop_dir.resolve():
        reader.report(("drop_dir",), "is the state_dir; choose another folder")


def _find_unprotected_server(serve: ServeConfig, reader: Reader) -> None:
    """Report a server that other machines can reach without a token, unless the user allows it."""
    if serve.public and not serve.allow_public and not (serve.admin_token or serve.inference_token_file):
        message = (
            f"has value {serve.host!r}, which other machines can reach, and there is no token; keep 127.0.0.1, set"
            " serve.inference_token_file or serve.token_file, or set serve.allow_public: true"
        )
        reader.report(("serve", "host"), message)


def _find_missing_grpc(serve: ServeConfig, reader: Reader) -> None:
    """Report a port for gRPC where its package is not installed."""
    if serve.grpc_port is not None and find_spec("grpc") is None:
        message = f"has value {serve.grpc_port}, but grpcio is not installed; `pip install 'edged[grpc]'`, or remove it"
        reader.report(("serve", "grpc_port"), message)


def _find_shared_port(serve: ServeConfig, reader: Reader) -> None:
    """Report one port for HTTP and gRPC."""
    if serve.port and serve.grpc_port == serve.port:
        message = f"has value {serve.grpc_port}, which is serve.port too; choose another one, such as {serve.port + 1}"
        reader.report(("serve", "grpc_port"), message)


def _find_too_small_memory(serve: ServeConfig, reader: Reader) -> None:
    """Report less memory for bodies than the largest one needs."""
    if serve.arriving_bytes < serve.max_body_bytes:
        message = (
            f"has value {serve.max_arriving_bytes}, but a body may have serve.max_body_bytes = {serve.max_body_bytes};"
            " set it to at least that, or lower serve.max_body_bytes"
        )
        reader.report(("serve", "max_arriving_bytes"), message)


def _read(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read config {file}: {error.strerror or error}; give the path of one") from None
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"config {file} is over {_MAX_FILE_BYTES >> 20} MiB; give the path of a config file")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"config {file} is not UTF-8 text: byte {error.start}; save it as UTF-8") from None
