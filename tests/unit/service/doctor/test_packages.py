import pytest

from service.config.load import load_config
from service.doctor import packages
from service.doctor.packages import check_packages, check_python, probe
from tests.support.machines import levels, machine, only

FOUND = {"torch": "2.13.0", "cuda": False, "built_for_cuda": None, "torchvision": "0.28.0", "operators": True,
         "onnxruntime": None}  # fmt: skip


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


def test_torch_and_torchvision_are_tried(here):
    found = {check.name: check for check in check_packages(here, None)}
    assert list(found) == ["torch", "torchvision", "runtimes"]
    assert found["torch"].level == "ok"
    assert found["torch"].detail.split()[0].startswith("2.")
    assert found["runtimes"].detail.startswith("torch")


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
    assert (check.level, check.detail) == ("fail", "torch and torchvision not installed")


def test_a_probe_that_prints_nonsense_is_a_reason(monkeypatch, tmp_path):
    (tmp_path / "nonsense.py").write_text("print([1])")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert probe("nonsense") == "it exited without output"


def test_all_is_well(here, monkeypatch):
    with_probe(monkeypatch)
    assert levels(check_packages(here, None)) == {
        "torch": ("ok", "2.13.0 on the CPU"),
        "torchvision": ("ok", "0.28.0"),
        "runtimes": ("warn", "torch; onnxruntime is not installed, so requests take more memory and time"),
    }


def test_operators_that_do_not_load_are_a_warning_that_says_what_that_means(here, monkeypatch):
    with_probe(monkeypatch, operators=False)
    check = next(check for check in check_packages(here, None) if check.name == "torchvision")
    assert check.level == "warn"
    assert "torchvision::nms" in check.detail
    assert "edged uses none of them" in check.detail
    assert "'torchvision==0.28.*'" in check.fix


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


def test_onnxruntime(here, monkeypatch):
    with_probe(monkeypatch, onnxruntime={"version": "1.20", "providers": ["CPUExecutionProvider"]})
    assert levels(check_packages(here, None))["runtimes"] == ("ok", "torch; onnxruntime 1.20 with CPUExecutionProvider")
    with_probe(monkeypatch, onnxruntime={"error": "ImportError: no"})
    level, detail = levels(check_packages(here, None))["runtimes"]
    assert (level, detail.endswith("ImportError: no")) == ("warn", True)


def test_python(here, monkeypatch):
    assert only(check_python(here, None)).level == "ok"
    monkeypatch.setattr(packages, "_LEAST_PYTHON", (4, 0))
    assert only(check_python(here, None)).level == "fail"
