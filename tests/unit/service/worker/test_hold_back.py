"""When a worker is kept off a core. The process is real, the time is the test's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from service.worker.hold_back import QUIET_S, HoldBack

CORES = frozenset(os.sched_getaffinity(0))
pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="on one core there is none to leave to requests")


class Device:
    """A device with one worker."""

    def __init__(self, pid: int) -> None:
        self.now = 100.0
        self.counted: list[tuple[str, float]] = []
        self.pid = pid
        self.hold_back = HoldBack(lambda *counted: self.counted.append(counted), lambda: self.now)

    @property
    def held(self) -> bool:
        cores = os.sched_getaffinity(self.pid)
        assert len(cores) in (len(CORES), len(CORES) - 1)
        return len(cores) < len(CORES)

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self.counted)

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.hold_back.check()


@pytest.fixture
def device() -> Iterator[Device]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield Device(child.pid)
        child.kill()


def test_from_the_first_request_until_silence(device: Device) -> None:
    with device.hold_back.of(device.pid, "m") as worker:
        assert not device.held
        device.hold_back.note_request()
        assert device.held
        device.passes(QUIET_S - 1)
        device.hold_back.note_request()
        device.passes(QUIET_S - 1)
        assert device.held
        device.passes(1)
        assert not device.held
        device.passes(100)
        assert worker.seconds == device.seconds == 2 * QUIET_S - 1
        assert {model for model, _ in device.counted} == {"m"}


def test_a_worker_that_starts_while_requests_arrive(device: Device) -> None:
    device.hold_back.note_request()
    device.now += 1
    with device.hold_back.of(device.pid, "m") as worker:
        assert device.held
        device.now += 1  # and it ends without another check
    assert worker.seconds == device.seconds == 1
    device.passes(1)
    assert device.seconds == 1


def test_all_cores_while_it_measures(device: Device) -> None:
    with device.hold_back.of(device.pid, "m") as worker:
        worker.measures(True)
        device.hold_back.note_request()
        assert not device.held
        device.passes(1)
        worker.measures(False)
        assert device.held
        worker.measures(True)
        assert not device.held
        device.passes(QUIET_S)
        worker.measures(False)
        assert not device.held
        assert worker.seconds == 0


def test_one_core_is_never_taken(device: Device) -> None:
    hold_back = HoldBack(cores=frozenset([min(CORES)]))
    with hold_back.of(device.pid, "m") as worker:
        hold_back.note_request()
        hold_back.check()
        assert not device.held
        assert worker.seconds == 0


def test_a_system_that_forbids_it(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    hold_back = HoldBack(cores=frozenset([1022, 1023]))
    with hold_back.of(device.pid, "m") as worker:
        hold_back.note_request()
        hold_back.check()
        assert worker.seconds == 0
    (record,) = caplog.records  # not one for each request
    assert "cannot keep the worker off a core while requests arrive: Invalid argument" in record.getMessage()
