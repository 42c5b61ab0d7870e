"""The generation before the one on probation, asked once more what live requests asked: do both say the same?

It is asked after the client has its answer, at idle priority, and a few requests at a time: whatever comes meanwhile is
not in the sample. It compares by itself: to compare boxes takes torch, which the supervisor has not.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
from collections.abc import Callable
from typing import Any

from service.serving.channel import Reply, ServingError
from service.serving.generation import Generation
from service.system.processes import leave_to_idle_time

log = logging.getLogger(__name__)

ENOUGH_FOR_AGREEMENT = 20  # fewer requests say nothing

_AT_ONCE = 2
_DEADLINE_S = 30.0
_DOUBT = 1e-3  # how probable it may be that a generation is thought to fall short which does not


class Shadow:
    """One comparison over a probation.

    Args:
        before: The generation that served before; nobody else asks it anything any more.
        proving: The number of the one on probation.
        percent: Of the live requests that are compared.
        show: Told the agreement so far, 0 to 1.

    Attributes:
        requests: That were compared.
    """

    def __init__(
        self, before: Generation, proving: int, percent: float, show: Callable[[float], None] = lambda _: None
    ) -> None:
        self.requests = 0
        self._before = before
        self._proving = proving
        self._share = percent / 100
        self._show = show
        self._agreed = 0
        self._compared = 0
        self._unit = "images"
        self._asking: set[asyncio.Task[None]] = set()
        leave_to_idle_time(before.pid)

    @property
    def agreement(self) -> float:
        """Percent of what was compared; 100 before anything was."""
        return 100.0 * self._agreed / self._compared if self._compared else 100.0

    @property
    def figures(self) -> dict[str, Any]:
        """For the report of an update, JSON types."""
        return {
            "agreement": self.agreement if self._compared else None,
            "requests": self.requests,
            self._unit: self._compared,
            "with_generation": self._before.number,
        }

    def offer(self, number: int, body: bytes, json_bytes: int | None, reply: Reply) -> None:
        """Perhaps compare a request that was just answered. Returns at once.

        Args:
            number: The generation that answered.
            body: Of the request.
            json_bytes: How much of it is JSON, if a tensor follows; None for all.
            reply: The answer.
        """
        if number != self._proving or reply.status != 200 or not self._before.serving:
            return
        if len(self._asking) >= _AT_ONCE or random.random() >= self._share:  # noqa: S311 - a sample, no secret
            return
        task = asyncio.create_task(self._compare(body, json_bytes, reply))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    def shortfall(self, least: float, *, ended: bool) -> str | None:
        """Why the two agree too little; None if they do not, or if there is no telling.

        Args:
            least: Percent.
            ended: Whether the probation is over. Before, only what a few more requests will hardly change counts.
        """
        if self.requests < ENOUGH_FOR_AGREEMENT:
            return None
        # Hoeffding's bound: how far the mean of so many samples may lie from what it tends to.
        margin = 0.0 if ended else 100 * math.sqrt(math.log(1 / _DOUBT) / (2 * self.requests))
        if self.agreement + margin >= least:
            return None
        return (
            f"it agrees with generation {self._before.number} on {self.agreement:.1f} % of {self._compared}"
            f" {self._unit} in {self.requests} live requests, gates.min_shadow_agreement is {least:g} %"
        )

    async def end(self) -> None:
        """Stop the generation before."""
        for task in self._asking:
            task.cancel()
        self._before.kill()  # it has nothing to finish, and at idle priority might take its time to leave
        await self._before.stop()

    async def _compare(self, body: bytes, json_bytes: int | None, reply: Reply) -> None:
        try:
            answer = await self._before.infer(body, _DEADLINE_S, json_bytes, rival=reply)
        except ServingError as error:
            log.debug("model %s: a live request was not compared: %s", self._before.model, error)
            return
        if answer.status != 200:
            log.debug("model %s: a live request was not compared: %.200r", self._before.model, answer.body)
            return
        told = json.loads(answer.body)
        if told["compared"]:
            self._agreed += told["agreed"]
            self._compared += told["compared"]
            self._unit = told["unit"]
            self.requests += 1
            self._show(self.agreement / 100)
