from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from edged.errors import SandboxError
from service.system import landlock, seccomp
from service.system.landlock import LIST, READ, Rule
from service.worker import sandbox
from service.worker.job import Job
from service.worker.sandbox import AUTO, FILES, OFF, PARTS, REQUIRE, available, images, interpreter, lacking, without
from tests.support.confined import in_child

ABI = landlock.abi()
CONFINED = pytest.mark.skipif(bool(lacking(available())), reason=f"no sandbox here: {lacking(available())}")
CODE = """
import socket, subprocess, threading
from service.worker.job import Job
from service.worker.sandbox import enter

version, root = int(sys.argv[1]), Path(sys.argv[2])
options = json.loads(sys.argv[3])
job = Job(root / "claimed", root / "work/artifact", root / "images", root / "cache", **options)
parts = enter(job, version)
(root / "work/a").mkdir()
(root / "work/a/file").write_text("x")
thread = threading.Thread(target=print, args=("", ), kwargs={"end": ""})
thread.start()
thread.join()
print(json.dumps({
    "lacking": [part.name for part in parts if part.lacking is not None], "temporary": os.environ["TMPDIR"],
    "input": attempt((root / "claimed").read_text), "image": attempt((root / "images/a.png").read_text),
    "empty": attempt(os.open, root / "claimed", os.O_RDONLY | os.O_TRUNC),
    "truncate": attempt(os.truncate, root / "claimed", 0),
    "rename": attempt((root / "work/a").rename, root / "work/b"), "cache": attempt((root / "cache/c").write_text, "x"),
    "link": attempt((root / "work/link").symlink_to, "/"), "outside": attempt((root / "outside").read_text),
    "write": attempt((root / "outside").write_text, ""), "signal": attempt(os.kill, os.getppid(), 0),
    "socket": attempt(socket.socket), "pair": attempt(socket.socketpair),
    "fork": attempt(lambda: os.fork() or os._exit(0)),
    "program": attempt(lambda: subprocess.run([sys.executable, "-c", ""], check=True)),
}))
"""


def confined(version: int, folder: Path, **options: Any) -> dict[str, Any]:
    """Let a process enter the sandbox with a version of Landlock, and return what it could do."""
    (folder / "images").mkdir()
    (folder / "work").mkdir()
    for name in ("claimed", "outside", "images/a.png"):
        (folder / name).write_text("x")
    found: dict[str, Any] = in_child(CODE, version, folder, json.dumps({"runtime": "onnxruntime", **options}))
    assert found.pop("temporary") == str(folder / "work/tmp")
    assert {found.pop(name) for name in ("input", "image", "rename", "cache")} == {""}
    return found


@CONFINED
@pytest.mark.parametrize("version", range(1, ABI + 1))
def test_the_sandbox_is_the_same_with_all_versions_of_landlock(version: int, tmp_path: Path) -> None:
    found = confined(version, tmp_path)
    assert found.pop("lacking") == []
    assert {found.pop(name) for name in ("outside", "write")} == {"EACCES"}
    assert set(found) == {"empty", "truncate", "link", "signal", "socket", "pair", "fork", "program"}
    assert set(found.values()) <= {"EPERM", "EACCES"}


@CONFINED
def test_without_landlock_the_rest_holds_and_what_is_lacking_is_said(tmp_path: Path) -> None:
    found = confined(0, tmp_path)
    assert FILES in found.pop("lacking")
    assert {found.pop(name) for name in ("outside", "write")} == {""}
    assert set(found.values()) == {"EPERM"}


def test_a_sandbox_that_is_required_must_be_whole(tmp_path: Path) -> None:
    job = Job(tmp_path, tmp_path / "out", tmp_path, tmp_path, sandbox=REQUIRE)
    with pytest.raises(SandboxError, match=r"is require, and this machine lacks files: the kernel has no Landlock"):
        sandbox.enter(job, 0)


def test_other_threads_would_be_outside(tmp_path: Path) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    with pytest.raises(SandboxError, match="threads"):
        sandbox.enter(Job(tmp_path, tmp_path / "out", tmp_path, tmp_path))
    stop.set()
    thread.join()


def test_off_is_off(tmp_path: Path) -> None:
    parts = sandbox.enter(Job(tmp_path, tmp_path / "out", tmp_path, tmp_path, sandbox=OFF))
    assert [part.name for part in parts if part.lacking == "worker.sandbox is off"] == list(PARTS)


def test_what_a_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "files: the kernel has no Landlock" in lacking(available(0))
    monkeypatch.setattr(seccomp, "why_not", lambda: "no library")
    assert lacking(available(6)) == "network: no library; processes: no library"
    assert lacking(sandbox.parts_of(AUTO, 6)) == lacking(available(6))


def rules(found: Iterable[Rule], folder: Path) -> dict[str, landlock.Access]:
    return {rule.path.relative_to(folder).as_posix(): rule.access for rule in found}


def test_what_is_private_is_left_out_of_a_folder(tmp_path: Path) -> None:
    for name in ("a/state/journal", "a/b", "c"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a/file").touch()
    (tmp_path / "a/link").symlink_to("state")
    private = [tmp_path / "a/state"]
    assert rules(without(private, tmp_path, READ), tmp_path) == {
        ".": LIST, "a": LIST, "a/b": READ, "a/file": READ, "c": READ,
    }  # fmt: skip
    assert rules(without(private, tmp_path / "c", READ), tmp_path) == {"c": READ}
    assert rules(without(private, tmp_path / "a/state", READ), tmp_path) == {}
    assert rules(without(private, tmp_path / "a/state/journal", READ), tmp_path) == {"a/state/journal": READ}


def test_images_are_followed_where_links_and_lists_lead(tmp_path: Path) -> None:
    for name in ("set/images", "set/labels", "far/images", "far/labels", "away"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("set/images/a.png", "far/images/b.png", "away/c.png", "away/c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "set/images/c.png").symlink_to(tmp_path / "away/c.png")
    (tmp_path / "set/labels/c.txt").symlink_to(tmp_path / "away/c.txt")
    (tmp_path / "set/images/more").symlink_to(tmp_path / "far/images")
    (tmp_path / "link").symlink_to("set/images")

    def readable(place: str) -> set[str]:
        return {path.relative_to(tmp_path).as_posix() for path in images(tmp_path / place)}

    links = {"set/images/c.png", "set/labels/c.txt"}
    assert readable("set/images") == {"set/images", "set/labels", "set/labels/more", "far/images", *links}
    assert {"link", "far/images", "link/c.png"} <= readable("link")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/far/images/b.png\n")
    assert readable("list.txt") == {"list.txt", "far/images", "far/labels"}
    (tmp_path / "set/data.yaml").write_text(f"train: {tmp_path}/far/images\nnames: [a]\n")
    assert readable("set/data.yaml") == {"set/data.yaml", "far/images", "far/labels"}
    assert readable("missing") == {"missing"}


def test_the_interpreter_is_readable() -> None:
    places = list(interpreter())
    for file in (pytest.__file__, json.__file__, sandbox.__file__):
        assert any(Path(file).resolve().is_relative_to(place) for place in places)
