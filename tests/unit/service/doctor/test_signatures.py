"""The check of the keys that may sign."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from service.config.load import Config, load_config
from service.doctor.signatures import check_signatures
from service.trust.verifier import verified_by
from tests.support.machines import machine, only
from tests.support.signing import Signer


def config(folder: Path, trust: str) -> Config:
    (folder / "images").mkdir()
    path = folder / "edged.yaml"
    path.write_text(f"state_dir: .\nmodels: [{{name: shelf, calibration: {{dir: images}}, trust: {trust}}}]\n")
    return load_config(path)


def test_without_keys_there_is_nothing_to_check(tmp_path: Path) -> None:
    assert list(check_signatures(machine(tmp_path), None)) == []
    assert list(check_signatures(machine(tmp_path), config(tmp_path, "{}"))) == []


def test_keys_are_listed_with_what_is_accepted(tmp_path: Path) -> None:
    old, new = Signer(tmp_path, "old"), Signer(tmp_path, "new")
    found = only(list(check_signatures(machine(tmp_path), config(tmp_path, "{keys: [old.pub, new.pub]}"))))
    assert (found.level, found.name) == ("ok", "signatures of shelf")
    assert found.detail == f"2 key(s): {old.key.shown}, {new.key.shown}; older versions are accepted"


def test_a_verifier_that_does_not_work_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Signer(tmp_path, "old")
    read = config(tmp_path, "{keys: [old.pub], refuse_downgrade: true}")
    assert "older versions are refused" in only(list(check_signatures(machine(tmp_path), read))).detail
    verified_by.cache_clear()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    found = only(list(check_signatures(machine(tmp_path), read)))
    assert (found.level, found.name, found.exit_code) == ("fail", "signatures", 1)
    assert "`pip install --force-reinstall cryptography`" in found.fix
