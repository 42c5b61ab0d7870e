"""Updates on a device whose temperature the test sets."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.config.load import load_config
from service.journal.states import WAY, State
from service.journal.update import Update
from service.metrics.registry import Metrics
from service.outcomes import Failure, Outcome, Stopped
from service.storage.paths import Paths
from service.storage.state_folder import StateFolder
from service.system.device_state import DeviceState
from service.system.disk_thread import Disk
from service.updates.queue import UpdateQueue
from tests.support.updates import runner_of

TIMEOUT_S = 60


class Device:
    """A device of the test, with one claimed update of a file that is not a checkpoint."""

    def __init__(self, folder: Path, worker: str) -> None:
        (folder / "images").mkdir()
        config = folder / "edged.yaml"
        config.write_text(f"state_dir: state\nmodels: [{{name: m, calibration: {{dir: images}}}}]\nworker: {worker}\n")
        paths = Paths(folder / "state")
        paths.make()
        self.zone = folder / "root/sys/class/thermal/thermal_zone0"
        self.zone.mkdir(parents=True)
        self.folder, self.disk = StateFolder.open(paths.root), Disk()
        self.journal = self.folder.journal
        self.metrics = Metrics(CollectorRegistry())
        device = DeviceState(folder / "root")
        self.runner = runner_of(load_config(config), self.folder, self.disk, self.metrics, device)
        self.update = self._claim(b"no checkpoint")

    def heat(self, degrees: float) -> None:
        (self.zone / "temp").write_text(f"{degrees * 1000:.0f}\n")

    def now(self) -> Update:
        found = self.journal.get(self.update.id)
        assert found is not None
        return found

    def states(self) -> list[State]:
        return [event.state for event in self.journal.events(self.update.id)]

    async def until(self, state: State) -> None:
        while self.now().state is not state:
            await asyncio.sleep(0.01)

    def read_only(self, on: bool) -> None:
        self.journal._db.execute(f"PRAGMA query_only = {int(on)}")

    def _claim(self, data: bytes) -> Update:
        update = self.journal.create("m", "a.pt", len(data))
        self.journal.advance(update.id, State.SETTLED)
        update = self.journal.advance(update.id, State.CLAIMED, sha256="ab" * 32, key="ab:1")
        file = self.folder.claimed_file(update)
        file.parent.mkdir()
        file.write_bytes(data)
        return update


async def full_disk(_: Update) -> Outcome:
    """An attempt that ends as on a full disk."""
    return Stopped(Failure("state", "no room"))


def waits_for(device: Device) -> set[str]:
    """The reasons that the gauge has at 1."""
    (family,) = device.metrics.updates_postponed.collect()
    assert {sample.labels["model"] for sample in family.samples} == {"m"}
    return {sample.labels["reason"] for sample in family.samples if sample.value}


def run(device: Device, test: Callable[[Device, UpdateQueue], Awaitable[None]]) -> None:
    async def main() -> None:
        queue = UpdateQueue(device.runner)
        device.runner.found_fit = queue.found_fit
        try:
            queue.offer(device.update)
            await asyncio.wait_for(test(device, queue), TIMEOUT_S)
        finally:
            await queue.close()
            device.journal.close()
            device.disk.close()

    asyncio.run(main())


def test_an_update_waits_while_the_device_is_hot_and_then_goes_on(tmp_path: Path) -> None:
    async def test(device: Device, _: UpdateQueue) -> None:
        await device.until(State.DEFERRED)
        update = device.now()
        assert (update.code, update.attempt) == ("temperature", 0)
        assert update.reason == "the device has 91.5 °C; worker.defer_above_c is 80"
        assert device.runner.postponed.keys() == {update.id}
        assert waits_for(device) == {"temperature"}
        while update.id not in device.runner.retry_at:  # it is set as soon as the journal has it
            await asyncio.sleep(0.01)
        first = device.runner.retry_at[update.id]
        while device.runner.retry_at.get(update.id, first) == first:  # it looks again
            await asyncio.sleep(0.01)
        assert device.states()[-2:] == [State.CLAIMED, State.DEFERRED]
        device.heat(80.0)
        await device.until(State.REJECTED)  # by a real worker, which found out what the file is
        assert (device.now().code, device.now().attempt) == ("checkpoint", 1)
        assert (device.runner.postponed, device.runner.retry_at) == ({}, {})
        assert waits_for(device) == set()
        value = device.metrics.registry.get_sample_value
        assert value("edged_updates_deferred_total", {"model": "m", "reason": "temperature"}) == 1

    device = Device(tmp_path, "{defer_above_c: 80, recheck_s: 0.02, nice: 0}")
    device.heat(91.5)
    run(device, test)


def test_another_reason_is_journaled_without_another_attempt(tmp_path: Path) -> None:
    async def test(device: Device, queue: UpdateQueue) -> None:
        await device.until(State.DEFERRED)
        assert device.now().code == "temperature"
        device.heat(20.0)
        mains = tmp_path / "root/sys/class/power_supply/BAT0"
        mains.mkdir(parents=True)
        (mains / "status").write_text("Discharging\n")
        (mains / "type").write_text("Battery\n")
        queue.recheck()
        while device.now().code != "battery":
            await asyncio.sleep(0.01)
        assert waits_for(device) == {"battery"}
        assert (device.now().state, device.now().attempt) == (State.DEFERRED, 0)
        assert device.states()[-2:] == [State.CLAIMED, State.DEFERRED]

    device = Device(tmp_path, "{defer_above_c: 80, defer_on_battery: true, recheck_s: 3600}")
    device.heat(80.1)
    run(device, test)


@pytest.mark.parametrize(("state", "again"), [(State.LIVE, True), (State.COMMITTED, False)])
def test_a_failure_after_the_switch_takes_nothing_out_of_service(
    tmp_path: Path, state: State, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Say the disk fills up in probation: from LIVE there is no way to DEFERRED, and the file is no bad one."""
    device = Device(tmp_path, "{tries: 1}")
    way = list(State)[list(State).index(State.VERIFIED) : list(State).index(state) + 1]
    for step in way:
        device.journal.advance(device.update.id, step, generation=1)

    monkeypatch.setattr(device.runner, "_attempt", full_disk)

    async def main() -> None:
        delay_s = await device.runner.drive(device.update)
        assert (delay_s is not None) == again
        await device.runner.fail(device.update, "a fault of the daemon")

    asyncio.run(main())
    assert device.now().state is state
    assert not list(device.folder.paths.rejected.iterdir())
    device.journal.close()
    device.disk.close()


