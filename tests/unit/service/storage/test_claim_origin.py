"""The origin of a claimed file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.storage.claim_origin import Origin, read_origin, write_origin


@given(st.text(min_size=1), st.text(min_size=1), st.none() | st.text())
def test_an_origin_reads_what_it_writes_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, model: str, name: str, signature: str | None
) -> None:
    folder = tmp_path_factory.mktemp("claimed")
    write_origin(folder, Origin(model, name, signature))
    read = read_origin(folder)
    assert read is None or read == Origin(model, name, signature)
    assert read is not None or Path(name).name != name


@given(st.binary(max_size=200))
def test_any_other_file_is_no_origin(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("claimed")
    (folder / "origin.json").write_bytes(content)
    assert read_origin(folder) is None
