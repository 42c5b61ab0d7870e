from __future__ import annotations

import logging
from pathlib import Path

import pytest

from edged.artifacts.store import ModelStore
from edged.atomic import replace_symlink, temporary_sibling, write_atomic
from service.storage.leftovers import sweep, sweep_temporaries
from service.storage.paths import Paths

SHA = "0" * 64


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path / "state")
    paths.make()
    return paths


def all_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_what_was_being_written_is_removed_and_nothing_else(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write is interrupted right before its rename, as by a kill."""
    staged = paths.root / "artifact"
    staged.mkdir()
    (staged / "manifest.json").write_text("{}")
    store = ModelStore(paths.models)
    store.switch("m", store.publish("m", staged))
    for folder in (
        paths.claimed / SHA,
        paths.rejected / SHA,
        paths.superseded / SHA,
        paths.calibration("m") / "cache",
        paths.capture("m"),
    ):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    quarantined = store.quarantine_folder("m") / "2"
    (quarantined / ".artifact.0.tmp").mkdir(parents=True)  # quarantined twice
    (paths.root / "drop/m").mkdir(parents=True)
    (paths.root / "drop/m/.model.pt.tmp").touch()  # of who drops it
    whole = all_below(paths.root)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        for file in (
            *(paths.models / "m/last", store.path("m", 1) / "report.html", paths.rejected / SHA / "reason.json"),
            *(paths.superseded / SHA / "reason.json", paths.claimed / "claim", paths.capture("m") / "1.png"),
            quarantined / "damage.json",
        ):
            with pytest.raises(KeyboardInterrupt):
                write_atomic(file, b"new")
        with pytest.raises(KeyboardInterrupt):
            replace_symlink(paths.models / "m/current", "gen/2")
    for folder in (store.path("m", 2), paths.calibration("m") / "cache"):  # a removal, half a cache
        half = temporary_sibling(folder)
        half.mkdir()
        (half / "content").touch()
    (paths.staging / "7").mkdir()
    (paths.staging / "7" / "weights.safetensors").touch()
    monkeypatch.undo()
    assert len(all_below(paths.root) - whole) == 14
    sweep(paths)
    assert all_below(paths.root) == whole
    assert store.current("m") == 1


def test_a_folder_that_is_not_there_has_no_leftovers(tmp_path: Path) -> None:
    sweep_temporaries(tmp_path / "none")
    sweep(Paths(tmp_path / "none"))


def test_only_what_was_to_become_a_name_is_removed(tmp_path: Path) -> None:
    for name in (".1.0a1b2c3d.tmp", ".12.0a1b2c3d.tmp", "1"):
        (tmp_path / name).mkdir()
    sweep_temporaries(tmp_path, "1")
    assert all_below(tmp_path) == {".12.0a1b2c3d.tmp", "1"}


def test_what_cannot_be_removed_is_logged(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (".a.tmp", ".b.tmp"):
        (paths.claimed / name).touch()

    def refuse(path: Path, **_: bool) -> None:
        if path.name == ".a.tmp":
            raise OSError(30, "Read-only file system")
        path.rename(path.with_name("removed"))

    monkeypatch.setattr(Path, "unlink", refuse)
    with caplog.at_level(logging.WARNING):
        sweep(paths)
    assert caplog.messages == [f"cannot remove {paths.claimed}/.a.tmp, left behind by a crash: Read-only file system"]
    assert (paths.claimed / "removed").exists()
