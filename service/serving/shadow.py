"""Comparison of a generation on probation with the previous generation, on a sample of the live requests.

The previous generation gets a request after the client has its reply, at idle priority, and a few requests at a time;
others are not sampled meanwhile. It compares the replies itself: comparing boxes needs torch, which the supervisor does
not load.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from service.ipc.messages import Form, Reply
from service.ipc.shared_memory import RequestBody, StoredBody
from service.serving.channel import ServingError
from service.serving.generation import Generation
from service.system.processes import leave_to_idle_time

log = logging.getLogger(__name__)

ENOUGH_FOR_AGREEMENT = 20  # fewer requests are not conclusive

_AT_ONCE = 2
_DEADLINE_S = 30.0
_DOUBT = 1e-3  # probability of failing a generation that agrees enough


class Shadow:
    """The comparison during one probation.

    Args:
        before: Previous generation, which gets no other requests.
        proving: Number of the generation on probation.
        percent: Share of the live requests that are compared, in percent.
        show: Called with the agreement so far, 0 to 1.

    Attributes:
        requests: Number of requests that were compared.
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
        """Agreement in percent; 100 before the first comparison."""
        return 100.0 * self._agreed / self._compared if self._compared else 100.0

    @property
    def figures(self) -> dict[str, Any]:
        """Values for the report of an update, as JSON types."""
        return {
            "agreement": self.agreement if self._compared else None,
            "requests": self.requests,
            self._unit: self._compared,
            "with_generation": self._before.number,
        }

    def offer(
        self, number: int, body: RequestBody, json_bytes: int | None, reply: Reply, form: Form | None = None
    ) -> None:
        """Compare a request that was just answered, if it is sampled. Returns at once.

        Args:
            number: Number of the generation that answered.
            body: Body of the request.
            json_bytes: Length of its JSON in bytes; None if it is all JSON.
            reply: Reply of that generation.
            form: What the request says next to its body; None for nothing.
        """
        if reply.body.media_type is not None:  # a picture has no outputs to compare
            return
        if number != self._proving or reply.status != 200 or not self._before.serving:
            return
        if len(self._asking) >= _AT_ONCE or random.random() >= self._share:  # noqa: S311 - a sample, no secret
            return
        if isinstance(body, StoredBody):
            body.hold()
        task = asyncio.create_task(self._compare(body, json_bytes, reply, form))
        self._asking.add(task)
        task.add_done_callback(partial(self._asked, body))

    def shortfall(self, least: float, *, ended: bool) -> str | None:
        """Return why the agreement is too low; None if it is not, or if there are too few requests.

        Args:
            least: Smallest agreement allowed, in percent.
            ended: Whether the probation is over. Before that, the result must hold with high probability.
        """
        if self.requests < ENOUGH_FOR_AGREEMENT:
            return None
        # Hoeffding's bound on the distance of the mean of so many samples from its expectation.
        margin = 0.0 if ended else 100 * math.sqrt(math.log(1 / _DOUBT) / (2 * self.requests))
        if self.agreement + margin >= least:
            return None
        return (
            f"it agrees with generation {self._before.number} on {self.agreement:.1f} % of {self._compared}"
            f" {self._unit} in {self.requests} live requests, gates.min_shadow_agreement is {least:g} %"
        )

    async def end(self) -> None:
        """Stop the previous generation."""
        for task in self._asking:
            task.cancel()
        self._before.kill()  # it has nothing to finish, and might exit slowly at idle priority
        await self._before.stop()

    def _asked(self, body: RequestBody, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        if isinstance(body, StoredBody):
            body.release()

    async def _compare(self, body: RequestBody, json_bytes: int | None, reply: Reply, form: Form | None) -> None:
        try:
            answer = await self._before.infer(body, _DEADLINE_S, json_bytes, rival=reply, form=form)
        except ServingError as error:
            log.debug("model %s: a live request was not compared: %s", self._before.model, error)
            return
        if answer.status != 200:
            log.debug("model %s: a live request was not compared: %.200r", self._before.model, answer.body.content)
            return
        found = json.loads(bytes(answer.body.content))
        if found["compared"]:
            self._agreed += found["agreed"]
            self._compared += found["compared"]
            self._unit = found["unit"]
            self.requests += 1
            self._show(self.agreement / 100)
