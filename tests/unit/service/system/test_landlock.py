from __future__ import annotations

import socket
from pathlib import Path

import pytest

from service.system import landlock
from tests.support.confined import in_child

ABI = landlock.abi()
pytestmark = pytest.mark.skipif(ABI == 0, reason="the kernel has no Landlock")
CODE = """
import signal, socket
from service.system import landlock
from service.system.landlock import READ, WRITE, Rule

version, root = int(sys.argv[1]), Path(sys.argv[2])
rules = [Rule(root / "in", READ), Rule(root / "own", WRITE), Rule(root / "none", WRITE), Rule(Path("/usr"), READ),
         Rule(Path("/proc/self"), READ, pinned=True)]
pinned = landlock.restrict(rules, version)
(root / "own/folder").mkdir()
(root / "own/file").write_text("x")
print(json.dumps({
    "pinned": len(pinned), "status": attempt(Path("/proc/self/status").read_text),
    "other process": attempt(Path(f"/proc/{os.getppid()}/status").read_text),
    "read": attempt((root / "in/file").read_text), "write": attempt((root / "in/file").write_text, "x"),
    "outside": attempt((root / "file").read_text), "list": attempt(os.listdir, root),
    "link": attempt((root / "own/link").symlink_to, "/"), "pipe": attempt(os.mkfifo, root / "own/pipe"),
    "rename": attempt((root / "own/file").rename, root / "own/renamed"),
    "move": attempt((root / "own/renamed").rename, root / "own/folder/moved"),
    "truncate": attempt(os.truncate, root / "in/file", 0),
    "signal": attempt(os.kill, os.getppid(), 0), "own signal": attempt(os.kill, os.getpid(), 0),
    "connect": attempt(socket.socket().connect, ("127.0.0.1", int(sys.argv[3]))),
}))
"""


@pytest.mark.parametrize("version", range(1, ABI + 1))
def test_what_each_version_allows(version: int, tmp_path: Path) -> None:
    for name in ("in", "own"):
        (tmp_path / name).mkdir()
    for name in ("file", "in/file"):
        (tmp_path / name).write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = in_child(CODE, version, tmp_path, server.getsockname()[1])
    assert found.pop("pinned") == 1
    denied = {"other process", "write", "outside", "list", "link", "pipe"}
    assert {name: found.pop(name) for name in denied} == dict.fromkeys(denied, "EACCES")
    assert {name: found.pop(name) for name in ("read", "status", "rename", "own signal")} == {
        "read": "", "status": "", "rename": "", "own signal": "",
    }  # fmt: skip
    assert found == {
        "move": "" if version >= 2 else "EXDEV",
        "truncate": "EACCES" if version >= 3 else "",
        "signal": "EPERM" if version >= landlock.SCOPES_ABI else "",
        "connect": "EACCES" if version >= landlock.NETWORK_ABI else "",
    }


def test_no_place_gets_rights_that_make_other_things_than_files() -> None:
    odd = landlock.Access.MAKE_SYM | landlock.Access.MAKE_FIFO | landlock.Access.MAKE_SOCK | landlock.Access.EXECUTE
    assert not landlock.WRITE & (odd | landlock.Access.MAKE_CHAR | landlock.Access.MAKE_BLOCK)
