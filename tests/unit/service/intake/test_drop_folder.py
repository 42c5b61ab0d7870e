import os
import socket

import pytest

from service.intake.drop_folder import DropFolder, is_ignored, sidecar_of


@pytest.mark.parametrize(
    "name",
    [
        ".hidden",
        ".~tmp~",
        ".syncthing.model.pt.tmp",
        "~syncthing~model.pt.tmp",
        ".model.pt.Ab3dEf",
        "model.pt.part",
        "model.pt.PART",
        "model.pt.tmp",
        "Unconfirmed 1.crdownload",
        "model.pt.filepart",
        ".model.pt.swp",
        "model.pt.swp",
        "model.pt~",
        "model.pt.sha256",
        "model.pt.rejected",
    ],
)
def test_unfinished_files_of_others_are_ignored(name):
    assert is_ignored(name)


@pytest.mark.parametrize("name", ["model.pt", "model", "part.pt", "tmp", "a.tmp.pth", "model (1).pth", "模型.pt"])
def test_everything_else_is_looked_at(name):
    assert not is_ignored(name)


@pytest.fixture
def folder(tmp_path):
    made = DropFolder(tmp_path, ["m", "n"], max_bytes=100)
    made.make()
    return made


def write(path, size=10, mtime=None):
    path.write_bytes(b"x" * size)
    if mtime is not None:
        os.utime(path, (mtime, mtime))
    return path


def test_files_belong_to_the_model_of_their_folder(folder):
    late, early = write(folder.root / "m" / "a.pt", mtime=20), write(folder.root / "n" / "b.pt", mtime=10)
    sidecar_of(late).write_text("")
    scan = folder.scan()
    assert [(c.model, c.path, c.sidecar) for c in scan.candidates] == [("n", early, False), ("m", late, True)]
    assert (scan.refusals, scan.missing) == ([], [])
    assert scan.candidates[0].fingerprint.size == 10


def test_a_file_beside_the_folders_belongs_to_the_only_model(folder):
    path = write(folder.root / "a.pt")
    [refusal] = folder.scan().refusals
    assert (refusal.model, refusal.path, refusal.code) == ("", path, "no_model")
    assert refusal.reason == "drop it into a model's folder: m, n"
    [candidate] = DropFolder(folder.root, ["m"], 100).scan().candidates
    assert (candidate.model, candidate.path) == ("m", path)


def test_what_is_too_large_is_refused_with_both_figures(folder):
    write(folder.root / "m" / "fits.pt", 100)
    write(folder.root / "m" / "large.pt", 101)
    scan = folder.scan()
    assert [c.path.name for c in scan.candidates] == ["fits.pt"]
    [refusal] = scan.refusals
    assert (refusal.model, refusal.size, refusal.code) == ("m", 101, "too_large")
    assert refusal.reason.startswith("it has 101 B, watch.max_bytes is 100 B;")


def test_links_pipes_and_sockets_are_refused_and_never_opened(folder, tmp_path):
    place = folder.root / "m"
    (place / "link.pt").symlink_to(write(tmp_path / "secret"))
    (place / "dangling.pt").symlink_to("nowhere")
    os.mkfifo(place / "pipe.pt")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "socket.pt"))
        refused = {r.path.name: r.code for r in folder.scan().refusals if r.model == "m"}
    assert refused == dict.fromkeys(["link.pt", "dangling.pt", "pipe.pt", "socket.pt"], "not_a_file")


def test_folders_and_what_is_in_them_are_left_alone(folder):
    (folder.root / "m" / "deep").mkdir()
    write(folder.root / "m" / "deep" / "a.pt")
    (folder.root / "stranger").mkdir()
    write(folder.root / "stranger" / "a.pt")
    scan = folder.scan()
    assert (scan.candidates, scan.refusals) == ([], [])


def test_missing_folders_are_named_and_can_be_made(folder):
    (folder.root / "n").rmdir()
    write(folder.root / "m" / "a.pt")
    scan = folder.scan()
    assert scan.missing == [folder.root / "n"]
    assert len(scan.candidates) == 1
    folder.make()
    assert folder.scan().missing == []


def test_the_root_is_made_but_not_the_way_to_it(tmp_path):
    DropFolder(tmp_path / "drop", ["m"], 1).make()
    assert (tmp_path / "drop" / "m").is_dir()
    with pytest.raises(FileNotFoundError):
        DropFolder(tmp_path / "no" / "drop", ["m"], 1).make()


def test_folders_are_listed_with_the_model_that_they_were_dropped_for(folder):
    for name in ("m/exp", "typo", ".hidden", "m/.incoming", "n/~syncthing~x.tmp"):
        (folder.root / name).mkdir()
    scan = folder.scan()
    assert sorted(scan.folders) == [("", folder.root / "typo"), ("m", folder.root / "m" / "exp")]
    assert (scan.candidates, scan.refusals) == ([], [])
