"""The installed command, as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edged.models.resnet import CifarResNet
from service.worker.sandbox import available, lacking
from tests.support.fake_daemon import fake_daemon
from tests.support.yolov5_samples import save_tiny

EDGED = Path(sys.executable).with_name("edged")


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    with fake_daemon(tmp_path / "s") as script:
        monkeypatch.setenv("EDGED_SOCKET", str(tmp_path / "s"))
        script.answer("GET /edged/v1/status", {"ready": True, "models": [], "updates": []})
        yield script


def test_a_reader_that_stops_early_is_no_error(daemon):
    updates = [{"id": i, "model": "m", "file_name": "x" * 200, "state": "COMMITTED"} for i in range(2000)]
    daemon.answer("GET /edged/v1/updates", {"updates": updates})
    with subprocess.Popen([EDGED, "history"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_status_imports_little(daemon):
    """That keeps it within the goal of 50 ms; Python alone starts in 15."""
    code = "import sys; from service.cli.main import main; main(['status', '--json']); print(*sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    heavy = {"torch", "numpy", "yaml", "asyncio", "http.client", "ssl", "prometheus_client", "psutil", "logging"}
    assert not heavy & set(modules)


@pytest.mark.parametrize("command", ["status", "history", "pin m", "pause m", "gc"])
def test_a_command_that_asks_the_daemon_imports_only_these_modules(command, tmp_path):
    code = """
import sys
from service.cli.main import main
main(sys.argv[1:])
print(*(name for name in sys.modules if name.split(".")[0] in ("edged", "service")))
"""
    arguments = [*command.split(), "--socket", str(tmp_path / "none")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    modules = set(done.stdout.split()) - {"edged", "service", "service.cli", "service.config", "service.system"}
    asking = {"edged.errors", "edged.version", "edged.spelling", "service.client", "service.config.locate"}
    asking |= {"service.system.pillow_warnings"}
    printing = {"service.cli.output", "service.cli.render", "service.units"}
    assert modules <= asking | printing | {f"service.cli.{name}" for name in ("main", "parser", "commands")}


@pytest.fixture
def without(tmp_path, monkeypatch):
    """Make packages impossible to import in processes that are started."""

    def hide(*packages):
        lines = [f"sys.modules[{name!r}] = None" for name in packages]
        (tmp_path / "sitecustomize.py").write_text("\n".join(["import sys", *lines]))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return hide


@pytest.mark.parametrize(
    "command",
    ["inspect a.pth", "quantize a.pth --calib images --out out", "evaluate a.pth --data images", "calib images"],
)
def test_a_machine_without_torch_is_told_what_to_install(command, without, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "a.pth").write_bytes(b"")
    without("torch")
    done = subprocess.run([EDGED, *command.split(), "--json"], cwd=tmp_path, capture_output=True, text=True)
    message = f"`edged {command.split()[0]}` needs torch, which is not installed here; `pip install torch`, on a Jetson"
    assert done.stderr.startswith(f"edged: {message}")
    assert done.stderr.count("\n") == 1
    assert json.loads(done.stdout)["code"] == "unavailable"
    assert done.returncode == 69


def test_a_torch_that_cannot_be_imported_is_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("from torch import _C")
    (tmp_path / "torch" / "_C.abi3.so").write_text("no library")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = subprocess.run([EDGED, "inspect", "a.pth"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr.startswith("edged: `edged inspect` needs a package that cannot be imported: ")
    assert "torch/_C.abi3.so: " in done.stderr
    assert done.returncode == 69


TAKEN_OVER = '''
import json, os, socket, sys
from importlib.machinery import ModuleSpec
from pathlib import Path

def attempt(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return error.strerror
    return ""

class TakingOver:
    """Runs this in the place of the code that reads the file."""

    @classmethod
    def find_spec(cls, name, path, target=None):
        return ModuleSpec(name, cls()) if name == "edged.models.inspection" else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        here = Path.cwd()
        found = {"its file": attempt((here / "a.pth").read_bytes), "another": attempt((here / "secret").read_bytes),
                 "writing": attempt((here / "new").touch), "network": attempt(socket.socket)}
        print(json.dumps(found))
        sys.stdout.flush()
        os._exit(0)

sys.meta_path.insert(0, TakingOver)
'''


@pytest.mark.skipif(bool(lacking(available())), reason=f"no sandbox here: {lacking(available())}")
def test_inspect_can_read_its_file_and_do_nothing_else(tmp_path, monkeypatch):
    for name in ("a.pth", "secret"):
        (tmp_path / name).touch()
    (tmp_path / "code").mkdir()
    (tmp_path / "code/sitecustomize.py").write_text(TAKEN_OVER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    done = subprocess.run([EDGED, "inspect", "a.pth"], cwd=tmp_path, capture_output=True, text=True)
    assert json.loads(done.stdout) == {
        "its file": "", "another": "Permission denied", "writing": "Permission denied",
        "network": "Operation not permitted",
    }  # fmt: skip


def test_inspect_reads_files_of_both_kinds_in_its_sandbox(tmp_path):
    torch.save(CifarResNet(3).state_dict(), tmp_path / "classifier.pt")
    save_tiny(tmp_path / "detector.pt")
    for name in ("classifier.pt", "detector.pt"):
        done = subprocess.run([EDGED, "inspect", name], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_inspect_reads_the_signature_in_its_sandbox(tmp_path):
    torch.save(CifarResNet(3).state_dict(), tmp_path / "signed.pt")
    for command in ("keygen key", "sign signed.pt --model m --version 3 --key key.key"):
        subprocess.run([EDGED, *command.split()], cwd=tmp_path, capture_output=True, check=True)
    done = subprocess.run([EDGED, "inspect", "signed.pt"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, "version 3 of m, by " in done.stdout) == (0, True)


@pytest.mark.parametrize("path", [".", "/"])
def test_a_path_without_a_name_is_no_traceback(path, tmp_path):
    for command in (["inspect", path], ["verify", path, "--key", "key.pub"], ["keygen", path]):
        done = subprocess.run([EDGED, *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode in (2, 3, 4), (command, done.stderr)
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "unexpected" not in done.stderr
