"""The models as clients of the Open Inference Protocol ask for them, for all of its transports, as JSON types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edged.errors import EdgedError, UsageError
from edged.spelling import names_to_choose
from service.serving.channel import ServingError
from service.serving.generation import Generation
from service.serving.model_config import model_config
from service.serving.model_server import ModelServer
from service.storage.generations import GenerationRepository
from service.system.processes import resident_bytes

# What GET /v2 lists: the extensions of Triton that are answered.
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)
READY, LOADING, UNAVAILABLE = "READY", "LOADING", "UNAVAILABLE"  # Triton's states of a version


class LoadError(EdgedError):
    """A client asked for a model to be loaded or unloaded, which it cannot decide."""

    code = "load"


class ModelRepository:
    """Finds models and versions, and describes them.

    Args:
        servers: Servers of the configured models, by name.
        generations: Published generations on the disk.
    """

    def __init__(self, servers: Mapping[str, ModelServer], generations: GenerationRepository) -> None:
        self._servers = servers
        self._generations = generations

    def names(self) -> list[str]:
        """Return the names of the configured models."""
        return list(self._servers)

    def find(self, name: str, version: str | None = None) -> ModelServer:
        """Return the server of a model.

        Args:
            name: Model name.
            version: Number of the generation that has to be in service; None for any.

        Raises:
            UsageError: The model is not configured, or the generation is not in service.
        """
        server = self._servers.get(name)
        if server is None:
            raise UsageError(f"no model {name!r:.80}; {names_to_choose(name, self._servers, 'configured:')}")
        live = server.wanted if server.live is None else server.live.number  # in a moment, if not now
        if version is not None and version != str(live):
            text = f"model {name!r} has no version {version!r:.80} in service; live: {'none' if live is None else live}"
            raise UsageError(text)
        return server

    def metadata(self, name: str, version: str | None = None) -> dict[str, Any]:
        """Return the names, types and shapes of the inputs and outputs of a live generation.

        Raises:
            UsageError: See `find`.
            ServingError: No generation is live.
        """
        return self._live(name, version).metadata

    def config(self, name: str, version: str | None = None) -> dict[str, Any]:
        """Return the configuration of a live generation, with the names of Triton's ModelConfig.

        Raises:
            UsageError: See `find`.
            ServingError: No generation is live.
        """
        live = self._live(name, version)
        return model_config(live.metadata, live.batching, live.threads)

    def statistics(self, name: str | None = None, version: str | None = None) -> dict[str, Any]:
        """Return the statistics of the generations in service, with the names of Triton's statistics extension.

        Args:
            name: Model name; None for all models that have a generation in service.
            version: Number of its generation; None for any.

        Raises:
            UsageError: See `find`.
            ServingError: The model has no generation.
        """
        if name is None:
            return {"model_stats": [_statistics(server) for server in self._servers.values() if server.wanted]}
        server = self.find(name, version)
        if server.wanted is None:
            raise ServingError(why_not(server))
        return {"model_stats": [_statistics(server)]}

    def index(self, *, ready: bool = False) -> list[dict[str, str]]:
        """Return the generations of all models that are on the disk, and how each of them can be put in service.

        Args:
            ready: Whether to leave out those that answer no requests.

        Returns:
            {"name", "version", "state", "reason"} of each; a model without generations has one without "version".
        """
        listed = [entry for server in self._servers.values() for entry in self._entries(server)]
        return [entry for entry in listed if entry["state"] == READY] if ready else listed

    def why_not_loaded(self, name: str, *, unload: bool = False) -> LoadError:
        """Return why a client cannot load or unload a model: the drop folder and operators decide what is in service.

        Raises:
            UsageError: The model is not configured.
        """
        self.find(name)
        if unload:
            return LoadError(
                f"edged unloads a model that is taken out of the config: remove {name} from `models` and reload edged;"
                f" a checkpoint that is put into the folder {name} of `drop_dir` replaces what is in service, and"
                f" `edged rollback {name}` puts the previous generation back"
            )
        return LoadError(
            f"edged loads what is dropped: put a checkpoint into the folder {name} of `drop_dir` or send it by"
            f" `edged submit FILE --model {name}`; `edged rollback {name}` puts the previous generation back, and a"
            " model that is taken out of the config is unloaded"
        )

    def _live(self, name: str, version: str | None) -> Generation:
        server = self.find(name, version)
        if server.live is None:
            raise ServingError(why_not(server))
        return server.live

    def _entries(self, server: ModelServer) -> list[dict[str, str]]:
        numbers = sorted({*self._generations.numbers(server.name), *([server.wanted] if server.wanted else [])})
        if not numbers:
            reason = why_not(server)
            return [{"name": server.name, "state": UNAVAILABLE, "reason": reason}]
        return [_entry(server, number) for number in numbers]


def why_not(server: ModelServer) -> str:
    """Return why a model answers no requests."""
    return f"model {server.name!r} {server.problem or 'has no generation in service yet'}"


def without_extension(subject: str, extension: str) -> str:
    """Return why a request is not answered that belongs to an extension of the protocol that edged lacks."""
    has = ", ".join(EXTENSIONS)
    return f"{subject} belongs to the extension {extension!r}, which edged does not have; it has {has}"


def _entry(server: ModelServer, number: int) -> dict[str, str]:
    live = server.live
    if live is not None and live.number == number:
        state, reason = READY, ""
    elif live is None and server.wanted == number:
        state, reason = LOADING, why_not(server)
    else:
        state, reason = UNAVAILABLE, f"`edged rollback {server.name} --to {number}` puts it in service"
    return {"name": server.name, "version": str(number), "state": state, "reason": reason}


def _statistics(server: ModelServer) -> dict[str, Any]:
    pid = None if server.live is None else server.live.pid
    return {
        "name": server.name,
        "version": str(server.wanted),
        **server.counts.inference.to_dict(),
        "memory_usage": [] if pid is None else [{"type": "CPU", "id": 0, "byte_size": resident_bytes(pid)}],
    }
