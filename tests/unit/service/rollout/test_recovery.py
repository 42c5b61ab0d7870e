"""Which generation serves where the current one cannot. Whole daemons: end_to_end/test_damage.py."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from edged.errors import GateError, StateError
from service.config.current import CurrentConfig
from service.config.load import CalibrationConfig, Config, ModelConfig
from service.journal.holds import Holds
from service.journal.repository import UpdateRepository
from service.journal.states import WAY, State
from service.journal.update import Update
from service.metrics.registry import Metrics
from service.reporting.files import Reports
from service.rollout.records import UpdateRecords
from service.rollout.recovery import Recovery
from service.rollout.rollback import Rollbacks
from service.rollout.swap import Swapper
from service.serving.generation import StartError, UnusableError
from service.serving.limits import NothingWholeError
from service.serving.model_server import ModelServer
from service.storage.generations import GenerationRepository
from service.storage.paths import Paths
from service.storage.state_folder import StateFolder
from service.system.disk_thread import Disk

BROKEN = StartError("generation 1 ended while it was starting")
UNUSABLE = UnusableError("its manifest has the unknown key 'future'")


class Server:
    """A server that notes why it was lost."""

    def __init__(self) -> None:
        self.name, self.live, self.wanted = "m", None, None
        self.switching = asyncio.Lock()
        self.lost: str | None = None

    def lose(self, why: str) -> None:
        self.lost = why


class Kept:
    """Keeps the files of some updates."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.again: list[str] = []

    async def is_kept(self, update: Update) -> bool:
        return update.file_name in self.files

    async def make_again(self, update: Update) -> None:
        self.again += self.files & {update.file_name}


class Device:
    """A state folder with generations of model m, and the parts that recover it."""

    def __init__(self, root: Path) -> None:
        Paths(root).make()
        self.folder = StateFolder.open(root)
        self.store, self.disk, self.server, self.kept = self.folder.store, Disk(), Server(), Kept()
        config = CurrentConfig(
            Config(state_dir=root, models=(ModelConfig(name="m", calibration=CalibrationConfig(dir=root)),))
        )
        self.metrics = Metrics(CollectorRegistry())
        updates = UpdateRepository(self.folder.journal, self.disk, self.store, config)
        self.records = UpdateRecords(updates, self.metrics, Reports(self.folder, self.disk))
        self.generations = GenerationRepository(self.store, self.disk)
        servers = cast(dict[str, ModelServer], {"m": self.server})
        swapper = Swapper(servers, self.generations, Holds(self.folder.journal, self.disk), self.metrics)
        self.rollbacks = Rollbacks(swapper, self.records, config)
        self.recovery = Recovery(swapper, self.rollbacks, self.records, self.kept)

    def publish(self, ends_in: State | None = State.COMMITTED, code: str | None = None) -> int:
        """Publish a generation, with an update that ends in a state; make it current if it is committed."""
        staged = self.folder.paths.staging / "made"
        staged.mkdir()
        (staged / "weights.safetensors").write_bytes(b"weights")
        weights = {"sha256": hashlib.sha256(b"weights").hexdigest(), "bytes": 7}
        (staged / "manifest.json").write_text(json.dumps({"weights": weights}))
        number = self.store.publish("m", staged)
        if ends_in is not None:
            journal = self.folder.journal
            update = journal.create("m", f"{number}.pt", 7)
            for state in WAY[1 : WAY.index(State.PUBLISHED)]:
                journal.advance(update.id, state, sha256="ab" * 32)
            journal.advance(update.id, State.PUBLISHED, generation=number)
            for state in (State.WARMED, State.LIVE, State.COMMITTED) if ends_in not in (State.REJECTED,) else ():
                journal.advance(update.id, state)
            if ends_in is not State.COMMITTED:
                journal.advance(update.id, ends_in, code=code)
        if ends_in in (State.COMMITTED, None):
            self.store.switch("m", number)
        return number

    def damage(self, number: int) -> None:
        (self.store.path("m", number) / "weights.safetensors").write_bytes(b"WEIGHTS")

    def update_of(self, number: int) -> Update:
        return next(update for update in self.folder.journal.history("m") if update.generation == number)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, {"model": "m", **labels})


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    device = Device(tmp_path)
    yield device
    device.disk.close()
    device.folder.journal.close()


