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


def test_messages_reach_the_service_manager(manager):
    assert sd_notify("READY=1\nSTATUS=serving 2 models, naïvely")
    assert manager.recv(1000).decode() == "READY=1\nSTATUS=serving 2 models, naïvely"


@pytest.mark.parametrize("address", [None, "", "relative", "/no/such/socket"])
def test_without_a_service_manager_nothing_is_sent(address, monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not sd_notify("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "interval"),
    [("30000000", None, 15.0), ("30000000", "own", 15.0), ("30000000", "1", None), ("0", None, None),
     ("x", None, None), (None, None, None)],
)  # fmt: skip
def test_the_watchdog_interval_is_half_of_the_allowed_time(usec, pid, interval, monkeypatch):
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert watchdog_interval_s() == interval


def test_the_status_line_is_sent_only_when_it_changes_and_is_cut_off(manager):
    status = StatusLine()
    status.report("serving a")
    status.report("serving a")
    status.note = "config not reloaded:\nwrong"
    status.report("serving a")
    status.trouble = "no progress: disk"
    status.refresh()
    status.trouble = status.note = None
    status.report("x" * 1000)
    messages = [manager.recv(2000).decode() for _ in range(4)]
    assert messages[0] == "STATUS=serving a"
    assert messages[1] == "STATUS=config not reloaded: wrong; serving a"
    assert messages[2] == "STATUS=no progress: disk; config not reloaded: wrong; serving a"
    assert messages[3] == "STATUS=" + "x" * 300


def test_a_reload_is_reported_with_the_monotonic_time(manager):
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    reloading()
    first, _, second = manager.recv(1000).decode().partition("\n")
    assert first == "RELOADING=1"
    assert second.startswith("MONOTONIC_USEC=")
    assert before <= int(second.partition("=")[2]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_a_service_manager_that_does_not_read_stops_nobody(manager):
    sent = 0
    while sd_notify("WATCHDOG=1"):
        sent += 1
    assert sent > 0
    status = StatusLine()
    status.report("serving 2 models")  # is lost
    assert not sd_notify("READY=1")  # after a while
    assert [manager.recv(1000) for _ in range(sent)] == [b"WATCHDOG=1"] * sent
    status.report("serving 2 models")
    assert manager.recv(1000) == b"STATUS=serving 2 models"
