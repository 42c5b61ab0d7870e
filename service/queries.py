"""What the daemon tells of itself: the answers of /edged/v1 and /metrics, as JSON types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from edged.errors import UsageError
from service.context import Context
from service.gauges import refresh, resident_bytes
from service.journal import Update
from service.lanes import Lane
from service.serving import ModelService
from service.states import State


class Queries:
    """Reads, never changes.

    Args:
        context: What the supervisor owns.
        lanes: By model name.
        progress: By update id: what its worker is doing now.
        held: Files of a model that wait in the drop folder for an operator.
    """

    def __init__(
        self,
        context: Context,
        lanes: Mapping[str, Lane],
        progress: Mapping[int, Mapping[str, Any]],
        held: Callable[[str], int],
    ) -> None:
        self._context = context
        self._lanes = lanes
        self._progress = progress
        self._held = held

    async def models(self) -> list[dict[str, Any]]:
        """How each model is served."""
        return [self._model(service) for service in self._context.services.values()]

    async def open_updates(self) -> list[dict[str, Any]]:
        """Updates that have not ended, the oldest first."""
        listed = await self._context.disk(self._context.journal.open_updates)
        return [self._update(update) for update in listed]

    async def updates(self, model: str | None, state: str | None, limit: int) -> list[dict[str, Any]]:
        """Updates, the newest first.

        Raises:
            UsageError: There is no such state.
        """
        try:
            wanted = None if state is None else State(state.upper())
        except ValueError:
            known = ", ".join(member.value for member in State)
            raise UsageError(f"state has value {state!r:.80}; choose one of {known}") from None
        listed = await self._context.disk(self._context.journal.list, model=model, state=wanted, limit=limit)
        return [self._update(update) for update in listed]

    async def update(self, identity: int) -> dict[str, Any]:
        """One update and what happened to it.

        Raises:
            UsageError: There is none.
        """
        events = await self._context.disk(self._context.journal.events, identity)
        update = self._update(await self._context.get(identity))
        return {**update, "events": [event.to_dict() for event in events]}

    async def history(self, model: str) -> dict[str, Any]:
        """Which generations of a model exist, and the updates that were published.

        Raises:
            UsageError: There is no such model.
        """
        context = self._context
        context.require_model(model)
        store = context.store
        listed = await context.disk(context.journal.history, model)
        return {
            "model": model,
            "current": store.current(model),
            "previous": store.previous(model),
            "generations": store.generations(model),
            "updates": [update.to_dict() for update in listed],
        }

    def exposition(self) -> tuple[bytes, str]:
        """The metrics in the Prometheus text format, and its content type."""
        refresh(self._context, self._lanes)
        return generate_latest(self._context.metrics.registry), CONTENT_TYPE_LATEST

    def _model(self, service: ModelService) -> dict[str, Any]:
        live, lane = service.live, self._lanes[service.name]
        return {
            "name": service.name,
            "ready": live is not None and live.serving,
            "generation": None if live is None else live.number,
            "problem": None if live is not None else service.problem,
            "restarts": service.restarts,
            "rss_bytes": 0 if live is None else resident_bytes(live.pid),
            "waiting": lane.waiting,
            "held": self._held(service.name),
            **vars(self._context.holds.of(service.name)),
        }

    def _update(self, update: Update) -> dict[str, Any]:
        return {**update.to_dict(), "progress": self._progress.get(update.id)}
