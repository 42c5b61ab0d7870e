"""A swap: one generation of a model takes the place of another, in three steps.

    swap = await swapper.prepare(server, number, options)    start and warm the process, check the gates
    async with swap:
        ...                                                  journal WARMED
        await swap.commit()                                  replace the `current` link, route new requests
        ...                                                  journal LIVE
        await swap.retire_previous()                         drain and stop the previous process, or keep it as shadow

A rollback is the same three steps with journal entries of its own.

Crash safety. The `current` link decides which generation is in service; the journal only follows it:
    1. WARMED is durable before the link is replaced. After a crash until then, the update is repeated from PUBLISHED
       and the previous generation serves.
    2. The link is replaced durably (symlink, rename, fsync) before any request is routed. It is the commit point: after
       a crash from here on, the new generation serves, and the update, WARMED or LIVE, finds it live and goes on.
    3. LIVE is journaled once requests are routed to the new process, before the previous one stops.
    4. The previous process stops last, so that it answers every request that was routed to it.

Leaving the `async with` block by an error before the commit point stops the new process and leaves the previous
generation in service. After the commit point the previous generation is retired in any case.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from edged.errors import UsageError
from edged.spelling import names_to_choose
from service.config.sections import GatesConfig
from service.journal.holds import Holds
from service.metrics.registry import Metrics
from service.rollout.gates import check, observe
from service.rollout.live_metrics import show_live
from service.rollout.policy import Choice, choose
from service.serving.generation import Generation
from service.serving.model_server import ModelServer
from service.storage.generations import GenerationRepository
from service.system.free_memory import available_bytes
from service.system.processes import own_bytes


@dataclass(frozen=True)
class SwapOptions:
    """How a generation is to be put in service.

    Attributes:
        policy: "availability", "resource" or "auto", see `service.rollout.policy.Choice`.
        gates: Conditions that the warm generation has to meet; None on the way back to one that has served before.
        shadow_percent: Share of the live requests that are compared with the previous generation, which then stays
            until `ModelServer.end_shadow`; None for no comparison.
    """

    policy: str
    gates: GatesConfig | None = None
    shadow_percent: float | None = None


class Swapper:
    """Changes which generation of a model is in service.

    Args:
        servers: Servers of the configured models, by name.
        generations: Published generations.
        holds: Pinned and paused models.
        metrics: Metrics of the daemon.
    """

    def __init__(
        self, servers: Mapping[str, ModelServer], generations: GenerationRepository, holds: Holds, metrics: Metrics
    ) -> None:
        self.servers = servers
        self.generations = generations
        self.holds = holds
        self.metrics = metrics

    def server(self, model: str) -> ModelServer:
        """Return the server of a model.

        Raises:
            UsageError: There is no such model.
        """
        if model not in self.servers:
            raise UsageError(f"no model {model!r:.80}; {names_to_choose(model, self.servers, 'configured:')}")
        return self.servers[model]

    def is_live(self, server: ModelServer, number: int) -> bool:
        """Return whether a generation is committed to service and its process answers."""
        return server.live is not None and server.live.number == number == self.generations.current(server.name)

    async def prepare(self, server: ModelServer, number: int, options: SwapOptions) -> Swap:
        """Start and warm the process of a published generation, and check its gates. Hold `server.switching`.

        With the policy "resource", the previous generation is stopped first.

        Returns:
            The prepared swap, to be used in an `async with` block at once.

        Raises:
            GateError: The generation does not meet `options.gates`; the previous one serves on.
            EdgedError: The process cannot be started; the previous generation serves on.
        """
        await server.end_shadow()
        choice = await choose(server, self.generations, number, options.policy)
        start = time.monotonic()
        incumbent = None if options.gates is None else await observe(server.live, options.gates)
        try:
            if choice.policy == "resource":
                await server.pause()
            generation = await server.prepare(number)
            try:
                if options.gates is not None:
                    await check(generation, incumbent, options.gates)
            except BaseException:
                await generation.stop()
                raise
        except BaseException:
            self.keep_current(server)
            raise
        return Swap(self, server, generation, choice, options.shadow_percent, time.monotonic() - start)

    def keep_current(self, server: ModelServer) -> None:
        """Have the committed generation serve again after a failed swap, unless one serves already."""
        current = self.generations.current(server.name)
        if server.live is None and current is not None:
            server.keep(current)


class Swap:
    """A prepared swap. Use it as an asynchronous context, see the module's description.

    Args:
        swapper: Swapper that prepared it.
        server: Server of the model.
        generation: Warm process of the new generation, which gets no requests yet.
        choice: Policy of the swap.
        shadow_percent: Share of the live requests that are compared with the previous generation; None for none.
        warm_s: Seconds that the preparation took.
    """

    def __init__(
        self,
        swapper: Swapper,
        server: ModelServer,
        generation: Generation,
        choice: Choice,
        shadow_percent: float | None,
        warm_s: float,
    ) -> None:
        self.choice = choice
        self.warm_s = warm_s
        self._swapper = swapper
        self._server = server
        self._generation = generation
        self._renamed = server.renaming_by(generation)
        self._shadow_percent = shadow_percent
        self._previous: Generation | None = None
        self._committed_at: float | None = None

    @property
    def record(self) -> dict[str, Any]:
        """The journal's record of the swap: the fields of `Choice`, and "warmup", see `Generation.warmup`.

        "renamed" says how the class names in answers change, if they do.
        """
        renamed = {} if self._renamed is None else {"renamed": self._renamed}
        return {**dataclasses.asdict(self.choice), "warmup": self._generation.warmup, **renamed}

    async def __aenter__(self) -> Swap:
        """Return the swap itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Undo the preparation if the swap was not committed; otherwise make sure that the previous process ends."""
        if self._committed_at is None:
            try:
                await self._generation.stop()
            finally:
                self._swapper.keep_current(self._server)
        else:
            await self._release_previous()

    async def commit(self) -> None:
        """Make the generation current on the disk, then route new requests to it.

        Raises:
            StateError: The link cannot be replaced; the previous generation serves on.
        """
        await self._swapper.generations.switch(self._server.name, self._generation.number)
        self._committed_at = time.monotonic()
        self._previous = self._server.route(self._generation)
        self._swapper.metrics.swaps.labels(self._server.name, self.choice.policy).inc()

    async def retire_previous(self) -> float:
        """Drain and stop the previous generation, or keep it as a shadow; then export what is live.

        Returns:
            Seconds from the change of the route to the end of the previous process, or of its last request.
        """
        await self._release_previous()
        assert self._committed_at is not None  # noqa: S101 - committed before
        seconds = time.monotonic() - self._committed_at
        metrics, model = self._swapper.metrics, self._server.name
        metrics.swap_duration.labels(model).observe(seconds)
        await show_live(metrics, self._swapper.generations, self._generation)
        return seconds

    async def _release_previous(self) -> None:
        previous, self._previous = self._previous, None
        if previous is None:
            return
        if self._shadow_percent is not None and _may_stay(previous):
            show = self._swapper.metrics.shadow_agreement.labels(self._server.name).set
            await self._server.begin_shadow(previous, self._shadow_percent, show)
        else:
            await self._server.retire(previous)


def _may_stay(previous: Generation) -> bool:
    """Return whether the previous generation can stay: as much memory again as it alone takes must be free."""
    return previous.serving and available_bytes() > own_bytes(previous.pid)