def run(work: Awaitable[Any]) -> Any:
    async def main() -> Any:
        return await work

    return asyncio.run(main())


def test_a_model_that_is_whole_or_new_is_left_alone(device: Device) -> None:
    assert run(device.recovery.entry("m")) is None
    assert device.server.lost is None
    assert [device.publish(), device.publish()] == [1, 2]
    assert run(device.recovery.entry("m")) == 2
    assert run(device.recovery.replacement("m", 2, BROKEN)) is None  # no file is damaged: it is tried again
    assert (device.store.generations("m"), device.metric("edged_damaged_generations")) == ([1, 2], 0)


def test_damage_leads_to_the_newest_whole_generation_and_is_journaled(device: Device) -> None:
    for _ in range(4):
        device.publish()
    device.damage(4)
    device.damage(3)
    device.kept.files = {"3.pt", "4.pt"}
    assert run(device.recovery.replacement("m", 4, BROKEN)) == 2
    assert (device.store.current("m"), device.store.previous("m"), device.store.generations("m")) == (2, None, [1, 2])
    update = device.update_of(4)
    assert (update.state, update.code) == (State.ROLLED_BACK, "damaged")
    assert str(update.reason).startswith("generation 2 serves again: ")
    assert device.update_of(3).state is State.COMMITTED
    assert "damage" in device.folder.journal.events(device.update_of(3).id)[-1].detail
    assert "recovered" in device.folder.journal.events(device.update_of(2).id)[-1].detail
    assert device.kept.again == ["4.pt"]  # what was in service, and nothing else
    assert device.recovery.damaged["m"][4]["remedy"] == "it is made again from 4.pt, which is kept"
    assert device.recovery.damaged["m"][3]["remedy"] == "drop 3.pt (sha256 abababababab...) again to have it made again"
    assert str(device.recovery.problem("m", 2)).startswith("serves generation 2, because generation 4 is damaged: ")
    assert device.recovery.problem("m", 5) is None  # a newer one has gone live
    assert device.metric("edged_damaged_generations") == 2
    assert device.metric("edged_updates_total", result="rolled_back", reason="damaged") == 1


@pytest.mark.parametrize("died_at", ["_journal", "_newest_whole"])
def test_what_a_death_of_the_daemon_kept_from_being_journaled_is_journaled_at_the_start(
    device: Device, monkeypatch: pytest.MonkeyPatch, died_at: str
) -> None:
    for _ in range(3):
        device.publish()
    device.damage(3)
    device.damage(2)
    device.kept.files = {"2.pt", "3.pt"}

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(device.recovery, died_at, die)
        with pytest.raises(KeyboardInterrupt):
            run(device.recovery.replacement("m", 3, BROKEN))
    assert device.update_of(3).state is State.COMMITTED
    current = run(device.recovery.entry("m"))
    if died_at == "_newest_whole":  # nothing had happened yet
        assert current == 3
        assert device.update_of(3).state is State.COMMITTED
        assert run(device.recovery.replacement("m", 3, BROKEN)) == 1
    for _ in range(2):  # the second time, there is nothing to do
        assert run(device.recovery.entry("m")) == 1
        undone = device.update_of(3)
        assert (undone.state, undone.code) == (State.ROLLED_BACK, "damaged")
        assert str(undone.reason).startswith("generation 1 serves again: ")
        assert device.kept.again == ["3.pt"]
        assert device.metric("edged_updates_total", result="rolled_back", reason="damaged") == 1
    assert device.update_of(2).state is State.COMMITTED  # it was damaged too, but not in service


def test_what_failed_or_never_served_is_chosen_last_or_never(device: Device) -> None:
    good, unknown = device.publish(), device.publish(None)
    by_hand = device.publish(State.ROLLED_BACK, "rollback")
    in_probation = device.publish(State.ROLLED_BACK, "probation")
    rejected = device.publish(State.REJECTED, "gate")
    order = []
    for _ in range(4):
        (device.store.root / "m" / "current").unlink(missing_ok=True)
        order.append(number := run(device.recovery.entry("m")))
        device.damage(number)
        device.store.quarantine("m", number, {})
    assert order == [good, unknown, by_hand, in_probation]
    assert run(device.recovery.entry("m")) is None
    assert device.store.generations("m") == [rejected]
    assert "has no whole generation" in str(device.server.lost)


