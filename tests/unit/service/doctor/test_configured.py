import os
import subprocess

import pytest

from service.config.load import load_config
from service.doctor import configured
from service.doctor.configured import check_folder, check_folders, check_images, check_token, read_config
from tests.support.machines import levels, machine, only

JPEG = b"\xff\xd8\xff\xe0 and so on"


@pytest.fixture
def config(tmp_path):
    (tmp_path / "images").mkdir()
    path = tmp_path / "edged.yaml"
    path.write_text("state_dir: state\nmodels: [{name: m, calibration: {dir: images}}]\n")
    return path


def test_the_config_is_checked_line_by_line(config):
    config.write_text("models: [{name: m, calibration: {dir: nowhere}}]\nlog: loud\n")
    checks, read = read_config(str(config))
    assert read is None
    assert [check.detail.partition("yaml:")[2].split(":")[0] for check in checks] == ["1", "2"]
    assert {(check.level, check.exit_code) for check in checks} == {("fail", 78)}
    assert all("`edged check-config " in check.fix for check in checks)


def test_a_config_that_is_not_there_fails(tmp_path):
    checks, _ = read_config(str(tmp_path / "none.yaml"))
    assert (only(checks).level, only(checks).exit_code) == ("fail", 78)


def test_a_good_config_leads_to_its_folders(config, tmp_path):
    checks, read = read_config(str(config))
    assert only(checks).level == "ok"
    found = levels([*check_folders(machine(tmp_path), read), *configured.check_calibration(machine(tmp_path), read)])
    assert list(found) == ["state_dir", "calibration of m"]
    assert "state will be created" in found["state_dir"][1]
    assert found["calibration of m"][0] == "fail"


def test_no_config_at_all_is_only_a_warning(monkeypatch, tmp_path):
    monkeypatch.delenv("EDGED_CONFIG", raising=False)
    monkeypatch.setattr(configured, "DEFAULT_CONFIG", str(tmp_path / "none.yaml"))
    monkeypatch.setattr(configured, "find_config", lambda given: tmp_path / "none.yaml")
    checks, read = read_config(None)
    assert (only(checks).level, read) == ("warn", None)


def test_without_a_config_nothing_is_said_of_what_it_names(tmp_path):
    here = machine(tmp_path)
    assert not [*check_folders(here, None), *configured.check_calibration(here, None), *check_token(here, None)]


def test_a_drop_folder_of_its_own_is_looked_at(config, tmp_path):
    (tmp_path / "drop").mkdir()
    config.write_text(config.read_text() + "drop_dir: drop\n")
    assert list(levels(check_folders(machine(tmp_path), load_config(config)))) == ["state_dir", "drop_dir"]


@pytest.mark.parametrize(("count", "level"), [(31, "fail"), (32, "warn"), (127, "warn"), (128, "ok")])
def test_images_are_counted(tmp_path, count, level):
    (tmp_path / "class").mkdir()
    (tmp_path / "notes.txt").touch()
    for index in range(count):
        (tmp_path / "class" / f"{index}.JPG").write_bytes(JPEG)
    assert only([check_images("m", tmp_path)]).level == level


def test_an_unusable_image_among_many_is_a_warning(tmp_path):
    for index in range(257):
        (tmp_path / f"{index:03}.jpg").write_bytes(JPEG)
    (tmp_path / "100.jpg").write_bytes(b"<html>not found</html>")
    check = only([check_images("m", tmp_path)])
    assert check.level == "warn"
    assert check.detail == f"256 images in {tmp_path}, 1 unusable: 100.jpg begins like no image"


def test_pictures_of_other_types_are_a_warning_and_other_files_are_not(tmp_path):
    for index in range(256):
        (tmp_path / f"{index:03}.jpg").write_bytes(JPEG)
    (tmp_path / "boxes.json").touch()
    check = only([check_images("m", tmp_path)])
    assert (check.level, check.detail) == ("ok", f"256 images in {tmp_path}, 1 file is passed over: 1 .json")
    (tmp_path / "a.tiff").touch()
    check = only([check_images("m", tmp_path)])
    assert check.level == "warn"
    assert check.fix.startswith("convert these pictures to JPEG or PNG, or move them away")
    assert check.detail == f"256 images in {tmp_path}, 2 files are passed over: 1 .json, 1 .tiff"


def test_a_state_folder_that_cannot_be_one_fails(tmp_path):
    (tmp_path / "file").touch()
    check = only([check_folder("state_dir", tmp_path / "file" / "state", "edged")])
    assert (check.level, check.exit_code) == ("fail", 73)
    assert "file is not a folder" in check.detail


def test_a_state_folder_that_cannot_be_written_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write everywhere
    check = only([check_folder("state_dir", tmp_path / "state", "edged")])
    assert (check.level, check.exit_code) == ("fail", 73)
    assert check.fix == f"`sudo chown edged {tmp_path}`, or choose another state_dir"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small filesystem needs root")
@pytest.mark.parametrize(
    ("limits", "told_of"), [("size=1m", "free some space"), ("size=1g,nr_inodes=500", "remove files there")]
)
def test_a_nearly_full_disk_fails(tmp_path, limits, told_of):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", limits, "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount: {mounted.stderr.decode()}")
    try:
        check = only([check_folder("state_dir", tmp_path, "edged")])
        assert (check.level, check.exit_code) == ("fail", 73)
        assert told_of in check.fix
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize(("host", "level"), [("127.0.0.1", "ok"), ("::1", "ok"), ("0.0.0.0", "warn")])  # noqa: S104 - it is what is warned of
def test_serving_beyond_this_machine_is_a_warning(config, tmp_path, host, level):
    config.write_text(config.read_text() + f"serve: {{host: '{host}', allow_public: true}}\n")
    assert only(check_token(machine(tmp_path), load_config(config))).level == level


def test_the_warning_says_who_may_do_what(config, tmp_path):
    (tmp_path / "token").write_text("secret")
    base = config.read_text()
    details = []
    for settings in ("allow_public: true", "token_file: token, inference_token_file: token"):
        config.write_text(base + f"serve: {{host: '::', {settings}}}\n")
        details.append(only(check_token(machine(tmp_path), load_config(config))).detail)
    assert details == [
        "::: everybody who reaches it may use the models; administration without token",
        "::: whoever reaches it and has a token may use the models; administration with token",
    ]
