"""Servers to compare edged with: Triton, MLServer, LitServe and plain uvicorn. Used by benchmarks.serving.

Each has a virtual environment of its own in one folder, and uses torch and edged from the environment that runs the
benchmark. Their children get the same OpenMP settings as those of edged.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from benchmarks.serving.checks import Swap
from benchmarks.serving.daemon import MODEL, image, image_call
from benchmarks.serving.load import Call, Connection
from benchmarks.serving.processes import end_group, eventually, free_port
from service.system.processes import child_environment

PERF_ANALYZER = "perf_analyzer"
PACKAGES = {
    "triton": ("nvidia-pytriton==0.7.0",),  # the wheel contains the whole server
    "mlserver": ("mlserver==1.7.1", "uvloop<0.22"),  # its workers do not start with newer versions of uvloop
    "litserve": ("litserve==0.2.19",),
    # A client. Later wheels do not contain perf_analyzer, or one that needs a later glibc than Debian 12 has.
    PERF_ANALYZER: ("tritonclient==2.50.0",),
}
PROGRAMS = {
    "triton": "pytriton/tritonserver/bin/tritonserver",
    "mlserver": "mlserver",
    "litserve": "litserve",
    PERF_ANALYZER: "tritonclient",
}
_JSON = {"Content-Type": "application/json"}
ROOT = Path(__file__).parents[3]
CODE = Path(__file__).parent
_TENSOR = '[{{ name: "{name}", data_type: TYPE_{datatype}, dims: [{dims}] }}]'
# Models of Triton that return zeros: the input of each. Those whose names end with PREPARED prepare the image before.
PREPARED = "-prepared"
_EMPTY_MODELS = {MODEL: "input", "pixels": "pixels", "image": "image"}
_INPUTS = {"input": ("FP32", "-1, 3, -1, -1"), "pixels": ("UINT8", "-1, 3, -1, -1"), "image": ("STRING", "1")}


def set_up(folder: Path) -> None:
    """Create a virtual environment for each peer that has none."""
    for name, packages in PACKAGES.items():
        if missing(folder, name) is not None:
            print(f"setting up {name} ({', '.join(packages)}) in {folder / name}")
            subprocess.run([sys.executable, "-m", "venv", folder / name], check=True)
            subprocess.run([folder / name / "bin" / "pip", "install", "-q", *packages], check=True)


def missing(folder: Path | None, name: str) -> str | None:
    """Return why a peer cannot be measured and how to install it, or None if it can be measured."""
    how = "python -m benchmarks.serving --setup-peers DIR, then --peers DIR"
    if name == "uvicorn":
        return None
    if folder is None:
        return f"{name} was not measured: there is no folder of peers; {how}"
    if (packages_of(folder, name) / PROGRAMS[name]).exists():
        return None
    return f"{name} was not measured: it is not installed in {folder / name}; {how}"


def packages_of(folder: Path, name: str) -> Path:
    """Return the folder of the packages of a peer."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return folder / name / "lib" / version / "site-packages"


def _triton(folder: Path) -> Path:
    return packages_of(folder, "triton") / "pytriton" / "tritonserver"


