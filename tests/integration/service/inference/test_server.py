"""A generation that batches requests, in its own process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from service.ipc.options import Batching
from service.serving.channel import DeadlineError, NotStartedError, ServingError
from service.serving.generation import Generation, GenerationEvents
from service.serving.limits import GenerationOptions
from tests.support import generations
from tests.support.artifacts import write_untrained
from tests.support.processes import busy, slow_request

TIMEOUT_S = 60.0


def body_of(value: float, images: int = 1) -> bytes:
    tensor = {"name": "input", "datatype": "FP32", "shape": [images, 3, 8, 8], "data": [value] * images * 192}
    return json.dumps({"id": f"{value}", "inputs": [tensor]}).encode()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "1"
    write_untrained(folder)
    return folder


def run(artifact: Path, test: Any, batching: Batching, queue: int = 64, **more: Any) -> list[int]:
    """Run `test` on a generation that is up, and return the number of images of each batch."""
    sizes: list[int] = []

    async def main() -> None:
        options = GenerationOptions(threads=1, queue=queue, batching=batching, **more)
        async with generations.shared_fork_server() as fork_server:
            generation = Generation("digits", 1, artifact, fork_server, options, GenerationEvents(batched=sizes.append))
            await generation.start(TIMEOUT_S)
            try:
                await asyncio.wait_for(test(generation), TIMEOUT_S)
            finally:
                await generation.stop()

    generations.run(main())
    return sizes


def test_requests_of_several_clients_are_computed_together(artifact: Path) -> None:
    async def test(generation: Generation) -> None:
        values = [number / 20 for number in range(20)]
        alone = [json.loads((await generation.infer(body_of(value), TIMEOUT_S)).body.content) for value in values]
        replies = await asyncio.gather(*(generation.infer(body_of(value), TIMEOUT_S) for value in values))
        for value, reply, expected in zip(values, replies, alone, strict=True):
            answer = json.loads(reply.body.content)
            assert answer["id"] == str(value)
            assert answer["outputs"][0]["data"] == pytest.approx(expected["outputs"][0]["data"], rel=1e-4, abs=1e-4)

    sizes = run(artifact, test, Batching(4, 0.05))
    assert sum(sizes) == 40
    assert sizes[:20] == [1] * 20  # one after another
    assert 1 < max(sizes[20:]) <= 4


def test_a_batch_waits_no_longer_than_its_delay(artifact: Path) -> None:
    async def test(generation: Generation) -> None:
        reply = await generation.infer(body_of(0.5), TIMEOUT_S)
        assert reply.status == 200
        assert reply.seconds < 3  # the wait does not count as work

    assert run(artifact, test, Batching(8, 3.0)) == [1]


@pytest.mark.parametrize("max_batch", [1, 4])
def test_a_reply_comes_with_what_was_done_for_it(artifact: Path, max_batch: int) -> None:
    async def test(generation: Generation) -> None:
        before_ns = time.monotonic_ns()
        replies = await asyncio.gather(*(generation.infer(body_of(0.5, images), TIMEOUT_S) for images in (1, 2, 1, 2)))
        after_ns = time.monotonic_ns()
        works = [reply.work for reply in replies if reply.work is not None]
        assert [work.images for work in works] == [1, 2, 1, 2]
        for work in works:
            assert before_ns < work.started_ns < after_ns
            assert min(work.input_ns, work.infer_ns, work.output_ns) > 0
            assert work.waited_ns >= 0
            assert work.input_ns + work.waited_ns + work.infer_ns + work.output_ns < after_ns - before_ns
        passes = [each for work in works for each in work.passes]
        assert sum(each.images for each in passes) == 6  # each pass is reported once
        assert all(each.images <= max(2, max_batch) for each in passes)
        if max_batch == 1:
            assert [work.passes[0].infer_ns for work in works] == [work.infer_ns for work in works]
        wrong = await generation.infer(b"{}", TIMEOUT_S)
        assert (wrong.status, wrong.work) == (400, None)

    run(artifact, test, Batching(max_batch, 0.05 if max_batch > 1 else 0.0))


def test_deadlines_draining_and_a_killed_process(artifact: Path) -> None:
    async def test(generation: Generation) -> None:
        under_way = [asyncio.create_task(generation.infer(body_of(0.1), TIMEOUT_S)) for _ in range(12)]
        await asyncio.sleep(0)
        assert generation.inflight == 12
        assert await generation.drain(TIMEOUT_S)
        assert all(task.done() and task.result().status == 200 for task in under_way)

        assert generation.pid is not None
        os.kill(generation.pid, signal.SIGSTOP)  # so that it cannot answer
        late = [asyncio.create_task(generation.infer(body_of(0.1), 0.05)) for _ in range(12)]
        assert all(isinstance(error, DeadlineError) for error in await asyncio.gather(*late, return_exceptions=True))
        assert generation.inflight == 0
        asked = [asyncio.create_task(generation.infer(body_of(0.1), TIMEOUT_S)) for _ in range(12)]
        await asyncio.sleep(0)
        os.kill(generation.pid, signal.SIGKILL)
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(result) for result in results] == [NotStartedError] * 12

    run(artifact, test, Batching(4))


def test_requests_that_a_killed_process_started_are_distinguished_from_the_rest(artifact: Path) -> None:
    async def test(generation: Generation) -> None:
        assert generation.pid is not None
        asked = [asyncio.create_task(generation.infer(slow_request(), TIMEOUT_S)) for _ in range(3)]
        await asyncio.sleep(0)
        begun = busy(generation.pid)
        while not begun():
            await asyncio.sleep(0.01)
        os.kill(generation.pid, signal.SIGKILL)
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(result) for result in results] == [ServingError, NotStartedError, NotStartedError]

    run(artifact, test, Batching(4))  # its reader decodes one after another
