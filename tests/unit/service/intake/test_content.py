"""Whether a file is a checkpoint, and whether all of it is there, by a look at its headers and its end."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from service.intake import content, pickled_sizes
from service.intake.content import Inspection, inspect, inspect_signed, missing, recognize
from tests.support.signing import Signer

STATE = {
    "weight": torch.arange(40.0).reshape(8, 5),
    "half": torch.ones(3, dtype=torch.float16),
    "count": torch.tensor(7),
}
STATE_BYTES = 40 * 4 + 3 * 2 + 8
PARSERS = {
    function.__code__
    for function in (
        *(content.missing, content._safetensors_bytes, content._has_end, content._zip_bytes),
        *(pickled_sizes.legacy_bytes, pickled_sizes.storage_bytes),
    )
}


def as_zip() -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": STATE, "epoch": 3, "view": STATE["weight"][2:]}, buffer)
    return buffer.getvalue()


def as_legacy() -> bytes:
    buffer = io.BytesIO()
    state = {"state_dict": STATE, "epoch": 3, "view": STATE["weight"][2:]}
    torch.save(state, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def as_safetensors() -> bytes:
    return bytes(save(STATE))


WRITERS: list[Callable[[], bytes]] = [as_zip, as_legacy, as_safetensors]


@pytest.mark.parametrize("written", WRITERS)
def test_every_cut_is_seen_and_the_whole_file_is_whole(written: Callable[[], bytes]) -> None:
    data = written()
    assert missing(io.BytesIO(data), len(data)) is None
    for size in range(16, len(data), 7):
        assert missing(io.BytesIO(data[:size]), size) is not None, size


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (as_zip, f"its zip has no end: {{}} bytes are there, its tensors alone need {STATE_BYTES}"),
        (as_legacy, "{} bytes are there, its header promises {}"),
        (as_safetensors, "{} bytes are there, its header promises {}"),
    ],
)
def test_the_reason_has_what_is_there_and_what_is_promised(written: Callable[[], bytes], reason: str) -> None:
    data = written()
    size = len(data) - 4
    assert missing(io.BytesIO(data[:size]), size) == reason.format(size, len(data))


def test_a_file_of_another_format_misses_nothing() -> None:
    for data in (b"PK", b"epoch,loss\n1,0.5\n", b"\x89PNG\r\n\x1a\n" + bytes(100), b"\x80"):
        assert missing(io.BytesIO(data), len(data)) in (None, "its pickle has no end: 1 bytes are there")


def test_a_file_whose_first_bytes_have_not_come_is_not_there() -> None:
    assert missing(io.BytesIO(b""), 0) == "0 bytes are there"
    assert missing(io.BytesIO(bytes(5000)), 5000) == "5000 bytes are there, the first of them zeros"


def test_a_space_reserved_for_the_whole_file_is_not_the_file() -> None:
    data = as_zip()
    reserved = data[:-300] + bytes(300)
    assert "its zip has no end" in str(missing(io.BytesIO(reserved), len(reserved)))


def test_a_zip_with_a_comment_and_one_that_is_no_checkpoint() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("readme.txt", "PK\x05\x06" * 100)
        archive.comment = b"made by hand"
    data = buffer.getvalue()
    assert missing(io.BytesIO(data), len(data)) is None
    assert missing(io.BytesIO(data[:-5]), len(data) - 5) == f"its zip has no end: {len(data) - 5} bytes are there"


def test_a_header_that_is_too_large_is_left_to_the_worker() -> None:
    data = (1 << 40).to_bytes(8, "little") + b'{"a": 1}'
    assert missing(io.BytesIO(data), len(data)) is None


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(lambda data: b"\x80\x02" + data)))
def test_any_bytes_are_looked_at_without_an_error(data: bytes) -> None:
    reason = missing(io.BytesIO(data), len(data))
    assert reason is None or "bytes are there" in reason


@given(st.integers(0, 400), st.binary(min_size=1, max_size=20), st.sampled_from(WRITERS))
def test_a_damaged_header_is_looked_at_without_an_error(at: int, damage: bytes, written: Callable[[], bytes]) -> None:
    data = written()
    data = data[:at] + damage + data[at + len(damage) :]
    reason = missing(io.BytesIO(data), len(data))
    assert reason is None or "bytes are there" in reason


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.pt", b"plain text", True),  # its name says so: it is claimed, and rejected with the reason
        ("A.PTH.TAR", b"", True),
        ("weights", b"\x80\x02}.", True),
        ("epoch=3", b"PK\x03\x04" + bytes(30), True),
        ("README.txt", b"how to use", False),
        ("results.csv", b"epoch,loss", False),
        ("plot.png", b"\x89PNG\r\n\x1a\n", False),
        ("opt.yaml", b"lr: 0.1\n", False),
    ],
)
def test_a_checkpoint_is_known_by_its_name_or_by_its_first_bytes(
    tmp_path: Path, name: str, data: bytes, expected: bool
) -> None:
    (tmp_path / name).write_bytes(data)
    assert inspect(tmp_path / name).is_checkpoint is expected


def test_a_whole_file_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(as_zip())
    assert inspect(path) == Inspection(is_checkpoint=True)
    (tmp_path / "link.pt").symlink_to(path)
    with pytest.raises(OSError, match="symbolic link"):
        inspect(tmp_path / "link.pt")


def test_nothing_of_a_file_that_needs_a_signature_is_parsed(tmp_path: Path) -> None:
    """The control comes first: without keys, the same files are parsed."""
    (tmp_path / ".keys").mkdir()
    signer = Signer(tmp_path / ".keys", "key")
    for name, data in (("a.pt", as_zip()), ("b.pt", as_legacy()), ("c.safetensors", as_safetensors())):
        path = tmp_path / name
        path.write_bytes(data)
        assert parsers_called(inspect, path)
        assert parsers_called(inspect_signed, path) == set()
        assert inspect_signed(path) == Inspection(is_checkpoint=True)
        signer.write(path, "m", 1)
        path.write_bytes(data[:-1])
        assert parsers_called(inspect_signed, path) == set()
        expected = f"{len(data) - 1} bytes are there, {name}.sig promises {len(data)}"
        assert inspect_signed(path) == Inspection(is_checkpoint=True, missing=expected)


def parsers_called(look: Callable[[Path], Inspection], path: Path) -> set[str]:
    """Return the functions that read a file's format which are called during a look at it."""
    called = set()

    def see(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code in PARSERS:
            called.add(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        look(path)
    finally:
        sys.setprofile(before)
    return called


def test_a_file_is_recognized_without_following_a_link(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(as_safetensors())
    (tmp_path / "notes").write_bytes(b"how to use these weights")
    assert recognize(tmp_path / "weights")
    assert not recognize(tmp_path / "notes")
    (tmp_path / "link.pt").symlink_to("weights")
    with pytest.raises(OSError, match="symbolic"):
        recognize(tmp_path / "link.pt")