class Peer:
    """A server in a process of its own.

    Args:
        name: A key of PACKAGES, or "uvicorn".
        peers: Folder with the virtual environments.
        folder: Folder for models and log.
        artifacts: Folders of edged artifacts: each reload loads the next one; empty for the empty network.
        side: Side of the images, pixels.
    """

    def __init__(self, name: str, peers: Path | None, folder: Path, artifacts: list[Path], side: int) -> None:
        self.name = name
        self._peers = peers or folder
        self._folder = folder / name
        self._artifacts = [str(path) for path in artifacts] or [""]
        self._at = 0
        self._port, self._grpc_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.call = _call(name, side)

    def __enter__(self) -> Peer:
        self._folder.mkdir(parents=True, exist_ok=True)
        command, environment = getattr(self, f"_{self.name}")()
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, cwd=self._folder, start_new_session=True
            )
        try:
            eventually(self._answers, f"an answer of {self.name}, whose log is {self._folder / 'log'}", 60)
        except BaseException:
            end_group(self._process)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            end_group(self._process)

    @property
    def pid(self) -> int:
        """Return the id of the server's first process."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process.pid

    @property
    def address(self) -> str:
        """Return the URL of the server."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def grpc_address(self) -> str:
        """Return host and port of Triton's gRPC."""
        return f"127.0.0.1:{self._grpc_port}"

    def reload(self) -> Swap:
        """Replace the served artifact by the next one."""
        self._at += 1
        self._write_artifact()
        start = time.monotonic()
        with contextlib.closing(Connection(self.address)) as connection:
            answer = connection.ask(Call(f"/v2/repository/models/{MODEL}/load", b"{}"))
        if answer.failed:
            raise RuntimeError(f"{self.name} failed to reload: {answer.status} {answer.body[:300]!r}")
        return Swap(start, time.monotonic(), self._artifacts[self._at % len(self._artifacts)])

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"{self.name} exited: {(self._folder / 'log').read_text()[-2000:]}")
        with contextlib.closing(Connection(self.address)) as connection, contextlib.suppress(http.client.HTTPException):
            answer = connection.ask(self.call)
            # With an incompatible numpy, Triton responds with 200 and no bytes after the JSON.
            return not answer.failed and (self.name != "triton" or answer.json_bytes is not None)
        return False

    def _write_artifact(self) -> None:
        at = self._folder / "repository" / MODEL
        (at / "1").mkdir(parents=True, exist_ok=True)
        for folder in (at, at / "1"):
            (folder / "artifact.txt").write_text(self._artifacts[self._at % len(self._artifacts)])

    def _triton(self) -> tuple[list[str], dict[str, str]]:
        server = _triton(self._peers)
        self._write_artifact()
        empty = self._artifacts == [""]
        for model, name in _EMPTY_MODELS.items() if empty else [(MODEL, "input")]:
            self._write_triton_model(model, name)
            if name != "input":
                self._write_triton_model(model + PREPARED, name)
        backends = self._folder / "backends"
        shutil.copytree(server / "backends", backends, dirs_exist_ok=True)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        shutil.copy(server / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
        command = [str(server / "bin" / "tritonserver"), f"--model-repository={self._folder / 'repository'}"]
        command += [f"--backend-directory={backends}", "--model-control-mode=explicit"]
        command += [f"--load-model={folder.name}" for folder in (self._folder / "repository").iterdir()]
        command += ["--http-address=127.0.0.1", f"--http-port={self._port}", "--allow-metrics=false"]
        grpc = [f"--grpc-port={self._grpc_port}", "--grpc-address=127.0.0.1"]
        command += grpc if empty else ["--allow-grpc=false"]
        environment = _environment()
        environment["PATH"] = os.pathsep.join([str(self._peers / "triton" / "bin"), environment["PATH"]])
        environment["VIRTUAL_ENV"] = str(self._peers / "triton")
        libraries = [
            sysconfig.get_config_var("LIBDIR"),
            str(packages_of(self._peers, "triton") / "nvidia_pytriton.libs"),
        ]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
        return command, environment

    def _write_triton_model(self, model: str, name: str) -> None:
        at = self._folder / "repository" / model
        (at / "1").mkdir(parents=True, exist_ok=True)
        # Triton's Python is isolated and ignores PYTHONPATH. It uses packages of the environment in PATH, whose numpy
        # must be of version 1: with later versions, outputs have no bytes.
        code = f"import sys\n\nsys.path += {_shared_packages()}\n" + (CODE / "triton_model.py").read_text()
        (at / "1" / "model.py").write_text(code)
        if model != MODEL:
            (at / "1" / "artifact.txt").write_text("")
        datatype, dimensions = _INPUTS[name]
        config = f'backend: "python"\ninput {_TENSOR.format(name=name, datatype=datatype, dims=dimensions)}\n'
        config += f"output {_TENSOR.format(name='logits', datatype='FP32', dims='-1, 10')}\n"
        if model.endswith(PREPARED):
            config += 'parameters { key: "prepares" value: { string_value: "yes" } }\n'
        (at / "config.pbtxt").write_text(config)

    def _mlserver(self) -> tuple[list[str], dict[str, str]]:
        self._write_artifact()
        at = self._folder / "repository" / MODEL
        model = {"name": MODEL, "implementation": "benchmarks.serving.peers.mlserver_model.Served"}
        (at / "model-settings.json").write_text(json.dumps(model | {"parameters": {"uri": str(at)}}))
        ports = {"http_port": self._port, "grpc_port": free_port(), "metrics_port": free_port()}
        settings = {"host": "127.0.0.1", "metrics_endpoint": None, **ports}
        (self._folder / "repository" / "settings.json").write_text(json.dumps(settings))
        self._share_packages("mlserver")
        program = str(self._peers / "mlserver" / "bin" / "mlserver")
        return [program, "start", str(self._folder / "repository")], _environment()

    def _litserve(self) -> tuple[list[str], dict[str, str]]:
        self._share_packages("litserve")
        program = str(self._peers / "litserve" / "bin" / "python")
        return [program, str(CODE / "litserve_server.py"), str(self._port)], _environment()

    def _uvicorn(self) -> tuple[list[str], dict[str, str]]:
        return [sys.executable, str(CODE / "bare.py"), str(self._port)], _environment()

    def _share_packages(self, name: str) -> None:
        """Let a peer's Python find missing packages in ours, after its own."""
        (packages_of(self._peers, name) / "edged-benchmark.pth").write_text("\n".join(_shared_packages()) + "\n")


def _shared_packages() -> list[str]:
    """Return the folders that this process imports packages from, which may be several."""
    return [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]


def _environment() -> dict[str, str]:
    environment = child_environment(None)
    for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
        environment.pop(name, None)
    return environment


def _call(name: str, side: int) -> Call:
    """Return a request with one image, in the fastest format that the server reads."""
    if name == "mlserver":
        return _mlserver_call(side)
    if name == "litserve":
        return _lit_call(side)
    call = image_call(MODEL, side)
    return call if name == "triton" else Call("/", call.body)


def _mlserver_call(side: int) -> Call:
    data = base64.b64encode(image(side).tobytes()).decode()
    parameters = {"image": [1, 3, side, side]}
    tensor = {"name": "input", "datatype": "BYTES", "shape": [1], "data": [data], "parameters": parameters}
    return Call(f"/v2/models/{MODEL}/infer", json.dumps({"inputs": [tensor]}).encode(), _JSON)


def _lit_call(side: int) -> Call:
    data = base64.b64encode(image(side).tobytes()).decode()
    return Call("/predict", json.dumps({"shape": [1, 3, side, side], "data": data}).encode(), _JSON)
