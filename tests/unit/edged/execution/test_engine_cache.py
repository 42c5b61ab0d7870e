"""Compiled engines are found by all that makes them stale, and one that is damaged or lost costs only time."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from edged.execution.engine_cache import EngineCache, load_engine, model_digits, store_engine, this_processor

MODEL = "ab" * 32
FACTS = {"version": "1.0", "options": {"threads": 1}}


def test_a_stored_engine_is_found(tmp_path: Path) -> None:
    path = EngineCache(tmp_path / "engines" / "m", MODEL).path("openvino", FACTS)
    assert load_engine(path) is None
    store_engine(path, b"engine")
    assert load_engine(path) == b"engine"
    assert EngineCache(tmp_path / "engines" / "m", MODEL).path("openvino", dict(reversed(FACTS.items()))) == path
    assert path.name.startswith(f"{model_digits(MODEL)}-openvino-")
    assert list(path.parent.iterdir()) == [path]


def test_whatever_makes_an_engine_stale_changes_its_name(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, MODEL)
    paths = {
        cache.path("openvino", FACTS),
        cache.path("other", FACTS),
        cache.path("openvino", FACTS | {"version": "1.1"}),
        cache.path("openvino", FACTS | {"options": {"threads": 2}}),
        EngineCache(tmp_path, "ab" * 8 + "cd" * 24).path("openvino", FACTS),
        EngineCache(tmp_path, MODEL, processor="another one").path("openvino", FACTS),
    }
    assert len(paths) == 6


def test_a_damaged_engine_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "engine"
    store_engine(path, b"engine")
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:10], b"", whole[:-1] + b"x", b"x" + whole[1:]):
        path.write_bytes(damaged)
        assert load_engine(path) is None
        assert "is damaged; the model is compiled again" in caplog.messages[-1]
    store_engine(path, b"new")
    assert load_engine(path) == b"new"


def test_a_folder_that_cannot_be_written_or_read_costs_only_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "engines").write_bytes(b"no folder")
    store_engine(tmp_path / "engines" / "m" / "engine", b"engine")
    assert "the next start compiles the model again" in caplog.messages[-1]
    assert load_engine(tmp_path / "engines" / "m" / "engine") is None
    assert load_engine(tmp_path) is None  # a folder
    assert caplog.messages[-1].endswith("the model is compiled again")


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    store_engine(tmp_path / "engine", b"engine")
    assert "No space left on device; the next start compiles" in caplog.messages[-1]
    assert list(tmp_path.iterdir()) == []


def test_the_processor_is_named_with_its_instructions() -> None:
    assert this_processor() == this_processor()
    assert "flags: " in this_processor() or "Features: " in this_processor() or ";" not in this_processor()
    assert "MHz" not in this_processor()  # which changes all the time
