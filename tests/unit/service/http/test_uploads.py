import asyncio
import hashlib

import pytest

from edged.errors import StateError, UsageError
from service.http.uploads import UploadError, receive


def send(folder, name, *pieces, max_bytes=100):
    async def stream():
        for piece in pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    return asyncio.run(receive(stream(), folder, name, max_bytes))


def test_the_file_appears_complete(tmp_path):
    told = send(tmp_path, "a b.pt", b"wei", b"", b"ghts")
    assert told == {"file_name": "a b.pt", "sha256": hashlib.sha256(b"weights").hexdigest(), "bytes": 7}
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a b.pt", b"weights")]


def test_the_checksum_that_is_required_comes_with_the_file(tmp_path):
    async def stream():
        yield b"weights"

    asyncio.run(receive(stream(), tmp_path, "a b.pt", 100, with_checksum=True))
    digest = hashlib.sha256(b"weights").hexdigest()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "a b.pt": b"weights",
        "a b.pt.sha256": f"{digest}  a b.pt\n".encode(),
    }


@pytest.mark.parametrize("name", ["", ".", "..", "../x.pt", "/etc/x.pt", "a\0b", "x" * 201, ".hidden", "a.part"])
def test_names_that_are_none(tmp_path, name):
    with pytest.raises(UsageError):
        send(tmp_path, name, b"weights")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pieces", [(), (b"",), (b"x" * 60, b"x" * 60)])
def test_bodies_that_are_none(tmp_path, pieces):
    with pytest.raises(UploadError, match=r"the body is empty|over watch\.max_bytes, 100 B"):
        send(tmp_path, "a.pt", *pieces)
    assert not list(tmp_path.iterdir())


def test_a_client_that_goes_away_leaves_nothing(tmp_path):
    with pytest.raises(EOFError):
        send(tmp_path, "a.pt", b"wei", EOFError())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_gone(tmp_path):
    with pytest.raises(StateError, match="No such file"):
        send(tmp_path / "none", "a.pt", b"x")


def test_a_signature_is_sent_before_its_file(tmp_path):
    assert send(tmp_path, "a.pt.sig", b"{}", max_bytes=1)["bytes"] == 2  # watch.max_bytes is for checkpoints
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.pt.sig", b"{}")]
    with pytest.raises(UploadError, match=r"over the limit of a signature, 64\.0 KiB"):
        send(tmp_path, "b.pt.sig", b" " * (64 << 10), b" ")
    for name in (".sig", ".hidden.sig", "a.part.sig"):
        with pytest.raises(UsageError):
            send(tmp_path, name, b"{}")
