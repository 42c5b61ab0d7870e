"""The configuration in force, which a reload replaces."""

from __future__ import annotations

from dataclasses import dataclass

from service.config.load import Config
from service.config.sections import ModelConfig


@dataclass
class CurrentConfig:
    """A holder of the configuration in force, shared by all parts of the daemon that must follow a reload.

    Attributes:
        current: Configuration in force. Only the supervisor replaces it.
    """

    current: Config

    def model(self, name: str) -> ModelConfig | None:
        """Return the configuration of a model; None if the model is not configured."""
        return self.current.model(name)