@pytest.mark.parametrize("error", [UNUSABLE, GateError("its outputs are not those that were evaluated")])
def test_a_whole_generation_that_cannot_serve_is_replaced_and_stays_on_the_disk(
    device: Device, error: GateError | UnusableError
) -> None:
    device.publish()
    assert run(device.recovery.replacement("m", 1, error)) is None  # there is no other one
    device.publish()
    assert run(device.recovery.replacement("m", 2, error)) == 1
    assert (device.store.current("m"), device.store.generations("m")) == (1, [1, 2])
    assert device.update_of(2).code == "unusable"
    assert run(device.recovery.replacement("m", 1, error)) is None  # both were tried


def test_where_nothing_is_whole_the_model_says_what_to_drop(device: Device) -> None:
    device.publish()
    device.damage(1)
    with pytest.raises(NothingWholeError, match=r"^has no whole generation: .*; drop 1\.pt \(sha256 ab"):
        run(device.recovery.replacement("m", 1, BROKEN))
    assert device.store.generations("m") == []
    assert run(device.recovery.entry("m")) is None  # nor after a restart
    assert "generation 1, which is missing" in str(device.server.lost)


def test_a_folder_that_cannot_be_written_does_not_keep_the_model_from_serving(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.publish()
    device.publish()
    device.damage(2)

    def full(*_: object, **__: object) -> None:
        raise StateError("cannot write current: no space left")

    monkeypatch.setattr(device.store, "restore", full)
    monkeypatch.setattr(device.store, "quarantine", full)
    monkeypatch.setattr(device.folder.journal, "advance", full)
    assert run(device.recovery.replacement("m", 2, BROKEN)) == 1
    device.damage(1)
    with pytest.raises(NothingWholeError):  # the link still names generation 2, which is known to be unfit
        run(device.recovery.replacement("m", 1, BROKEN))


def test_a_check_on_the_disk_reports_the_live_one_and_quarantines_the_previous(device: Device) -> None:
    device.publish()
    device.publish()
    run(device.recovery.note_scrubbed("m", 2, "a bit of its weights"))
    assert "from memory" in str(device.recovery.problem("m", 2))
    assert device.store.generations("m") == [1, 2]
    run(device.recovery.refresh())
    assert device.metric("edged_damaged_generations") == 1
    run(device.recovery.note_scrubbed("m", 2, None))  # somebody has put the file back
    assert (device.recovery.problem("m", 2), device.metric("edged_damaged_generations")) == (None, 0)
    run(device.recovery.note_scrubbed("m", 1, "a bit"))
    assert (device.store.generations("m"), device.generations.rollback_target("m")) == ([2], None)
    assert device.recovery.problem("m", 2) is None
    assert list(device.recovery.damaged["m"]) == [1]
    run(device.recovery.note_scrubbed("m", 1, "a bit"))  # it is gone from there
    run(device.recovery.note_scrubbed("of before a reload", 1, "a bit"))


def test_another_generation_that_went_live_meanwhile_is_the_one_to_start(device: Device) -> None:
    device.publish()
    device.publish()
    assert run(device.recovery.replacement("m", 1, BROKEN)) == 2


def test_a_rollback_that_a_crash_kept_from_being_journaled_is_journaled_at_the_start(device: Device) -> None:
    first, second = device.publish(), device.publish()
    run(device.rollbacks.reconcile("m"))
    assert device.update_of(second).state is State.COMMITTED
    device.store.switch("m", first)  # and then the daemon died
    for _ in range(2):  # the second time, there is nothing to do
        run(device.rollbacks.reconcile("m"))
        assert device.update_of(first).state is State.COMMITTED
        undone = device.update_of(second)
        assert (undone.state, undone.code) == (State.ROLLED_BACK, "rollback")
        assert undone.reason == "rolled back to generation 1; the daemon died before that was journaled"
    assert device.metric("edged_updates_total", result="rolled_back", reason="rollback") == 1
    device.store.switch("m", second)  # a rollback of the rollback, and the daemon dies again
    run(device.rollbacks.reconcile("m"))
    assert [device.update_of(number).state for number in (first, second)] == [State.COMMITTED] * 2
