import os
import socket

import pytest

from service.notify import sd_notify, watchdog_interval_s


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
