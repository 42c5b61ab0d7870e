import os
import subprocess
import sys

import pytest

from service import doctor
from service.config import ServeConfig


def levels(checks):
    return {check.name: check.level for check in checks}


@pytest.fixture
def config(tmp_path):
    (tmp_path / "images").mkdir()
    path = tmp_path / "edged.yaml"
    path.write_text("state_dir: state\nmodels: [{name: m, calibration: {dir: images}}]\n")
    return path


def test_torch_and_torchvision_are_tried(monkeypatch):
    found = {check.name: check for check in doctor.check_packages()}
    assert found["torch"].level == found["torchvision"].level == "ok"
    assert found["torch"].detail.split()[0].startswith("2.")


def test_a_torch_that_cannot_be_imported_is_told_without_a_traceback(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    [check] = doctor.check_packages()
    assert (check.name, check.level) == ("torch", "fail")
    assert check.detail.endswith("ImportError: libcudart.so.12: cannot open shared object file")


def test_a_torch_that_takes_its_process_down_is_told(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    [check] = doctor.check_packages()
    assert check.level == "fail"
    assert "\n" not in check.detail


def test_packages_that_are_not_there_are_named(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    [check] = doctor.check_packages()
    assert (check.level, check.detail) == ("fail", "torch and torchvision not installed")


def test_the_config_is_checked_line_by_line(config):
    config.write_text("models: [{name: m, calibration: {dir: nowhere}}]\nlog: loud\n")
    lines = [check.detail for check in doctor._check_config(str(config))]
    assert [line.partition("yaml:")[2].split(":")[0] for line in lines] == ["1", "2"]


def test_a_good_config_leads_to_its_folders(config):
    found = {check.name: check for check in doctor._check_config(str(config))}
    assert list(found) == ["config", "state_dir", "calibration of m", "serve"]
    assert found["config"].level == found["serve"].level == "ok"
    assert "state will be created" in found["state_dir"].detail
    assert found["calibration of m"].level == "fail"


def test_no_config_at_all_is_only_a_warning(monkeypatch, tmp_path):
    monkeypatch.delenv("EDGED_CONFIG", raising=False)
    monkeypatch.setattr(doctor, "DEFAULT_CONFIG", str(tmp_path / "none.yaml"))
    monkeypatch.setattr(doctor, "find_config", lambda given: tmp_path / "none.yaml")
    assert levels(doctor._check_config(None)) == {"config": "warn"}


@pytest.mark.parametrize(("count", "level"), [(31, "fail"), (32, "warn"), (255, "warn"), (256, "ok")])
def test_images_are_counted(tmp_path, count, level):
    (tmp_path / "class").mkdir()
    (tmp_path / "notes.txt").touch()
    for index in range(count):
        (tmp_path / "class" / f"{index}.JPG").touch()
    assert doctor.check_images("m", tmp_path).level == level


def test_a_state_folder_that_cannot_be_written_fails(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    [check] = doctor.check_folder("state_dir", tmp_path / "file" / "state")
    assert (check.level, check.fix.split(" ")[0]) == ("fail", "make")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small filesystem needs root")
def test_a_nearly_full_disk_fails(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount: {mounted.stderr.decode()}")
    try:
        [check] = doctor.check_folder("state_dir", tmp_path)
        assert check.level == "fail"
        assert "free some space" in check.fix
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize(("instances", "level"), [("128", "ok"), ("8", "warn"), ("?", "warn"), (None, "warn")])
def test_the_limits_of_inotify(tmp_path, instances, level):
    (tmp_path / "max_queued_events").write_text("16384")
    if instances is not None:
        (tmp_path / "max_user_instances").write_text(instances)
    assert levels(doctor.check_inotify(tmp_path)) == {"inotify": level}


@pytest.mark.parametrize(("host", "level"), [("127.0.0.1", "ok"), ("::1", "ok"), ("0.0.0.0", "warn")])  # noqa: S104 - it is what is warned of
def test_serving_beyond_this_machine_is_a_warning(host, level):
    assert doctor.check_token(ServeConfig(host=host)).level == level


def test_the_warning_says_who_may_do_what(tmp_path):
    token = tmp_path / "token"
    told = [
        doctor.check_token(ServeConfig(host="::", token_file=admin, inference_token_file=inference)).detail
        for admin, inference in ((None, None), (token, token))
    ]
    assert told == [
        "::: everybody who reaches it may use the models; administration without token",
        "::: whoever reaches it and has a token may use the models; administration with token",
    ]


def test_it_is_not_torch_that_the_command_imports():
    code = "import service.doctor, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
