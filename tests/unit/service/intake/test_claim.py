import errno
import hashlib
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import CheckpointError, SignatureError, StateError, TooLargeError
from edged.signing.statement import Statement
from edged.signing.verification import signature_of
from service.intake.claim import (
    ChecksumError,
    GoneError,
    MissingChecksumError,
    NotSettledError,
    UnreadableError,
    claim,
)
from service.intake.drop_folder import sidecar_of, write_sidecar
from service.journal.update import UpdateSignature
from service.trust.signatures import Signed

CONTENTS = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENTS).hexdigest()


@pytest.fixture
def root(tmp_path):
    return tmp_path / "claimed"


@pytest.fixture
def source(tmp_path):
    (tmp_path / "drop").mkdir()
    path = tmp_path / "drop" / "model.pt"
    path.write_bytes(CONTENTS)
    return path


def untouched(source, root):
    """The file is where it was, and nothing of it is left in claimed/."""
    return source.read_bytes() == CONTENTS and (not root.exists() or list(root.iterdir()) == [])


def test_a_file_moves_to_its_digest(source, root):
    journaled = []
    done = claim(source, root, journal=lambda *args: journaled.append((*args, source.exists())))
    assert (done.sha256, done.bytes) == (DIGEST, len(CONTENTS))
    assert done.path == root / DIGEST / "file"
    assert done.path.read_bytes() == CONTENTS
    assert not source.exists()
    assert [entry.name for entry in root.iterdir()] == [DIGEST]
    assert journaled == [(DIGEST, len(CONTENTS), True)]  # before the source was removed


def test_an_empty_file_is_claimed_too(source, root):
    source.write_bytes(b"")
    assert claim(source, root).sha256 == hashlib.sha256(b"").hexdigest()


def test_a_writer_that_still_holds_the_file_cannot_change_the_claim(source, root):
    with source.open("r+b") as writer:
        done = claim(source, root)
        writer.write(b"evil")
    assert done.path.read_bytes() == CONTENTS


def test_the_same_contents_again_give_the_same_place(source, root):
    first = claim(source, root)
    source.write_bytes(CONTENTS)
    assert claim(source, root) == first


@pytest.mark.parametrize("text", [f"{DIGEST}  model.pt\n", f"SHA256 (model.pt) = {DIGEST.upper()}\n", DIGEST])
def test_a_checksum_that_fits_goes_with_the_file(source, root, text):
    sidecar_of(source).write_text(text)
    claim(source, root)
    assert list(source.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0" * 64 + "  model.pt", f"the file has sha256 {DIGEST}, model.pt.sha256 says {'0' * 64}"),
        ("not a checksum", "holds no sha256; write it with sha256sum"),
        ("", "holds no sha256"),
        (DIGEST + "00", "holds no sha256"),
    ],
)
def test_a_checksum_that_does_not_fit_is_final_only_when_the_file_is_quiet(source, root, text, message):
    sidecar_of(source).write_text(text)
    with pytest.raises(NotSettledError, match=r"does not match model\.pt\.sha256 yet"):
        claim(source, root, quiet=False)
    with pytest.raises(ChecksumError, match=message) as caught:
        claim(source, root)
    assert (caught.value.code, caught.value.exit_code) == ("checksum", 3)
    assert untouched(source, root)


def test_a_file_without_the_checksum_that_is_required_is_refused_unread(source, root):
    with pytest.raises(MissingChecksumError, match=r"`sha256sum model\.pt > model\.pt\.sha256`") as caught:
        claim(source, root, require_checksum=True)
    assert (caught.value.code, caught.value.exit_code) == ("no_checksum", 3)
    assert untouched(source, root)
    write_sidecar(source, DIGEST)
    assert subprocess.run(["sha256sum", "-c", "model.pt.sha256"], cwd=source.parent, check=False).returncode == 0
    assert claim(source, root, require_checksum=True).sha256 == DIGEST


def signed(**values):
    """What a signature of the file says, as if it had been verified."""
    statement = Statement("m", 7, **{"sha256": DIGEST, "file_bytes": len(CONTENTS)} | values)
    return Signed("model.pt.sig", statement, UpdateSignature(7, "a.pub", "00", "{}"))


def test_a_signature_is_checked_before_the_file_is_copied(source, root):
    def refuse(path):
        assert path == source
        assert not root.exists()
        raise SignatureError("by no accepted key")

    with pytest.raises(SignatureError):
        claim(source, root, check_signature=refuse)
    with pytest.raises(NotSettledError, match="by no accepted key"):  # it may be in the middle of being written
        claim(source, root, check_signature=refuse, quiet=False)
    assert untouched(source, root)


@pytest.mark.parametrize("values", [{"sha256": "0" * 64}, {"file_bytes": 1}])
def test_a_signature_of_another_file_is_refused(source, root, values):
    with pytest.raises(ChecksumError, match=r"model\.pt\.sig is of (0000|1;)"):
        claim(source, root, check_signature=lambda _: signed(**values))
    with pytest.raises(NotSettledError, match=r"does not match model\.pt\.sig yet"):
        claim(source, root, check_signature=lambda _: signed(**values), quiet=False)
    assert untouched(source, root)