def test_a_full_disk_uses_up_no_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(tmp_path, "{tries: 2, retry_s: 1}")

    monkeypatch.setattr(device.runner, "_attempt", full_disk)

    async def main() -> None:
        delays = [await device.runner.drive(device.update) for _ in range(20)]
        assert delays == [1.0, *[2.0] * 19]

    asyncio.run(main())
    assert (device.now().state, device.now().code, device.now().reason) == (State.DEFERRED, "state", "no room")
    assert device.now().attempt <= 2
    device.journal.close()
    device.disk.close()


def test_neither_interruptions_nor_stops_are_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(tmp_path, "{tries: 2, retry_s: 0.001}")

    async def fails(_: Update) -> Outcome:
        return Stopped(Failure("crash", "the worker died"))

    async def main() -> None:
        for _ in range(20):  # orderly stops
            device.journal.forgive({device.update.id})
            device.journal.resume(device.update.id)
        assert device.now().attempt == 1
        for _ in range(9):  # kills
            device.journal.resume(device.update.id)
        monkeypatch.setattr(device.runner, "_attempt", fails)
        assert await device.runner.drive(device.now()) is not None
        assert device.now().state is State.DEFERRED
        assert await device.runner.drive(device.now()) is None
        assert device.now().state is State.FAILED
        assert device.now().reason == "the worker died (tried 2 times)"

    asyncio.run(main())


def test_an_update_in_the_middle_of_which_the_device_dies_over_and_over_ends(tmp_path: Path) -> None:
    device = Device(tmp_path, "{tries: 3}")
    for _ in range(11):
        device.journal.resume(device.update.id)
    assert asyncio.run(device.runner.drive(device.now())) is None
    assert (device.now().state, device.now().code) == (State.FAILED, "interrupted")
    assert device.now().reason == "the daemon or the device died 11 times in the middle of it"


@pytest.mark.parametrize("reached", [State.CLAIMED, State.VERIFIED, State.EVALUATED])
def test_an_update_whose_end_cannot_be_journaled_shows_why_it_waits_and_goes_on_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reached: State
) -> None:
    device = Device(tmp_path, "{tries: 2, retry_s: 0.001}")
    begun: list[tuple[State, int]] = []

    async def fills_the_disk(update: Update) -> Outcome:
        begun.append((update.state, update.attempt))
        for state in WAY[WAY.index(State.VERIFIED) : WAY.index(reached) + 1]:
            device.journal.advance(update.id, state)
        device.read_only(True)
        return await full_disk(update)

    async def main() -> None:
        monkeypatch.setattr(device.runner, "_attempt", fills_the_disk)
        for _ in range(3):  # more often than worker.tries
            assert await device.runner.drive(device.update) == 10.0
            shown = device.runner.as_known(device.now())
            assert (device.now().state, shown.state, shown.code) == (reached, State.DEFERRED, "state")
            assert "readonly" in (shown.reason or "")
            assert device.update.id in device.runner.retry_at
            assert await device.runner.drive(device.update) == 10.0  # the journal cannot be written yet
            device.read_only(False)
        monkeypatch.setattr(device.runner, "_attempt", full_disk)
        assert await device.runner.drive(device.update) is not None

    asyncio.run(main())
    assert begun == [(State.CLAIMED, 1)] * 3
    assert device.runner.unjournaled == {}
    reasons = [event.detail.get("reason", "") for event in device.journal.events(device.update.id)]
    assert sum("readonly" in reason for reason in reasons) == 3
    assert device.now().reason == "no room"
    device.journal.close()
    device.disk.close()


def test_a_live_update_that_cannot_be_journaled_stays_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(tmp_path, "{tries: 1}")
    for step in WAY[WAY.index(State.VERIFIED) : WAY.index(State.LIVE) + 1]:
        device.journal.advance(device.update.id, step, generation=1)

    async def cannot_commit(update: Update) -> Outcome:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    async def main() -> None:
        monkeypatch.setattr(device.runner, "_attempt", cannot_commit)
        assert await device.runner.drive(device.update) == 10.0
        shown = device.runner.as_known(device.now())
        assert (shown.state, shown.code) == (State.LIVE, "state")
        assert "quota" in (shown.reason or "")
        assert await device.runner.drive(device.update) == 10.0

    asyncio.run(main())
    assert device.now().state is State.LIVE
    assert "quota" in device.journal.events(device.update.id)[-1].detail["reason"]
    device.journal.close()
    device.disk.close()
