"""The actions of an operator: each one is an HTTP route and a command."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from edged.errors import NotReadyError
from service.intake.claim_queue import ClaimQueue
from service.rollout.rollback import Rollbacks
from service.rollout.swap import Swapper

log = logging.getLogger(__name__)

Action = Callable[[str], Awaitable[dict[str, Any]]]


class Administration:
    """Changes what is in service, and holds models.

    Args:
        swapper: Knows the models and what is in service.
        rollbacks: Takes generations out of service.
        intake: Parks the files of models that are held.

    Attributes:
        actions: Every action by its name in routes and commands. An action takes a model name, and returns JSON types.
    """

    def __init__(self, swapper: Swapper, rollbacks: Rollbacks, intake: ClaimQueue) -> None:
        self._swapper = swapper
        self._rollbacks = rollbacks
        self._intake = intake
        self.actions: Mapping[str, Action] = {
            "rollback": self.rollback,
            "pin": self.pin,
            "unpin": self.unpin,
            "pause": self.pause,
            "resume": self.resume,
        }

    async def rollback(self, model: str, to: int | None = None) -> dict[str, Any]:
        """Put the previous generation back in service, or the one with number `to`.

        Raises:
            UsageError: There is no such model, or no such generation.
            NotReadyError: There is no previous generation, `to` is in service already, or the model is pinned.
            ArtifactError: Generation `to` is not whole.
        """
        return await self._rollbacks.roll_back(model, to=to)

    async def pin(self, model: str) -> dict[str, Any]:
        """Let no other generation go live.

        Raises:
            UsageError: There is no such model.
            NotReadyError: It has no generation yet.
            StateError: The journal cannot be written.
        """
        async with self._swapper.server(model).switching:  # not in the middle of a swap
            if self._swapper.generations.current(model) is None:
                raise NotReadyError(f"model {model!r} has no generation to be pinned to; drop a checkpoint first")
            return await self._hold(model, pinned=True)

    async def unpin(self, model: str) -> dict[str, Any]:
        """Undo `pin`; raises the same errors."""
        return await self._hold(model, pinned=False)

    async def pause(self, model: str) -> dict[str, Any]:
        """Take no more files out of the drop folder. Files that were taken before go on.

        Raises:
            UsageError: There is no such model.
            StateError: The journal cannot be written.
        """
        return await self._hold(model, paused=True)

    async def resume(self, model: str) -> dict[str, Any]:
        """Undo `pause`; raises the same errors."""
        return await self._hold(model, paused=False)

    async def _hold(self, model: str, **changes: bool) -> dict[str, Any]:
        self._swapper.server(model)  # raises if there is no such model
        holds = self._swapper.holds
        hold = dataclasses.replace(holds.of(model), **changes)
        await holds.put(model, hold)
        words = ("pinned" if hold.pinned else "not pinned", "paused" if hold.paused else "not paused")
        log.warning("model %s: %s, %s", model, *words)
        if holds.why(model) is None:
            await self._intake.release(model)
        return {"model": model, "generation": self._swapper.generations.current(model), **vars(hold)}
