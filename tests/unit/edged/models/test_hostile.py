"""Files that are built to harm: no code runs, one line says why, and memory and work stay in bounds.

What each module rejects has its test with that module; these are whole files, of all formats. tests/faults reads a
thousand of them under an audit hook.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz.odd_values import changed, changes
from benchmarks.hostile.containers import HEADERS, LEGACY_LIES
from benchmarks.hostile.mutations import damaged
from benchmarks.hostile.pickles import BOMBS, GADGETS, GEOMETRIES
from benchmarks.hostile.spelling import MAKERS, PROTO, as_legacy, as_zip, safetensors, state_dict, tensor, text
from edged.errors import RejectedError
from edged.models.inspection import inspect_checkpoint
from tests.support.refusals import refused


@pytest.mark.parametrize("form", MAKERS)
def test_the_spelling_of_these_tests_is_torchs(form: str, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(MAKERS[form](state_dict(("w", tensor(0, (2, 2), (2, 1)))), 4))
    if form == "zip":  # torch's own legacy files have a sixth entry in each storage
        assert torch.load(tmp_path / "m.pt", weights_only=True)["w"].shape == (2, 2)
    with pytest.raises(RejectedError, match="fit no supported network"):
        inspect_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize("form", MAKERS)
@pytest.mark.parametrize("kind", GEOMETRIES)
def test_impossible_tensors_are_rejected(kind: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(MAKERS[form](state_dict(("conv1.weight", GEOMETRIES[kind])), 4))
    refused(path)


@pytest.mark.parametrize("form", MAKERS)
def test_functions_that_run_code_are_rejected_by_name(form: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    for gadget in GADGETS:
        module, _, name = gadget.rpartition(".")
        call = f"c{module}\n{name}\n".encode() + b"(" + text("touch x") + b"tR"
        for content in (PROTO + call + b".", state_dict(("w", tensor(0, (1,), (1,))), ("note", call))):
            path.write_bytes(MAKERS[form](content, 4))
            assert f"it names {gadget[:60]!r}"[:60] in refused(path), gadget


@pytest.mark.parametrize("form", MAKERS)
@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_rejected(kind: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(MAKERS[form](BOMBS[kind], 4))
    with pytest.raises(RejectedError) as caught:
        inspect_checkpoint(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("protocol", [0, 1])
def test_old_protocols_are_rejected(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    for content in (pickle.dumps({"w": [1.5]}, protocol), as_zip(pickle.dumps({"w": [1.5]}, protocol))):
        path.write_bytes(content)
        assert "protocol 0 or 1" in refused(path)


@pytest.mark.parametrize("kind", LEGACY_LIES)
def test_wrong_sizes_in_legacy_files_are_rejected(kind: str, tmp_path: Path) -> None:
    head = as_legacy(state_dict(("w", tensor(0, (4,), (1,)))), 0)[:-8]
    (tmp_path / "m.pt").write_bytes(head + LEGACY_LIES[kind])
    refused(tmp_path / "m.pt")


@pytest.mark.parametrize("kind", HEADERS)
def test_safetensors_that_cannot_be_are_rejected(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors(HEADERS[kind]))
    with pytest.raises(RejectedError) as caught:
        inspect_checkpoint(path)
    assert str(caught.value).isprintable()


def test_zip_bombs_are_rejected(tmp_path: Path) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", state_dict(("w", tensor(0, (4,), (1,)))))
        archive.writestr("m/data/0", bytes(64 << 20))
    path = tmp_path / "m.pt"
    path.write_bytes(bomb.getvalue())
    assert "compressed or encrypted" in refused(path)


def test_a_zip_with_a_name_twice_is_rejected(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/data.pkl", state_dict(("w", tensor(0, (4,), (1,)))))
        archive.writestr("m/data/0", bytes(16))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("m/data/0", bytes(16))
    path = tmp_path / "m.pt"
    path.write_bytes(file.getvalue())
    assert "occurs twice" in refused(path)


def harmless(path: Path, content: bytes) -> None:
    """Read a file; only a rejection of one line may say no."""
    path.write_bytes(content)
    reason = ""
    try:
        inspect_checkpoint(path)
    except RejectedError as error:
        reason = str(error)
    assert reason.isprintable()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=changes())
def test_any_header_of_a_safetensors_is_harmless(tmp_path: Path, steps: list[tuple[float, object]]) -> None:
    entries = {
        name: {"dtype": "F32", "shape": [2, 2], "data_offsets": [16 * k, 16 * k + 16]} for k, name in enumerate("ab")
    }
    header = changed({"__metadata__": {"format": "pt"}, **entries}, steps)
    harmless(tmp_path / "m.safetensors", safetensors(json.dumps(header).encode(errors="replace"), bytes(32)))


@pytest.mark.parametrize("form", MAKERS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32))
def test_any_damage_of_a_pickle_behind_valid_checksums_is_harmless(tmp_path: Path, form: str, seed: int) -> None:
    good = state_dict(("conv1.weight", tensor(0, (2, 2), (2, 1))), ("bn1.weight", tensor(0, (4,), (1,))))
    harmless(tmp_path / "m.pt", MAKERS[form](damaged(good, random.Random(seed)), 4))
