import pytest

from service.config.load import load_config
from service.doctor import packages
from service.doctor.packages import check_grpc, check_packages, check_python, probe
from tests.support.machines import levels, machine, only

FOUND = {"torch": "2.13.0", "cuda": False, "built_for_cuda": None}


@pytest.fixture
def here(tmp_path):
    return machine(tmp_path)


@pytest.fixture
def wants_cuda(tmp_path):
    (tmp_path / "images").mkdir()
    path = tmp_path / "edged.yaml"
    path.write_text("models: [{name: m, calibration: {dir: images}}]\nworker: {device: cuda}\n")
    return load_config(path)


def with_probe(monkeypatch, **found):
    monkeypatch.setattr(packages, "probe", lambda module: FOUND | found)


def test_torch_is_tried(here):
    found = {check.name: check for check in check_packages(here, None)}
    assert list(found) == ["torch", "torchvision"]
    assert found["torch"].level == "ok"
    assert found["torch"].detail.split()[0].startswith("2.")


def test_a_torch_that_cannot_be_imported_is_told_without_a_traceback(here, tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = only(check_packages(here, None))
    assert (check.name, check.level) == ("torch", "fail")
    assert check.detail.endswith("ImportError: libcudart.so.12: cannot open shared object file")


def test_a_torch_that_takes_its_process_down_is_told(here, tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = only(check_packages(here, None))
    assert check.level == "fail"
    assert "\n" not in check.detail


def test_packages_that_are_not_there_are_named(here, monkeypatch):
    monkeypatch.setattr(packages, "version_of", lambda package: None)
    check = only(check_packages(here, None))
    assert (check.level, check.detail.partition(";")[0]) == ("fail", "not installed")


@pytest.fixture
def wants_grpc(tmp_path):
    (tmp_path / "images").mkdir()
    path = tmp_path / "edged.yaml"
    path.write_text("models: [{name: m, calibration: {dir: images}}]\nserve: {grpc_port: 0}\n")
    return load_config(path)


def test_grpc_is_tried_if_it_is_configured(here, wants_grpc, tmp_path, monkeypatch):
    assert not list(check_grpc(here, None))
    check = only(check_grpc(here, wants_grpc))
    assert (check.name, check.level) == ("grpc", "ok")
    assert check.detail.startswith("grpcio 1.")
    (tmp_path / "grpc.py").write_text("raise ImportError('libstdc++.so.6: version not found')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = only(check_grpc(here, wants_grpc))
    assert (check.level, check.detail.endswith("ImportError: libstdc++.so.6: version not found")) == ("fail", True)


def test_a_probe_that_prints_nonsense_is_a_reason(monkeypatch, tmp_path):
    (tmp_path / "nonsense.py").write_text("print([1])")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert probe("nonsense") == "it exited without output"


def test_all_is_well(here, monkeypatch):
    with_probe(monkeypatch)
    monkeypatch.setattr(packages, "version_of", lambda package: "0.28.0")
    found = levels(check_packages(here, None))
    assert found == {"torch": ("ok", "2.13.0 on the CPU"), "torchvision": ("ok", "0.28.0")}


def test_a_torchvision_that_is_not_there_or_does_not_load_is_no_problem(here, tmp_path, monkeypatch):
    with_probe(monkeypatch)
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert levels(check_packages(here, None))["torchvision"][0] == "ok"
    monkeypatch.setattr(packages, "version_of", lambda package: "2.13.0" if package == "torch" else None)
    assert levels(check_packages(here, None))["torchvision"] == ("ok", "not installed, and not needed")


def test_a_torch_that_would_run_code_of_a_checkpoint_fails(here, monkeypatch):
    with_probe(monkeypatch, torch="2.5.1")
    level, detail = levels(check_packages(here, None))["torch"]
    assert level == "fail"
    assert "CVE-2025-32434" in detail


@pytest.mark.parametrize(("built_for", "why"), [(None, "built without CUDA"), ("13.0", "no device for its CUDA 13.0")])
def test_cuda_that_is_asked_for_must_be_there(here, wants_cuda, monkeypatch, built_for, why):
    with_probe(monkeypatch, built_for_cuda=built_for)
    check = next(iter(check_packages(here, wants_cuda)))
    assert (check.level, check.exit_code) == ("fail", 69)
    assert why in check.detail
    with_probe(monkeypatch, cuda=True)
    assert next(iter(check_packages(here, wants_cuda))).level == "ok"


def test_python(here, monkeypatch):
    assert only(check_python(here, None)).level == "ok"
    monkeypatch.setattr(packages, "_LEAST_PYTHON", (4, 0))
    assert only(check_python(here, None)).level == "fail"
