"""The steps of a swap and their failures, with a scripted server. Real processes: end_to_end/test_swaps.py."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from edged.artifacts.store import ModelStore
from edged.errors import GateError, StateError, UsageError
from service.config.sections import GatesConfig
from service.journal.holds import Holds
from service.metrics.registry import Metrics
from service.rollout.swap import SwapOptions, Swapper
from service.storage.generations import GenerationRepository
from service.system.disk_thread import Disk

BY_RESOURCE = SwapOptions("resource")


class Process:
    """The process of a generation; logs its end."""

    def __init__(self, number: int, log: list[str]) -> None:
        self.number, self.serving, self.pid, self.warmup, self.metadata = number, True, None, {"identical": True}, {}
        self.model, self.engine = "m", "onnxruntime"
        self._log = log

    async def stop(self) -> None:
        self._log.append(f"stop {self.number}")


class Server:
    """A server that logs what is asked of it; generation 1 is live."""

    def __init__(self) -> None:
        self.name, self.log, self.fails, self.renames = "m", [], False, False
        self.live: Process | None = Process(1, self.log)
        self.wanted = 1

    async def end_shadow(self) -> None:
        self.log.append("end shadow")

    async def pause(self) -> None:
        self.log.append("pause")
        self.live = None

    async def prepare(self, number: int) -> Process:
        self.log.append(f"prepare {number}")
        if self.fails:
            raise GateError("not finite")
        return Process(number, self.log)

    def renaming_by(self, process: Process) -> str | None:
        return f"generation {process.number} calls them otherwise" if self.renames else None

    def route(self, process: Process) -> Process | None:
        self.log.append(f"route {process.number}")
        before, self.live = self.live, process
        return before

    async def retire(self, process: Process) -> None:
        self.log.append(f"retire {process.number}")

    async def begin_shadow(self, process: Process, percent: float, show: Callable[[float], None]) -> None:
        self.log.append(f"shadow {process.number} {percent:g}")

    def keep(self, number: int) -> None:
        self.log.append(f"keep {number}")


class Bench:
    """Two published generations, of which the first is current."""

    def __init__(self, root: Path) -> None:
        self.store, self.disk, self.metrics = ModelStore(root), Disk(), Metrics(CollectorRegistry())
        for name in ("a", "b"):
            (root / name).mkdir(parents=True)
            (root / name / "manifest.json").write_text("{}")
            (root / name / "report.json").write_text(json.dumps({"totals": {}}))
            self.store.publish("m", root / name)
        self.store.switch("m", 1)
        self.server: Any = Server()
        holds: Any = SimpleNamespace(of=Holds.of)
        self.swapper = Swapper({"m": self.server}, GenerationRepository(self.store, self.disk), holds, self.metrics)

    def run(self, test: Awaitable[None]) -> list[str]:
        async def main() -> None:
            await test

        try:
            asyncio.run(main())
        finally:
            self.disk.close()
        return list(self.server.log)

    async def swap(self, options: SwapOptions, fail_at: str = "") -> None:
        async with await self.swapper.prepare(self.server, 2, options) as swap:
            if fail_at == "warmed":
                raise StateError("disk full")
            await swap.commit()
            if fail_at == "live":
                raise StateError("disk full")
            await swap.retire_previous()

    def count(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"edged_{name}", {"model": "m", **labels})


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "models")


def test_a_swap_is_three_steps_in_order(bench: Bench) -> None:
    log = bench.run(bench.swap(SwapOptions("availability")))
    assert log == ["end shadow", "prepare 2", "route 2", "retire 1"]
    assert bench.store.current("m") == 2
    assert bench.count("swaps_total", policy="availability") == 1
    assert bench.count("swap_duration_seconds_count") == 1


@pytest.mark.parametrize("renames", [False, True])
def test_the_record_of_a_swap_says_how_class_names_change(bench: Bench, renames: bool) -> None:
    records = []

    async def prepare() -> None:
        bench.server.renames = renames
        async with await bench.swapper.prepare(bench.server, 2, BY_RESOURCE) as swap:
            records.append(swap.record)

    bench.run(prepare())
    assert records[0].get("renamed") == ("generation 2 calls them otherwise" if renames else None)


def test_with_resource_the_previous_generation_stops_first(bench: Bench) -> None:
    assert bench.run(bench.swap(BY_RESOURCE)) == ["end shadow", "pause", "prepare 2", "route 2"]


def test_the_previous_generation_stays_as_a_shadow(bench: Bench) -> None:
    log = bench.run(bench.swap(SwapOptions("availability", shadow_percent=10.0)))
    assert log[-1] == "shadow 1 10"


def test_a_generation_that_cannot_be_prepared_leaves_the_current_one_in_service(bench: Bench) -> None:
    bench.server.fails = True
    with pytest.raises(GateError, match="not finite"):
        bench.run(bench.swap(BY_RESOURCE))
    assert bench.server.log == ["end shadow", "pause", "prepare 2", "keep 1"]
    assert bench.store.current("m") == 1


def test_a_gate_that_is_not_met_stops_the_new_process(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.rollout.gates.resident_bytes", lambda pid: 2 << 20)
    monkeypatch.setattr("service.rollout.gates.interface_of", lambda metadata: {})
    with pytest.raises(GateError, match=r"gates\.max_memory"):
        bench.run(bench.swap(SwapOptions("availability", gates=GatesConfig(max_memory=1 << 20))))
    assert bench.server.log == ["end shadow", "prepare 2", "stop 2"]


@pytest.mark.parametrize("policy", ["availability", "resource"])
def test_a_failure_before_the_commit_stops_the_new_process(bench: Bench, policy: str) -> None:
    with pytest.raises(StateError, match="disk full"):
        bench.run(bench.swap(SwapOptions(policy), fail_at="warmed"))
    assert bench.server.log[-2:] == (["prepare 2", "stop 2"] if policy == "availability" else ["stop 2", "keep 1"])
    assert bench.store.current("m") == 1
    assert bench.count("swaps_total", policy=policy) is None


def test_a_link_that_cannot_be_replaced_stops_the_new_process(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(model: str, number: int) -> None:
        raise StateError("read-only")

    monkeypatch.setattr(bench.store, "switch", fails)
    with pytest.raises(StateError, match="read-only"):
        bench.run(bench.swap(SwapOptions("availability")))
    assert bench.server.log == ["end shadow", "prepare 2", "stop 2"]


def test_a_failure_after_the_commit_retires_the_previous_generation_all_the_same(bench: Bench) -> None:
    with pytest.raises(StateError, match="disk full"):
        bench.run(bench.swap(SwapOptions("availability"), fail_at="live"))
    assert bench.server.log == ["end shadow", "prepare 2", "route 2", "retire 1"]
    assert bench.store.current("m") == 2
    assert bench.count("swap_duration_seconds_count") is None


def test_a_model_that_is_not_configured_has_no_server(bench: Bench) -> None:
    with pytest.raises(UsageError, match="no model 'other'; configured: m"):
        bench.swapper.server("other")
    bench.disk.close()
