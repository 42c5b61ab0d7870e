import os
import socket
import time

import pytest

from service.system.systemd import StatusLine, reloading, sd_notify, watchdog_interval_s


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path, monkeypatch):
    """A socket like systemd's, in the file system or in the abstract namespace."""
    name = str(tmp_path / "notify") if request.param == "path" else f"\0edged-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name)
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name.replace("\0", "@"))
        yield receiver


def test_the_service_manager_is_told(manager):
    assert sd_notify("READY=1\nSTATUS=serving 2 models, naïvely")
    assert manager.recv(1000).decode() == "READY=1\nSTATUS=serving 2 models, naïvely"


@pytest.mark.parametrize("address", [None, "", "relative", "/no/such/socket"])
def test_without_one_nothing_happens(address, monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not sd_notify("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "interval"),
    [("30000000", None, 15.0), ("30000000", "own", 15.0), ("30000000", "1", None), ("0", None, None),
     ("x", None, None), (None, None, None)],
)  # fmt: skip
def test_the_watchdog_is_fed_at_half_its_time(usec, pid, interval, monkeypatch):
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert watchdog_interval_s() == interval


def test_the_status_is_sent_when_it_changes_in_one_line_that_is_not_too_long(manager):
    status = StatusLine()
    status.tell("serving a")
    status.tell("serving a")
    status.note = "config not reloaded:\nwrong"
    status.tell("serving a")
    status.trouble = "no progress: disk"
    status.refresh()
    status.trouble = status.note = None
    status.tell("x" * 1000)
    told = [manager.recv(2000).decode() for _ in range(4)]
    assert told[0] == "STATUS=serving a"
    assert told[1] == "STATUS=config not reloaded: wrong; serving a"
    assert told[2] == "STATUS=no progress: disk; config not reloaded: wrong; serving a"
    assert told[3] == "STATUS=" + "x" * 300


def test_a_reload_is_told_with_the_time_of_the_monotonic_clock(manager):
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    reloading()
    first, _, second = manager.recv(1000).decode().partition("\n")
    assert first == "RELOADING=1"
    assert second.startswith("MONOTONIC_USEC=")
    assert before <= int(second.partition("=")[2]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
