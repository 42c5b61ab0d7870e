from __future__ import annotations

from pathlib import Path

import pytest

from service.config.load import load_config
from service.doctor import sandbox
from service.doctor.check import Check
from service.doctor.sandbox import check_sandbox
from service.worker.sandbox import available, lacking
from tests.support.machines import machine


def found(folder: Path, setting: str | None = None) -> list[Check]:
    config = None
    if setting is not None:
        (folder / "images").mkdir()
        path = folder / "edged.yaml"
        path.write_text(f"models: [{{name: m, calibration: {{dir: images}}}}]\nworker: {{sandbox: {setting}}}\n")
        config = load_config(path)
    return list(check_sandbox(machine(folder), config))


@pytest.mark.skipif(bool(lacking(available())), reason=f"no sandbox here: {lacking(available())}")
@pytest.mark.parametrize("setting", [None, "require"])
def test_a_process_tries_it(tmp_path: Path, setting: str | None) -> None:
    (check,) = found(tmp_path, setting)
    assert (check.name, check.level) == ("worker sandbox", "ok")
    assert check.detail == "privileges, files, network, processes: all hold"


def test_one_that_is_off_is_told(tmp_path: Path) -> None:
    (check,) = found(tmp_path, "off")
    assert (check.level, check.fix) == ("warn", "set worker.sandbox: auto")


def test_each_part_that_is_lacking_has_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"privileges": None, "files": "the kernel has no Landlock", "network": None, "processes": "no library"}
    monkeypatch.setattr(sandbox, "probe", lambda *_: parts)
    files, processes = found(tmp_path)
    assert files.detail == "files not confined: the kernel has no Landlock; privileges, network hold"
    assert "CONFIG_SECURITY_LANDLOCK" in files.fix
    assert "libseccomp2" in processes.fix


def test_a_probe_that_fails_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "probe", lambda *_: "it exited without output")
    (check,) = found(tmp_path)
    assert (check.level, check.detail) == ("warn", "cannot be entered: it exited without output")
