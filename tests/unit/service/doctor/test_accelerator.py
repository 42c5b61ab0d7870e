"""The CUDA driver is a library compiled here that answers as the real one would."""

import shutil
import subprocess

import pytest

from service.config.load import load_config
from service.doctor import accelerator
from service.doctor.accelerator import check_cuda, check_device_nodes
from tests.support.machines import machine, only, write

SOURCE = """
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned flags) { if (RESULT < 0) abort(); return RESULT; }
int cuGetErrorString(int code, const char **text) { *text = "said by the driver"; return code == 12345; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Orin", size); return 0; }
"""
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler here")


@pytest.fixture
def driver(tmp_path, monkeypatch):
    def build(result):
        (tmp_path / "cuda.c").write_text(SOURCE)
        library = tmp_path / "libcuda.so.1"
        subprocess.run(["cc", "-shared", "-fPIC", f"-DRESULT={result}", "-o", library, tmp_path / "cuda.c"], check=True)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))

    return build


@pytest.fixture
def wants_cuda(tmp_path):
    (tmp_path / "images").mkdir()
    path = tmp_path / "edged.yaml"
    path.write_text("models: [{name: m, calibration: {dir: images}}]\nworker: {device: cuda}\n")
    return load_config(path)


@needs_compiler
def test_a_driver_that_starts_names_its_devices(tmp_path, driver):
    driver(0)
    check = only(check_cuda(machine(tmp_path), None))
    assert (check.level, check.detail) == ("ok", "driver for CUDA 12.6: Orin")


@needs_compiler
def test_what_uses_the_gpu_is_named(tmp_path, driver, wants_cuda):
    driver(0)
    detail = "driver for CUDA 12.6: Orin; quantizing on the GPU (worker.device)"
    assert only(check_cuda(machine(tmp_path), wants_cuda)).detail == detail
    path = tmp_path / "edged.yaml"
    path.write_text(
        "models:\n- {name: m, calibration: {dir: images}, runtime: torch}\n- {name: n, calibration: {dir: images}}\n"
        "serve: {device: auto}\n"
    )
    check = only(check_cuda(machine(tmp_path), load_config(path)))
    served = "quantizing on the CPU (worker.device), requests of m on the GPU if torch finds it (serve.device)"
    assert check.detail == f"driver for CUDA 12.6: Orin; {served}"


@needs_compiler
def test_a_driver_that_does_not_start_is_a_failure_where_requests_need_it(tmp_path, driver, wants_cuda):
    driver(100)
    path = tmp_path / "edged.yaml"
    path.write_text("models: [{name: m, calibration: {dir: images}}]\nserve: {device: cuda}\n")
    check = only(check_cuda(machine(tmp_path), load_config(path)))
    assert (check.level, check.exit_code) == ("fail", 69)
    assert check.detail.endswith("; and serve.device is cuda")


@needs_compiler
@pytest.mark.parametrize(("code", "command"), [(100, "ls -l /dev/nvidia*"), (803, "sudo reboot"), (7, "sudo dmesg")])
def test_what_cuinit_answers_is_told_in_words_with_what_mends_it(tmp_path, driver, wants_cuda, code, command):
    driver(code)
    check = only(check_cuda(machine(tmp_path), None))
    assert (check.level, check.detail) == (
        "warn",
        f"cuInit answers {code}: said by the driver; computing on the CPU",
    )
    assert command in check.fix
    check = only(check_cuda(machine(tmp_path), wants_cuda))
    assert (check.level, check.exit_code) == ("fail", 69)


@needs_compiler
def test_a_code_without_words(tmp_path, driver):
    driver(12345)
    assert "does not describe" in only(check_cuda(machine(tmp_path), None)).detail


@needs_compiler
def test_a_driver_that_aborts_takes_only_the_probe_down(tmp_path, driver):
    driver(-1)
    check = only(check_cuda(machine(tmp_path), None))
    assert check.level == "warn"
    assert "crashed its process" in check.detail


@pytest.fixture
def no_driver(monkeypatch):
    missing = {"missing": "libcuda.so.1: cannot open shared object file"}
    monkeypatch.setattr(accelerator, "probe", lambda module: missing)


def test_no_driver_is_fine_without_a_device(tmp_path, no_driver, wants_cuda):
    assert only(check_cuda(machine(tmp_path), None)).level == "ok"
    assert only(check_cuda(machine(tmp_path), wants_cuda)).level == "fail"


def test_a_device_without_its_driver_is_a_warning(tmp_path, no_driver):
    check = only(check_cuda(machine(tmp_path, {"/dev/nvmap": ""}), None))
    assert (check.level, "nvidia-l4t-cuda" in check.fix) == ("warn", True)


def test_no_device_nodes(tmp_path):
    write(tmp_path, {"/dev/null": "", "/dev/nvidia-caps/1": "", "/dev/nvidia-modeset": ""})
    assert "none" in only(check_device_nodes(machine(tmp_path), None)).detail


def test_device_nodes_that_may_not_be_opened(tmp_path, wants_cuda):
    nodes = [
        "/dev/nvhost-ctrl",
        "/dev/nvhost-gpu",
        "/dev/nvmap",
        "/dev/nvidia0",
        "/dev/nvidiactl",
        "/dev/nvgpu/igpu0/ctrl",
    ]
    write(tmp_path, dict.fromkeys(nodes, "") | {"/etc/group": "video:x:44:\n", "/etc/passwd": "edged:x:998:998::/:\n"})
    gid = (tmp_path / "dev/nvmap").stat().st_gid
    (tmp_path / "etc/group").write_text(f"video:x:{gid}:\n")
    for node in nodes:
        (tmp_path / node.lstrip("/")).chmod(0o660)
    member = machine(tmp_path, uid=998, groups=frozenset({gid}))
    assert (only(check_device_nodes(member, None)).level, "6 of" in only(check_device_nodes(member, None)).detail) == (
        "ok",
        True,
    )
    stranger = machine(tmp_path, uid=998)
    check = only(check_device_nodes(stranger, None))
    assert check.level == "warn"
    assert check.detail.startswith("edged may not open /dev/nvgpu/igpu0/ctrl, /dev/nvhost-ctrl, ")
    assert " and 2 more" in check.detail
    assert "`sudo usermod -aG video edged`" in check.fix
    failed = only(check_device_nodes(stranger, wants_cuda))
    assert (failed.level, failed.exit_code) == ("fail", 77)
