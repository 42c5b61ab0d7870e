"""Probation: the first seconds of a generation under live traffic, after which it is committed or rolled back."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from edged.errors import EdgedError
from service.config.sections import GatesConfig, ModelConfig
from service.journal.states import State
from service.journal.update import Update
from service.outcomes import Committed, RolledBack
from service.rollout.records import UpdateRecords
from service.rollout.rollback import Rollbacks
from service.serving.model_server import ModelServer
from service.serving.request_stats import RequestStats
from service.serving.shadow import Shadow

log = logging.getLogger(__name__)

# Fewer requests prove nothing: one failure of five is no error rate, and the p99 of ten requests is their maximum.
ENOUGH_FOR_ERRORS = 20
ENOUGH_FOR_P99 = 100
MAX_CRASHES = 2

_POLL_S = 0.2


@dataclass(frozen=True)
class Verdict:
    """The result of a probation.

    Attributes:
        outcome: Whether the generation stays in service.
        seconds: Duration of the probation; None if there was none.
    """

    outcome: Committed | RolledBack
    seconds: float | None = None


class Probation:
    """Watches live generations, and rolls back those that fail.

    Args:
        rollbacks: Takes a generation out of service.
        records: Records of the updates.
    """

    def __init__(self, rollbacks: Rollbacks, records: UpdateRecords) -> None:
        self._rollbacks = rollbacks
        self._records = records

    async def run(self, update_id: int, model: ModelConfig, server: ModelServer, *, resumed: bool) -> Verdict:
        """Run the probation of the generation that an update put in service.

        A generation without a previous one has no probation: nothing could follow from it, and the next file would
        only have to wait.

        Args:
            update_id: Number of the update.
            model: Configuration of its model.
            server: Server of its model.
            resumed: Whether the generation went live before the daemon was started. Its time counts from then, so that
                a restart does not begin it anew. Otherwise it counts from now, when the previous generation has left.
        """
        update = await self._records.updates.get(update_id)
        left_s = model.probation_s - (max(0.0, time.time() - update.updated_at) if resumed else 0.0)
        if update.state is not State.LIVE or update.generation is None or left_s <= 0:
            return Verdict(Committed())
        if self._rollbacks.target(model.name) is None:
            text = "update %d of %s (%s): no probation, there is no generation to go back to"
            log.info(text, update_id, model.name, update.file_name)
            return Verdict(Committed())
        if model.shadow_percent is not None and server.shadow is None:
            log.warning("model %s: the previous generation is not in memory: no request is compared", model.name)
        start = time.monotonic()
        with self._records.metrics.model_probation.labels(model.name).track_inprogress():
            problem = await watch(server, update.generation, left_s, model.gates)
        seconds = time.monotonic() - start
        undone = await self._rollbacks.undone(update_id)
        if undone is None and problem is not None:
            return Verdict(await self._fail(update, update.generation, problem), seconds)
        return Verdict(undone or Committed(), seconds)

    async def _fail(self, update: Update, generation: int, problem: str) -> Committed | RolledBack:
        """Roll back a generation. It stays in service if the previous one cannot be started."""
        reason = f"generation {generation} failed its probation: {problem}"
        log.error("update %d of %s (%s): %s", update.id, update.model, update.file_name, reason)
        try:
            await self._rollbacks.roll_back(update.model, code="probation", why=reason, expected=generation)
        except EdgedError as error:
            undone = await self._rollbacks.undone(update.id)  # an operator may have been faster
            return undone or Committed(f"{reason}; it stays in service: {error}")
        return await self._rollbacks.undone(update.id) or Committed()


async def watch(server: ModelServer, generation: int, seconds: float, gates: GatesConfig) -> str | None:
    """Watch the live generation until its probation is over.

    Args:
        server: Server of the model.
        generation: Number of the live generation.
        seconds: Duration of the probation.
        gates: Conditions that the generation has to meet.

    Returns:
        Why the generation failed, as soon as that is certain; None if it passed, or if another one took its place.
    """
    end = time.monotonic() + seconds
    while server.wanted == generation:
        crashes = server.crashes
        if (left_s := end - time.monotonic()) <= 0:
            return failure_at_end(server, crashes, gates)
        if (reason := failure(server.stats, server.previous_stats, crashes, gates)) is not None:
            return reason
        if (reason := disagreement(server.shadow, gates, ended=False)) is not None:
            return reason
        await asyncio.sleep(min(_POLL_S, left_s))
    return None


def failure(now: RequestStats, before: RequestStats, crashes: int, gates: GatesConfig) -> str | None:
    """Return why the generation has failed already, whatever comes; None if it has not.

    Args:
        now: Requests of the generation.
        before: Requests of the previous generation.
        crashes: How often the process exited unexpectedly or failed to restart.
        gates: Conditions that the generation has to meet.
    """
    if crashes >= MAX_CRASHES:
        return f"its process exited unexpectedly {crashes} times"
    # A model whose requests failed before, for example because of overload, only must not get worse.
    allowed = max(gates.max_error_rate, before.error_rate if before.judged >= ENOUGH_FOR_ERRORS else 0.0)
    if now.judged >= ENOUGH_FOR_ERRORS and now.error_rate > allowed:
        return (
            f"{now.failures} of {now.judged} requests failed ({now.error_rate:.1f} %), gates.max_error_rate is"
            f" {gates.max_error_rate:g} % and {before.error_rate:.1f} % failed before"
        )
    return None


def failure_at_end(server: ModelServer, crashes: int, gates: GatesConfig) -> str | None:
    """Return why the generation failed, judged when its probation is over; None if it passed."""
    now, before = server.stats, server.previous_stats
    if (reason := failure(now, before, crashes, gates)) is not None:
        return reason
    if not server.ready:
        return f"it does not answer: {server.problem or 'its process is not running'}"
    if (reason := disagreement(server.shadow, gates, ended=True)) is not None:
        return reason
    if gates.max_p99_ratio is None or min(now.successes, before.successes) < ENOUGH_FOR_P99:
        return None
    p99_s, p99_before_s = now.quantile_s(0.99), before.quantile_s(0.99)
    if p99_s is None or p99_before_s is None or p99_s <= gates.max_p99_ratio * p99_before_s:
        return None
    return (
        f"p99 latency is {1000 * p99_s:.1f} ms, {p99_s / p99_before_s:.2f} times the {1000 * p99_before_s:.1f} ms"
        f" before; gates.max_p99_ratio is {gates.max_p99_ratio:g}"
    )


def disagreement(shadow: Shadow | None, gates: GatesConfig, *, ended: bool) -> str | None:
    """Return why the generation agrees too little with the previous one; None if it agrees or is not compared."""
    if shadow is None or gates.min_shadow_agreement is None:
        return None
    return shadow.shortfall(gates.min_shadow_agreement, ended=ended)
