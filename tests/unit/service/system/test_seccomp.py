from __future__ import annotations

from pathlib import Path

import pytest

from service.system import seccomp
from tests.support.confined import in_child

pytestmark = pytest.mark.skipif(seccomp.why_not() is not None, reason=f"no seccomp here: {seccomp.why_not()}")
CODE = """
import threading
from service.system.seccomp import Denied, deny

folder = Path(sys.argv[1])
go, codes = threading.Event(), []
older = threading.Thread(target=lambda: (go.wait(), codes.append(attempt(os.mkdir, folder / "older"))))
older.start()
deny([
    Denied("mkdir"), Denied("mkdirat", code=errno.ENOSYS), Denied("no_such_call"), Denied("io_uring_setup"),
    Denied("kill", 0, value=os.getpid(), unless=True), Denied("openat", 2, 0o1003, 0o1000),
])
go.set()
older.join()
print(json.dumps({
    "mkdir": attempt(os.mkdir, folder / "a"), "older thread": codes[0], "open": attempt(os.open, folder, os.O_RDONLY),
    "empty": attempt(os.open, folder / "file", os.O_RDONLY | os.O_TRUNC),
    "write": attempt(os.open, folder / "file", os.O_WRONLY | os.O_TRUNC),
    "own signal": attempt(os.kill, os.getpid(), 0), "signal": attempt(os.kill, os.getppid(), 0),
}))
"""


def test_calls_are_refused_in_all_threads_by_their_arguments(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = in_child(CODE, tmp_path)
    assert {found.pop("mkdir"), found.pop("older thread")} <= {"EPERM", "ENOSYS"}  # some machines have mkdirat only
    assert found == {"open": "", "empty": "EPERM", "write": "", "own signal": "", "signal": "EPERM"}


def test_a_missing_library_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "_LIBRARY", "libnone.so.2")
    assert seccomp.why_not() == "libnone.so.2 is not installed"
    with pytest.raises(OSError, match=r"libnone\.so\.2"):
        seccomp.deny([])
