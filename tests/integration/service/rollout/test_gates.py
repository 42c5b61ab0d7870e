"""Gates of a warm generation, with real processes."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from edged.artifacts.store import ModelStore
from edged.errors import GateError
from service.config.load import GatesConfig
from service.rollout.gates import Incumbent, check, interface_of, interface_on_disk, observe
from service.serving.fork_client import ForkServer
from service.serving.generation import Generation
from service.serving.limits import GenerationOptions
from service.storage.generations import GenerationRepository
from service.system.disk_thread import Disk
from tests.support.artifacts import write_untrained

ANYTHING = GatesConfig()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "artifact"
    write_untrained(folder)
    return folder


def test_what_a_warm_generation_must_show(artifact: Path) -> None:
    async def main() -> None:
        fork_server = ForkServer()
        first, second = (
            Generation("digits", number, artifact, fork_server, GenerationOptions(threads=1)) for number in (1, 2)
        )
        assert await observe(first, ANYTHING) is None  # it is not up
        await asyncio.gather(first.start(280), second.start(280))
        try:
            incumbent = await observe(first, GatesConfig(max_latency_ratio=1.0))
            assert incumbent is not None
            assert incumbent.latency_s is not None
            assert incumbent.latency_s > 0
            assert incumbent.interface == interface_of(second.metadata)
            await what_the_disk_says(artifact.parent, second)
            await check(second, incumbent, GatesConfig(max_latency_ratio=100.0, max_memory=8 << 30))
            await refusals(second, incumbent)
        finally:
            await asyncio.gather(first.stop(), second.stop())
            await fork_server.close()

    asyncio.run(main())


async def what_the_disk_says(folder: Path, generation: Generation) -> None:
    """The interface that is known before a process starts has the shapes that the process describes."""
    store, disk = ModelStore(folder / "models"), Disk()
    shutil.copytree(folder / "artifact", folder / "copy")
    number = store.publish("digits", folder / "copy")
    interface = await interface_on_disk(GenerationRepository(store, disk), "digits", number)
    assert interface is not None
    described = interface_of(generation.metadata)
    assert described["output logits"]["shape"] == [-1, interface.classes]
    assert described["input input"]["shape"] == [-1, interface.channels, interface.size, interface.size]
    (store.path("digits", number) / "manifest.json").write_text("{}")
    assert await interface_on_disk(GenerationRepository(store, disk), "digits", number) is None
    disk.close()


async def refusals(generation: Generation, incumbent: Incumbent) -> None:
    slow = replace(incumbent, latency_s=1e-9)
    with pytest.raises(GateError, match=r"times the 0\.00 ms of generation 1; gates\.max_latency_ratio is 1\.5"):
        await check(generation, slow, GatesConfig(max_latency_ratio=1.5))
    await check(generation, slow, ANYTHING)
    with pytest.raises(GateError, match=r"takes \d+\.\d MiB of memory, gates\.max_memory is 1\.0 MiB"):
        await check(generation, None, GatesConfig(max_memory=1 << 20))
    fewer = {**incumbent.interface, "output logits": {"datatype": "FP32", "shape": [-1, 9]}}
    other = replace(incumbent, interface=fewer)
    with pytest.raises(GateError, match=r"output logits is FP32 \[-1, 10\], in generation 1 it is FP32 \[-1, 9\]"):
        await check(generation, other, ANYTHING)
    with pytest.raises(GateError, match=r"output logits is FP32 .* it is missing; clients rely on it"):
        await check(generation, replace(incumbent, interface=without(fewer, "output logits")), ANYTHING)
    await check(generation, other, GatesConfig(same_interface=False))
    await check(generation, replace(other, number=generation.number), ANYTHING)  # it is the one that is compared with


def without(interface: dict[str, object], name: str) -> dict[str, object]:
    return {key: value for key, value in interface.items() if key != name}
