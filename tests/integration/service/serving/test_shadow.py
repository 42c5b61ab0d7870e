"""Live requests, compared with what the generation before says to them: by a real process."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from service.config.load import GatesConfig
from service.ipc.messages import Body, Reply
from service.ipc.options import Batching
from service.rollout.probation import disagreement
from service.serving.fork_client import ForkServer
from service.serving.generation import Generation
from service.serving.limits import GenerationOptions
from service.serving.shadow import ENOUGH_FOR_AGREEMENT, Shadow
from tests.support import generations
from tests.support.artifacts import write_untrained

TIMEOUT_S = 60.0
BODY = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.25] * 192}]}
REQUEST = json.dumps(BODY).encode()
ASKED = GatesConfig(min_shadow_agreement=90.0)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "1"
    write_untrained(folder)
    return folder


def with_generation(artifact: Path, test: Callable[[Generation], Awaitable[None]], max_batch: int = 1) -> None:
    async def main() -> None:
        async with generations.shared_fork_server() as fork_server:
            generation = Generation(
                "digits", 1, artifact, fork_server, GenerationOptions(threads=1, batching=Batching(max_batch))
            )
            await generation.start(TIMEOUT_S)
            try:
                await asyncio.wait_for(test(generation), TIMEOUT_S)
            finally:
                await generation.stop()

    generations.run(main())


async def until(look: Callable[[], object]) -> None:
    while not look():
        await asyncio.sleep(0.005)


def another(reply: Reply) -> Reply:
    """The same answer with another top class."""
    answer = json.loads(reply.body.content)
    logits = answer["outputs"][0]["data"]
    logits[logits.index(min(logits))] = max(logits) + 1
    return Reply(200, Body(json.dumps(answer).encode()))


@pytest.mark.parametrize("max_batch", [1, 4])
def test_answers_are_compared_by_the_generation_before(artifact: Path, max_batch: int) -> None:
    shown: list[float] = []

    async def test(before: Generation) -> None:
        reply = await before.infer(REQUEST, TIMEOUT_S)
        shadow = Shadow(before, 2, 100.0, shown.append)
        assert before.pid is not None
        threads = [int(entry.name) for entry in Path(f"/proc/{before.pid}/task").iterdir()]
        assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_IDLE}
        for number, answer in enumerate([reply, another(reply), reply, reply], start=1):
            shadow.offer(2, REQUEST, None, answer)
            await until(lambda n=number: shadow.requests == n)  # type: ignore[misc]
        assert shadow.agreement == 75.0
        assert shadow.figures == {"agreement": 75.0, "requests": 4, "images": 4, "with_generation": 1}
        await shadow.end()
        assert not before.serving
        shadow.offer(2, REQUEST, None, reply)  # nobody is there to ask

    with_generation(artifact, test, max_batch)
    assert shown == [1.0, 0.5, pytest.approx(2 / 3), 0.75]


def test_what_is_no_answer_of_the_new_generation_is_not_compared(artifact: Path) -> None:
    async def test(before: Generation) -> None:
        reply = await before.infer(REQUEST, TIMEOUT_S)
        shadow = Shadow(before, 2, 100.0)
        shadow.offer(1, REQUEST, None, reply)  # it was under way when the traffic was switched
        shadow.offer(2, b"{}", None, Reply(400, Body(b"{}")))
        assert before.inflight == 0
        shadow.offer(2, REQUEST, None, Reply(200, Body(b"no answer at all")))
        for _ in range(10):  # most of them come while two are being compared
            shadow.offer(2, REQUEST, None, reply)
        await until(lambda: shadow.requests == 1 and before.inflight == 0)
        assert shadow.figures["agreement"] == 100.0

    with_generation(artifact, test)


def test_only_a_share_is_asked(artifact: Path) -> None:
    async def test(before: Generation) -> None:
        reply = await before.infer(REQUEST, TIMEOUT_S)
        shadow = Shadow(before, 2, 1e-9)
        for _ in range(100):
            shadow.offer(2, REQUEST, None, reply)
        await asyncio.sleep(0)
        assert before.inflight == 0
        assert shadow.figures == {"agreement": None, "requests": 0, "images": 0, "with_generation": 1}

    with_generation(artifact, test)


def shadow_of(requests: int, agreement: float) -> Shadow:
    shadow = Shadow(Generation("digits", 7, Path("/nowhere"), ForkServer()), 8, 10.0)
    shadow.requests, shadow._compared = requests, 100 * requests
    shadow._agreed = round(agreement * requests)
    return shadow


@pytest.mark.parametrize(
    ("requests", "agreement", "at_once", "at_end"),
    [
        (ENOUGH_FOR_AGREEMENT - 1, 0.0, False, False),
        (ENOUGH_FOR_AGREEMENT, 0.0, True, True),
        (ENOUGH_FOR_AGREEMENT, 89.0, False, True),
        (ENOUGH_FOR_AGREEMENT, 90.0, False, False),
        (100, 72.0, False, True),  # it could still be chance: the bound is 18.6 points away
        (100, 71.0, True, True),
    ],
)
def test_when_a_generation_falls_short(requests: int, agreement: float, at_once: bool, at_end: bool) -> None:
    shadow = shadow_of(requests, agreement)
    assert (disagreement(shadow, ASKED, ended=False) is not None) == at_once
    assert (disagreement(shadow, ASKED, ended=True) is not None) == at_end


def test_the_reason_has_the_figures() -> None:
    told = disagreement(shadow_of(40, 61.25), ASKED, ended=True)
    assert told is not None
    assert "agrees with generation 7 on 61.2 % of 4000 images in 40 live requests" in told
    assert "gates.min_shadow_agreement is 90 %" in told
    assert disagreement(shadow_of(40, 0.0), GatesConfig(), ended=True) is None  # nobody asked
    assert disagreement(None, ASKED, ended=True) is None  # nobody compared
