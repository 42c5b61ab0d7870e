"""Generations as real processes, and the routing between them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import torch

from edged.errors import GateError
from edged.models.registry import Architecture, load_model
from service.ipc.messages import Reply
from service.ipc.options import Batching
from service.ipc.shared_memory import LEAST_BYTES
from service.serving.channel import BusyError, ServingError
from service.serving.fork_client import ForkServer
from service.serving.generation import Generation, StartError
from service.serving.limits import GenerationOptions, Listener, ServingLimits
from service.serving.model_server import ModelServer
from tests.support import generations, scenes
from tests.support.artifacts import ARCHITECTURE, write_untrained, write_untrained_detector
from tests.support.processes import busy, slow_request

BODY = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.25] * 192}]}
REQUEST = json.dumps(BODY).encode()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_untrained(folder / "1", seed=1)
    write_untrained(folder / "2", seed=2)
    write_untrained(folder / "3", poison=True)
    write_untrained_detector(folder / "4", poison=True)
    return folder


def run(
    published: Path,
    test: Callable[[ModelServer], Awaitable[None]],
    listener: Listener = Listener(),  # noqa: B008 - frozen
    **limits: float,
) -> None:
    async def main() -> None:
        settings = ServingLimits(threads=1, backoff_s=0.01, **limits)  # type: ignore[arg-type]  # all of them are floats
        async with generations.shared_fork_server() as fork_server:
            service = ModelServer("digits", lambda number: published / str(number), fork_server, settings, listener)
            try:
                await asyncio.wait_for(test(service), 120)
            finally:
                await service.close()

    generations.run(main())


def with_fork_server(test: Callable[[ForkServer], Awaitable[None]]) -> None:
    async def main() -> None:
        async with generations.shared_fork_server() as fork_server:
            await asyncio.wait_for(test(fork_server), 120)

    generations.run(main())


async def until(look: Callable[[], object]) -> None:
    while not look():
        await asyncio.sleep(0.01)


def test_a_generation_computes_what_its_artifact_says(tmp_path: Path) -> None:
    state = write_untrained(tmp_path / "artifact")

    async def test(fork_server: ForkServer) -> None:
        generation = Generation("digits", 7, tmp_path / "artifact", fork_server, GenerationOptions(threads=1))
        with pytest.raises(ServingError, match="starting"):
            await generation.infer(REQUEST, 5)
        await generation.start(60)
        try:
            reply = await generation.infer(REQUEST, 30)
            answer = json.loads(reply.body.content)
            expected = load_model(state, ARCHITECTURE)(torch.full((1, 3, 8, 8), 0.25))
            got = torch.tensor(answer["outputs"][0]["data"]).reshape(1, 10)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
            assert (reply.status, answer["model_version"]) == (200, "7")
            assert (await generation.infer(b"{}", 30)).status == 400
            assert generation.metadata["inputs"][0]["shape"] == [-1, 3, 8, 8]
        finally:
            pid = generation.pid
            await generation.stop()
        assert pid is not None
        assert not psutil.pid_exists(pid)

    with_fork_server(test)


def test_a_generation_of_a_detector_gives_what_its_artifact_says(tmp_path: Path) -> None:
    state = write_untrained_detector(tmp_path / "artifact")
    side = scenes.SIDE
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 3, side, side], "data": [0.25] * (3 * side * side)}
    body = {"inputs": [tensor], "outputs": [{"name": "raw"}, {"name": "boxes"}]}

    async def test(fork_server: ForkServer) -> None:
        generation = Generation("shapes", 7, tmp_path / "artifact", fork_server, GenerationOptions(threads=1))
        await generation.start(60)
        try:
            answer = json.loads((await generation.infer(json.dumps(body).encode(), 30)).body.content)
            raw, boxes = answer["outputs"]
            expected = load_model(state, Architecture.detector(scenes.plan()))(torch.full((1, 3, side, side), 0.25))
            torch.testing.assert_close(torch.tensor(raw["data"]).reshape(raw["shape"]), expected, rtol=1e-4, atol=1e-3)
            assert boxes["shape"][0] <= 20
            assert [output["name"] for output in generation.metadata["outputs"]][-1] == "decoded"
        finally:
            await generation.stop()

    with_fork_server(test)


@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("3", GateError, "NaN or infinity"),
        ("4", GateError, "NaN or infinity"),
        ("nowhere", StartError, "is not an artifact|cannot read"),
    ],
)
def test_what_cannot_serve_does_not_come_up(published: Path, name: str, error: type[Exception], reason: str) -> None:
    async def test(fork_server: ForkServer) -> None:
        generation = Generation("digits", 3, published / name, fork_server, GenerationOptions(threads=1))
        with pytest.raises(error, match=reason):
            await generation.start(60)
        assert not generation.serving

    with_fork_server(test)


@pytest.fixture
def never_loaded(tmp_path: Path) -> Path:
    """An artifact that a generation never has done with reading: nobody writes to its manifest."""
    os.mkfifo(tmp_path / "manifest.json")
    return tmp_path


def test_how_a_generation_ended_while_it_was_starting_is_told(never_loaded: Path) -> None:
    async def test(fork_server: ForkServer) -> None:
        generation = Generation("digits", 1, never_loaded, fork_server, GenerationOptions(threads=1))
        starting = asyncio.create_task(generation.start(60))
        await until(lambda: generation.pid is not None)
        assert generation.pid is not None
        os.kill(generation.pid, signal.SIGKILL)
        with pytest.raises(StartError, match=r"was starting: killed by signal 9 \(Killed\); (another program|the )"):
            await starting

    with_fork_server(test)


def test_a_generation_that_takes_too_long_is_ended(published: Path, never_loaded: Path) -> None:
    async def test(fork_server: ForkServer) -> None:
        first = Generation("digits", 1, published / "1", fork_server, GenerationOptions(threads=1))
        await first.start(60)
        await first.stop()
        server = fork_server.pid
        generation = Generation("digits", 1, never_loaded, fork_server, GenerationOptions(threads=1))
        with pytest.raises(StartError, match=r"not ready after 2 s"):
            await generation.start(2)
        assert generation.pid is not None
        assert not psutil.pid_exists(generation.pid)
        assert fork_server.pid == server  # which did its part

    with_fork_server(test)


def test_routing_from_one_generation_to_the_next(published: Path) -> None:
    async def version(service: ModelServer) -> str:
        return str(json.loads((await service.infer(REQUEST, 30)).body.content)["model_version"])

    async def test(service: ModelServer) -> None:
        assert service.ready  # nothing was promised
        with pytest.raises(ServingError, match="no generation in service yet"):
            await service.infer(REQUEST, 30)
        service.keep(1)
        assert not service.ready
        await service.first_try()
        assert service.ready
        assert await version(service) == "1"

        second = await service.prepare(2)
        assert await version(service) == "1"  # warm beside it, but not in service
        under_way = [asyncio.create_task(version(service)) for _ in range(5)]
        await asyncio.sleep(0)  # they are with the first one now
        first = service.route(second)
        assert await version(service) == "2"
        assert first is not None
        await service.retire(first)
        assert await asyncio.gather(*under_way) == ["1"] * 5
        assert first.pid is not None
        assert not psutil.pid_exists(first.pid)

    run(published, test)


def test_a_killed_generation_comes_back(published: Path) -> None:
    async def test(service: ModelServer) -> None:
        service.keep(1)
        await service.first_try()
        assert service.live is not None
        assert service.live.pid is not None
        asked_before = asyncio.create_task(service.infer(slow_request(), 60))
        await until(busy(service.live.pid))
        os.kill(service.live.pid, signal.SIGKILL)
        with pytest.raises(ServingError, match="has lost its process"):
            await asked_before
        await until(lambda: service.restarts == 1 and service.live is not None)
        assert (await service.infer(REQUEST, 30)).status == 200

    run(published, test)


def test_only_what_the_process_took_with_it_fails(published: Path) -> None:
    told: list[tuple[int, str]] = []

    async def test(service: ModelServer) -> None:
        service.keep(1)
        await service.first_try()
        assert service.live is not None
        assert service.live.pid is not None
        begun = asyncio.create_task(service.infer(slow_request(), 60))
        await until(busy(service.live.pid))
        os.kill(service.live.pid, signal.SIGSTOP)
        with_it = [asyncio.create_task(ask(service)) for _ in range(3)]  # one of them in its socket
        await until(lambda: service.live is not None and service.live.inflight == 4)
        os.kill(service.live.pid, signal.SIGKILL)
        await until(lambda: service.held == 3)
        after = asyncio.create_task(ask(service))
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="has 4 requests waiting"):
            await service.wait_until_up(30)
        with pytest.raises(ServingError, match="has lost its process"):
            await begun
        assert await asyncio.gather(*with_it, after) == [200] * 4
        assert [(number, why.split(";")[0]) for number, why in told] == [(1, "killed by signal 9 (Killed)")]
        assert service.stats.failures == 1

    run(published, test, Listener(restarted=lambda *crash: told.append(crash)), queue=4)


def test_requests_wait_while_one_generation_makes_room_for_the_next(published: Path) -> None:
    async def test(service: ModelServer) -> None:
        service.keep(1)
        await service.first_try()
        await service.pause()
        assert not service.ready
        assert await service.wait_until_up(0.01) == 0.0
        waiting = asyncio.create_task(ask(service))
        await asyncio.sleep(0)
        service.route(await service.prepare(2))
        assert await waiting == 200
        assert await service.wait_until_up(5.0) == 5.0

        # One that does not come up keeps nobody waiting, and then the one before is started again.
        await service.pause()
        waiting = asyncio.create_task(ask(service))
        await asyncio.sleep(0)
        service.keep(9)
        with pytest.raises(ServingError, match="cannot start generation 9"):
            await waiting
        service.keep(2)
        await until(lambda: service.live is not None)
        assert await ask(service) == 200

    run(published, test)


def test_nobody_waits_for_what_was_never_there(published: Path) -> None:
    async def test(service: ModelServer) -> None:
        await service.pause()  # as "resource" does for the first generation, too
        assert await service.wait_until_up(5.0) == 5.0

    run(published, test)


def test_one_that_loads_beside_another_gives_way_only_until_it_is_up(published: Path, tmp_path: Path) -> None:
    def niceness(pid: int | None) -> set[int]:
        stats = [(thread / "stat").read_text() for thread in Path(f"/proc/{pid}/task").iterdir()]
        return {int(stat.rpartition(")")[2].split()[16]) for stat in stats}

    own = os.getpriority(os.PRIO_PROCESS, 0)

    async def test(fork_server: ForkServer) -> None:
        os.mkfifo(tmp_path / "manifest.json")  # nobody writes to it: it loads for ever
        stuck = Generation("digits", 1, tmp_path, fork_server, GenerationOptions(threads=1, background=True))
        starting = asyncio.create_task(stuck.start(60))
        await until(lambda: stuck.pid is not None and niceness(stuck.pid) == {own, min(own + 10, 19)})
        stuck.kill()
        with pytest.raises(StartError):
            await starting
        for beside in (False, True):
            generation = Generation(
                "digits", 1, published / "1", fork_server, GenerationOptions(threads=2, background=beside)
            )
            await generation.start(60)
            try:
                assert (await generation.infer(REQUEST, 60)).status == 200
                await until(lambda pid=generation.pid: niceness(pid) == {own})
            finally:
                await generation.stop()

    with_fork_server(test)


def test_a_request_is_given_to_no_third_process(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = ModelServer.prepare

    async def stopped(service: ModelServer, number: int) -> Generation:
        generation = await start(service, number)
        assert generation.pid is not None
        os.kill(generation.pid, signal.SIGSTOP)  # so that it takes nothing up
        return generation

    async def test(service: ModelServer) -> None:
        service.keep(1)
        await service.first_try()
        asked = asyncio.create_task(service.infer(REQUEST, 60))
        for crashes in range(2):
            await until(lambda crashes=crashes: service.restarts == crashes and service.live is not None)
            assert service.live is not None
            assert service.live.pid is not None
            await until(lambda: service.live is not None and service.live.inflight == 1)
            os.kill(service.live.pid, signal.SIGKILL)
            await until(lambda crashes=crashes: service.restarts == crashes + 1)
        with pytest.raises(ServingError, match="has lost its process"):
            await asked

    monkeypatch.setattr(ModelServer, "prepare", stopped)
    run(published, test)


async def ask(service: ModelServer) -> int:
    return (await service.infer(REQUEST, await service.wait_until_up(30))).status


def test_a_hung_generation_is_replaced(published: Path) -> None:
    async def test(service: ModelServer) -> None:
        service.keep(1)
        await service.first_try()
        hung = service.live
        assert hung is not None
        assert hung.pid is not None
        os.kill(hung.pid, signal.SIGSTOP)
        with pytest.raises(ServingError, match=r"within 0\.1 s"):
            await service.infer(REQUEST, 0.1)
        service.check()
        await until(lambda: service.live not in (None, hung))
        assert (await service.infer(REQUEST, 30)).status == 200

    run(published, test, hang_s=0.05)


def test_what_cannot_come_up_is_tried_again_and_says_why(published: Path, tmp_path: Path) -> None:
    async def test(service: ModelServer) -> None:
        service.keep(9)
        await service.first_try()
        assert not service.ready
        assert service.problem is not None
        assert "cannot start generation 9" in service.problem
        write_untrained(published / "9")  # repaired
        await until(lambda: service.live is not None)
        assert service.ready

    run(published, test)


def test_each_generation_answers_for_its_own_requests(published: Path) -> None:
    def counted(service: ModelServer) -> tuple[tuple[int, int], ...]:
        kept = (service.stats, service.previous_stats, service.recent)
        return tuple((traffic.requests, traffic.failures) for traffic in kept)

    async def test(service: ModelServer) -> None:
        with pytest.raises(ServingError):
            await service.infer(REQUEST, 30)
        assert counted(service) == ((0, 0), (0, 0), (1, 1))  # nobody's fault yet
        service.keep(1)
        await service.first_try()
        await service.infer(REQUEST, 30)
        with pytest.raises(ServingError):
            await service.infer(REQUEST, 0)
        assert counted(service) == ((2, 1), (0, 0), (3, 2))
        assert service.live is not None
        assert service.live.pid is not None
        os.kill(service.live.pid, signal.SIGKILL)
        await until(lambda: service.restarts == 1 and service.live is not None)
        await service.infer(b"{}", 30)
        assert counted(service) == ((3, 1), (0, 0), (4, 2))  # the same generation, in another process
        first = service.route(await service.prepare(2))
        assert first is not None
        await service.retire(first)
        await service.infer(REQUEST, 30)
        assert counted(service) == ((1, 0), (3, 1), (5, 2))
        assert service.stats.quantile_s(0.99) is not None

    run(published, test)


def test_a_generation_that_is_retired_ends_though_nobody_waits_for_it(published: Path) -> None:
    async def test(service: ModelServer) -> None:
        generation = await service.prepare(1)
        pid = generation.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        asked = asyncio.create_task(generation.infer(REQUEST, 60))
        await until(lambda: generation.inflight == 1)
        retiring = asyncio.create_task(service.retire(generation))
        await asyncio.sleep(0)
        retiring.cancel()
        os.kill(pid, signal.SIGCONT)
        with pytest.raises(asyncio.CancelledError):
            await retiring
        await asyncio.gather(asked, return_exceptions=True)
        assert not psutil.pid_exists(pid)

    run(published, test)


def test_a_generation_that_dies_while_the_one_before_drains_leaves_none_behind(published: Path) -> None:
    async def test(service: ModelServer) -> None:
        before, proving = await service.prepare(1), await service.prepare(2)
        service.route(proving)
        service.live = None  # it has just died
        await service.begin_shadow(before, 100.0, lambda agreement: None)
        assert service.shadow is not None
        assert service.shadow.figures["with_generation"] == 1
        await service.end_shadow()
        assert not psutil.pid_exists(before.pid or 0)
        await proving.stop()

    run(published, test)


@pytest.mark.parametrize("max_batch", [1, 4])
def test_bodies_in_shared_memory_are_answered_as_those_in_the_socket(published: Path, max_batch: int) -> None:
    images = np.random.default_rng(0).normal(size=(64, 3, 8, 8)).astype("<f4")

    def request(part: npt.NDArray[np.float32]) -> tuple[bytes, int]:
        tensor = {
            "name": "input",
            "datatype": "FP32",
            "shape": part.shape,
            "parameters": {"binary_data_size": part.nbytes},
        }
        text = json.dumps({"inputs": [tensor]}).encode()
        return text + part.tobytes(), len(text)

    def logits(reply: Reply) -> list[float]:
        assert reply.status == 200
        return list(json.loads(reply.body.content)["outputs"][0]["data"])

    async def test(fork_server: ForkServer) -> None:
        generation = Generation(
            "digits", 1, published / "1", fork_server, GenerationOptions(threads=1, batching=Batching(max_batch))
        )
        await generation.start(60)
        try:

            async def ask(first: int, count: int) -> list[float]:
                body, json_bytes = request(images[first : first + count])
                assert (len(body) >= LEAST_BYTES) == (count > 1)
                return logits(await generation.infer(body, 60, json_bytes))

            large = await asyncio.gather(*(ask(first, 32) for first in range(0, 64, 32) for _ in range(4)))
            small = await asyncio.gather(*(ask(first, 1) for first in range(64)))
            alone = [np.concatenate(small[first : first + 32]) for first in range(0, 64, 32) for _ in range(4)]
            np.testing.assert_allclose(large, alone, rtol=1e-4, atol=1e-5)

            body, json_bytes = request(images)
            reply = await generation.infer(body, 60, json_bytes)
            told = await generation.infer(body, 60, json_bytes, rival=reply)
            assert json.loads(told.body.content) == {"agreed": 64, "compared": 64, "unit": "images"}
        finally:
            await generation.stop()

    with_fork_server(test)
