"""The config file: strict, with a default and a reason for everything that can have one. See configs/edged.yaml.

Relative paths are relative to the folder of the config file. Every mistake is reported at once, with its line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from edged.errors import ConfigError
from service.config_problems import to_problem
from service.config_sections import (
    AnyPath,
    Folder,
    LogConfig,
    ModelConfig,
    Section,
    ServeConfig,
    WatchConfig,
    WorkerConfig,
)
from service.yaml_source import Problem, Source, parse_yaml

_MAX_FILE_BYTES = 1 << 20
_MAX_SOCKET_PATH = 107  # bytes; sun_path of sockaddr_un, less its NUL


class Config(Section):
    """Everything `edged run` needs to know. Use `load_config`."""

    models: Annotated[list[ModelConfig], Field(min_length=1)]
    state_dir: AnyPath = Path("/var/lib/edged")
    drop_dir: Folder | None = None
    watch: WatchConfig = WatchConfig()
    worker: WorkerConfig = WorkerConfig()
    serve: ServeConfig = ServeConfig()
    log: LogConfig = LogConfig()

    @property
    def drop(self) -> Path:
        """The drop folder: `drop_dir`, or drop/ under the state folder, which the daemon creates."""
        return self.drop_dir or self.state_dir / "drop"

    @property
    def socket(self) -> Path:
        """The UNIX socket on which the daemon answers its own commands."""
        return self.serve.socket or self.state_dir / "edged.sock"

    def model(self, name: str) -> ModelConfig | None:
        """The model of that name."""
        return next((model for model in self.models if model.name == name), None)


class InvalidConfigError(ConfigError):
    """The file has mistakes; the message lists them all.

    Attributes:
        problems: In the order of their lines.
    """

    def __init__(self, path: Path, problems: list[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: problem.line)
        lines = [f"{path}:{p.line}: {p.key}{' ' if p.key else ''}{p.message}" for p in self.problems]
        super().__init__("\n".join(lines))


def load_config(path: Path) -> Config:
    """Read and check a config file.

    Raises:
        InvalidConfigError: With every mistake and its line.
        ConfigError: The file cannot be read.
    """
    source = parse_yaml(_read(path))
    if source.data is None:
        empty = Problem(1, "", "is empty; it needs at least models, see configs/edged.yaml")
        raise InvalidConfigError(path, source.problems or [empty])
    problems = [*source.problems, *_repeated_names(source)]
    try:
        config = Config.model_validate(source.data, context={"base": path.absolute().parent})
    except ValidationError as error:
        problems += [to_problem(detail, source, Config) for detail in error.errors(include_url=False)]
        raise InvalidConfigError(path, problems) from None
    problems += _impossible_paths(config, source)
    if problems:
        raise InvalidConfigError(path, problems)
    return config


def _repeated_names(source: Source) -> list[Problem]:
    """Models of the same name. On the raw data, so that it is told together with all other mistakes."""
    models = source.data.get("models") if isinstance(source.data, dict) else None
    seen: dict[str, int] = {}
    problems = []
    for index, model in enumerate(models if isinstance(models, list) else []):
        name = model.get("name") if isinstance(model, dict) else None
        if isinstance(name, str) and seen.setdefault(name, index) != index:
            line = source.line(("models", index, "name"))
            message = f"has value {name!r}, the name of models[{seen[name]}] too; give each model its own"
            problems.append(Problem(line, f"models[{index}].name", message))
    return problems


def _impossible_paths(config: Config, source: Source) -> list[Problem]:
    problems = []
    if (length := len(bytes(config.socket))) > _MAX_SOCKET_PATH:
        key = "serve.socket" if config.serve.socket else "state_dir"
        message = (
            f"makes the socket path {length} bytes long, {_MAX_SOCKET_PATH} are possible; set a short serve.socket"
        )
        problems.append(Problem(source.line(tuple(key.split("."))), key, message))
    if config.drop_dir is not None and config.state_dir.resolve() == config.drop_dir.resolve():
        problems.append(Problem(source.line(("drop_dir",)), "drop_dir", "is the state_dir; choose another folder"))
    return problems


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror or error}; give it with --config FILE") from None
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"config {path} is over {_MAX_FILE_BYTES >> 20} MiB; this is no config file")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"config {path} is no UTF-8 text: byte {error.start}; save it as UTF-8") from None