def test_a_signature_leaves_the_drop_folder_with_its_file(source, root):
    signature_of(source).write_text("{}")
    assert claim(source, root, check_signature=lambda _: signed()).sha256 == DIGEST
    assert list(source.parent.iterdir()) == []


def test_the_signature_of_the_next_file_stays(source, root):
    signature_of(source).write_text("{}")

    def replace_signature(sha256, size):
        source.with_name("next").write_text("{ }")
        source.with_name("next").rename(signature_of(source))

    claim(source, root, check_signature=lambda _: signed(), journal=replace_signature)
    assert signature_of(source).read_text() == "{ }"
    assert not source.exists()


@pytest.mark.parametrize(("code", "error"), [(errno.EACCES, SignatureError), (errno.EIO, UnreadableError)])
def test_a_signature_that_cannot_be_read_is_the_senders_fault_or_the_disks(source, root, code, error):
    def check(path):
        raise OSError(code, os.strerror(code))

    with pytest.raises(error, match=os.strerror(code)):
        claim(source, root, check_signature=check)
    assert untouched(source, root)


def test_a_checksum_that_vanishes_while_the_file_is_copied_is_missed(source, root, monkeypatch):
    write_sidecar(source, DIGEST)
    monkeypatch.setattr(os, "fsync", lambda descriptor: sidecar_of(source).unlink(missing_ok=True))
    with pytest.raises(MissingChecksumError):
        claim(source, root, require_checksum=True)
    assert source.exists()


def test_a_file_that_changes_while_it_is_copied_is_not_settled(source, root, monkeypatch):
    reads = []

    def read_and_write(descriptor, size, read=os.read):
        if not reads:
            with source.open("ab") as writer:
                writer.write(b"more")
        reads.append(read(descriptor, 512))
        return reads[-1]

    monkeypatch.setattr(os, "read", read_and_write)
    with pytest.raises(NotSettledError, match="changed while it was copied"):
        claim(source, root)
    assert source.exists()
    assert list(root.iterdir()) == []


def test_a_file_that_is_replaced_while_it_is_copied_is_not_settled(source, root, monkeypatch):
    other = source.with_name("other")
    other.write_bytes(CONTENTS)
    monkeypatch.setattr(os, "fsync", lambda descriptor: other.exists() and other.replace(source))
    with pytest.raises(NotSettledError):
        claim(source, root)
    assert untouched(source, root)


def test_a_file_dropped_under_the_same_name_meanwhile_stays(source, root):
    def drop_another(*_):
        source.unlink()
        source.write_bytes(b"the next")

    assert claim(source, root, journal=drop_another).sha256 == DIGEST
    assert source.read_bytes() == b"the next"


def test_what_is_gone_is_gone(source, root):
    source.unlink()
    with pytest.raises(GoneError, match=r"model\.pt is gone"):
        claim(source, root)


def test_too_large_is_journaled_without_reading(source, root):
    with pytest.raises(TooLargeError, match=r"model\.pt has 6\.8 KiB, watch\.max_bytes is 10 B"):
        claim(source, root, max_bytes=10)
    assert untouched(source, root)


def test_links_and_pipes_are_never_followed_and_never_waited_for(source, root):
    link, pipe = source.with_name("link"), source.with_name("pipe")
    link.symlink_to(source)
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match="link cannot be read"):
        claim(link, root)
    for path in (pipe, source.parent):
        with pytest.raises(CheckpointError, match="is no regular file"):
            claim(path, root)
    assert source.exists()


def test_a_place_that_cannot_be_written_is_a_state_error(source, root):
    root.write_text("a file where a folder should be")
    with pytest.raises(StateError, match="cannot write"):
        claim(source, root)
    assert source.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small filesystem needs root")
def test_a_full_disk_leaves_everything_as_it_was(source, root):
    root.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", root], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount: {mounted.stderr.decode()}")
    try:
        source.write_bytes(CONTENTS * 100)
        with pytest.raises(StateError, match="No space left on device; free space there"):
            claim(source, root)
        assert source.stat().st_size == len(CONTENTS) * 100
        assert list(root.iterdir()) == []
    finally:
        subprocess.run(["umount", root], check=True)


def test_a_crash_before_the_source_is_removed_is_repaired_by_claiming_again(source, root):
    script = f"""
import os, sys
from pathlib import Path
from service.intake.claim import claim
claim(Path({str(source)!r}), Path({str(root)!r}), journal=lambda *_: os._exit(9))
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == 9
    assert source.exists()
    assert claim(source, root).path.read_bytes() == CONTENTS
    assert not source.exists()


@given(st.binary(max_size=5000))
def test_any_sidecar_is_read_without_harm(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("any")
    source = folder / "model.pt"
    source.write_bytes(CONTENTS)
    sidecar_of(source).write_bytes(text)
    with pytest.raises(ChecksumError):
        claim(source, folder / "claimed")
