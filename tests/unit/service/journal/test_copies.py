"""The second copy of what the journal decides by."""

from __future__ import annotations

import contextlib
import json
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.errors import StateError
from service.journal.copies import Copies, DamagedCopyError, ModelCopy, decode, encode
from service.journal.states import ENDS, State
from service.journal.update import Hold, Update, UpdateSignature

TEXTS = st.none() | st.text(st.characters(min_codepoint=32, max_codepoint=126))
UPDATES = st.builds(
    Update,
    id=st.integers(1, 2**40),
    model=st.just("m"),
    state=st.sampled_from(sorted(ENDS)),
    file_name=st.text(string.ascii_letters, min_size=1),
    file_bytes=st.integers(0, 2**40),
    sha256=st.none() | st.text("0123456789abcdef", min_size=1, max_size=64),
    key=TEXTS,
    generation=st.none() | st.integers(1, 10**6),
    attempt=st.integers(0, 100),
    code=TEXTS,
    reason=TEXTS,
    dropped_at=st.floats(0, 4e9),
    updated_at=st.floats(0, 4e9),
    signature=st.none() | st.builds(UpdateSignature, st.integers(1, 99), st.text(), st.text(), st.text()),
)
COPIES = st.builds(
    ModelCopy,
    model=st.just("m"),
    hold=st.builds(Hold, st.booleans(), st.booleans(), st.none() | st.integers(1, 99)),
    last_update=st.integers(0, 2**40),
    updates=st.lists(UPDATES, max_size=4).map(tuple),
)
COPY = ModelCopy(
    "m",
    Hold(pinned=True),
    9,
    (Update(7, "m", State.REJECTED, "a.pt", 5, "ab", "ab:1", None, 1, "gate", "too bad", 1.0, 2.0),),
)


@given(COPIES)
def test_a_copy_reads_what_it_writes(copy: ModelCopy) -> None:
    assert decode(encode(copy)) == copy


@given(st.binary(max_size=300))
def test_anything_else_is_damaged(content: bytes) -> None:
    with pytest.raises(DamagedCopyError):
        decode(content)


@given(st.data())
@settings(max_examples=300)
def test_one_changed_byte_is_found(data: st.DataObject) -> None:
    content = bytearray(encode(COPY))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(DamagedCopyError):
        assert decode(bytes(content)) == COPY  # a blank of the first line, for example


@given(st.integers(0, len(encode(COPY)) - 1))
def test_a_copy_that_is_cut_off_is_found(length: int) -> None:
    with pytest.raises(DamagedCopyError):
        decode(encode(COPY)[:length])


def test_a_copy_of_another_format_says_so() -> None:
    head, body = encode(COPY).split(b"\n", 1)
    said = json.dumps({**json.loads(head), "format": 2}).encode()
    with pytest.raises(DamagedCopyError, match="it has format 2, not 1"):
        decode(said + b"\n" + body)


def test_copies_are_read_by_the_next_start(tmp_path: Path) -> None:
    folder = tmp_path / "copies"
    Copies(folder).write(COPY)
    assert list(Copies(folder).read()) == [COPY]
    assert [path.name for path in folder.iterdir()] == ["m.json"]
    assert list(Copies(tmp_path / "none").read()) == []


def test_a_damaged_copy_is_quarantined_and_the_others_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copies = Copies(tmp_path)
    copies.write(COPY)
    (tmp_path / "n.json").write_bytes(b"{}")
    (tmp_path / "other.json").write_bytes(encode(COPY))
    (tmp_path / "folder.json").mkdir()
    assert list(Copies(tmp_path).read()) == [COPY]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("folder.json.damaged", "m.json", "n.json.damaged", "other.json.damaged")
    ]
    assert "n.json, the second copy of the journal, is damaged: its checksum is not" in caplog.text
    assert "it is the copy of model 'm'" in caplog.text


def test_what_is_written_already_is_not_written_again(tmp_path: Path) -> None:
    copies = Copies(tmp_path)
    copies.write(COPY)
    before = copies.path("m").stat().st_ino
    copies.write(COPY)
    assert copies.path("m").stat().st_ino == before
    copies.path("m").unlink()
    copies.write(COPY)
    assert list(Copies(tmp_path).read()) == [COPY]


def test_what_is_in_the_place_of_a_copy_is_moved_aside(tmp_path: Path) -> None:
    folder = tmp_path / "copies"
    folder.write_bytes(b"a file")
    copies = Copies(folder)
    copies.write(COPY)
    copies.path("n").mkdir()
    copies.write(ModelCopy("n", Hold(), 0, ()))
    assert {copy.model for copy in Copies(folder).read()} == {"m", "n"}


def test_a_name_that_is_no_model_is_written_nowhere(tmp_path: Path) -> None:
    copies = Copies(tmp_path / "copies")
    copies.write(ModelCopy("../m", Hold(), 0, ()))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_state_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot write"):
        Copies(tmp_path / "none" / "copies").write(COPY)
