import hashlib

import pytest

from edged.errors import CheckpointError, NotReadyError, StateError, UnavailableError, UnsignedError, UsageError
from edged.signing.verification import signature_of
from service.cli.submit import EXIT_CODES, submit, wait
from service.client import DaemonClient
from service.journal.states import State
from tests.support.fake_daemon import fake_daemon

CONTENTS = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENTS).hexdigest()


@pytest.fixture
def daemon(tmp_path):
    (tmp_path / "drop" / "m").mkdir(parents=True)
    with fake_daemon(tmp_path / "s") as script:
        status = {"ready": True, "drop_dir": str(tmp_path / "drop"), "models": [{"name": "m"}, {"name": "n"}]}
        script.answer("GET /edged/v1/status", status)
        script.answer("GET /edged/v1/updates", {"updates": [{"id": 7}]})
        script.client = DaemonClient(str(tmp_path / "s"))
        yield script


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(CONTENTS)
    return path


def test_the_file_appears_complete_and_the_original_stays(daemon, checkpoint, tmp_path):
    told = submit(daemon.client, checkpoint, "m")
    assert told == {"model": "m", "file_name": "model.pt", "sha256": DIGEST, "bytes": len(CONTENTS), "after": 7}
    assert [path.name for path in (tmp_path / "drop" / "m").iterdir()] == ["model.pt"]
    assert (tmp_path / "drop" / "m" / "model.pt").read_bytes() == checkpoint.read_bytes() == CONTENTS


def test_the_checksum_comes_with_the_file_where_the_daemon_requires_it(daemon, checkpoint, tmp_path):
    status = {"drop_dir": str(tmp_path / "drop"), "models": [{"name": "m"}], "require_checksum": True}
    daemon.answer("GET /edged/v1/status", status)
    submit(daemon.client, checkpoint, "m")
    dropped = {path.name: path.read_bytes() for path in (tmp_path / "drop" / "m").iterdir()}
    assert dropped == {"model.pt": CONTENTS, "model.pt.sha256": f"{DIGEST}  model.pt\n".encode()}


def test_what_cannot_be_submitted(daemon, checkpoint, tmp_path):
    hidden = tmp_path / "model.pt.tmp"
    hidden.write_bytes(b"x")
    for path, model, message in (
        (tmp_path / "none", "m", "is no file"),
        (tmp_path, "m", "is no file"),
        (hidden, "m", "looks like an unfinished file"),
        (checkpoint, "x", "no model 'x'; configured: m, n"),
    ):
        with pytest.raises(UsageError, match=message):
            submit(daemon.client, path, model)
    notes = tmp_path / "notes.txt"
    notes.write_text("how to use")
    with pytest.raises(CheckpointError, match=r"notes.txt is no checkpoint, by its name and its first bytes"):
        submit(daemon.client, notes, "m")
    assert list((tmp_path / "drop" / "m").iterdir()) == []


def test_a_file_of_any_name_is_submitted_for_its_contents(daemon, tmp_path):
    weights = tmp_path / "weights"
    weights.write_bytes(b"\x80\x02}.")
    (tmp_path / "link").symlink_to(weights)
    for path in (weights, tmp_path / "link"):
        assert submit(daemon.client, path, "m")["bytes"] == 4


def test_a_drop_folder_that_is_elsewhere_is_told(daemon, checkpoint):
    with pytest.raises(UnavailableError, match="run this where the daemon runs"):
        submit(daemon.client, checkpoint, "n")


def test_a_drop_folder_that_cannot_be_written_is_told(daemon, checkpoint, tmp_path):
    (tmp_path / "drop" / "n").write_text("a file where a folder should be")
    with pytest.raises(StateError, match="cannot write"):
        submit(daemon.client, checkpoint, "n")


def update(identity, state, sha256=DIGEST, name="model.pt"):
    return {"id": identity, "state": state, "sha256": sha256, "file_name": name, "model": "m"}


def test_waiting_follows_the_update_of_this_submission(daemon, checkpoint):
    told = submit(daemon.client, checkpoint, "m")
    daemon.answer(
        "GET /edged/v1/updates",
        {"updates": [update(7, "COMMITTED")]},  # the same file, earlier
        {"updates": [update(9, "CLAIMED", sha256="00"), update(8, "SETTLED", sha256=None), update(7, "COMMITTED")]},
        {"updates": [update(9, "COMMITTED", sha256="00"), update(8, "QUANTIZED"), update(7, "COMMITTED")]},
        {"updates": [update(10, "REJECTED"), update(8, "COMMITTED"), update(7, "COMMITTED")]},
    )
    shown = []
    assert wait(daemon.client, told, None, lambda u: shown.append(u["state"]))["id"] == 8
    assert shown == ["SETTLED", "QUANTIZED", "COMMITTED"]


@pytest.mark.parametrize(("until_end", "end"), [(False, "DEFERRED"), (True, "COMMITTED")])
def test_waiting_can_go_on_while_an_update_is_put_off(daemon, checkpoint, until_end, end):
    told = submit(daemon.client, checkpoint, "m")
    daemon.answer(
        "GET /edged/v1/updates",
        {"updates": [update(8, "CLAIMED")]},
        {"updates": [update(8, "DEFERRED")]},
        {"updates": [update(8, "COMMITTED")]},
    )
    assert wait(daemon.client, told, None, lambda u: None, until_end=until_end)["state"] == end


def test_waiting_ends_when_the_time_is_over(daemon, checkpoint):
    told = submit(daemon.client, checkpoint, "m")
    with pytest.raises(NotReadyError, match=r"model\.pt is not claimed after 0\.01 s"):
        wait(daemon.client, told, 0.01, lambda u: None)


def test_every_end_has_its_exit_code():
    codes = {state.value: code for state, code in EXIT_CODES.items()}
    assert codes == {
        "COMMITTED": 0,
        "REJECTED": 3,
        "FAILED": 1,
        "SUPERSEDED": 1,
        "CANCELLED": 1,
        "ROLLED_BACK": 5,
        "DEFERRED": 75,
    }
    assert State.LIVE not in EXIT_CODES


def test_the_signature_comes_with_the_file(daemon, checkpoint, tmp_path):
    signature_of(checkpoint).write_bytes(b"{}")
    submit(daemon.client, checkpoint, "m")
    dropped = {path.name: path.read_bytes() for path in (tmp_path / "drop" / "m").iterdir()}
    assert dropped == {"model.pt": CONTENTS, "model.pt.sig": b"{}"}


def test_an_unsigned_file_is_not_copied_where_the_model_needs_a_signature(daemon, checkpoint, tmp_path):
    status = {"drop_dir": str(tmp_path / "drop"), "models": [{"name": "m", "signed": True}, {"name": "n"}]}
    daemon.answer("GET /edged/v1/status", status)
    with pytest.raises(UnsignedError, match=r"has no model\.pt\.sig next to it, and m has trust\.keys"):
        submit(daemon.client, checkpoint, "m")
    assert list((tmp_path / "drop" / "m").iterdir()) == []
    signature_of(checkpoint).symlink_to("elsewhere")
    with pytest.raises(UsageError, match=r"model\.pt\.sig cannot be read"):
        submit(daemon.client, checkpoint, "m")
