"""edged as a service of a real systemd: installed by the README's commands, then put through what services meet."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

from tests.support.daemon import Daemon
from tests.support.repository import ROOT
from tests.support.systemd_manager import SYSTEM_PYTHON, Manager, eventually, managed
from tests.support.tasks import Task

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

UNIT = "edged.service"
CALIBRATION = "/srv/calibration"
DROPIN = "etc/systemd/system/edged.service.d/test.conf"
OWN_FOLDERS = ("etc", "opt", "run", "srv", "usr/local/lib/systemd", "usr/lib/systemd", "usr/lib/sysusers.d", "var")
OTHERS = ("/var/log/*", "/var/tmp/*", "/run/systemd/*", "/run/log/*")  # noqa: S108 - of systemd itself


class Service(Daemon):
    """The installed daemon: what `Daemon` does through files and the UNIX socket works from outside, too."""

    def __init__(self, manager: Manager, **settings: Any) -> None:
        super().__init__(manager.root / "etc/edged", Path(CALIBRATION), state_dir="/var/lib/edged", **settings)
        self.config["serve"] = {"port": 8080}
        self.config["worker"] = {"retry_s": 0.1} | settings.get("worker", {})  # at the priority of a device
        self.state = manager.root / "var/lib/edged"
        self.manager = manager

    def begin(self) -> Service:
        """Start with an empty state folder."""
        self.manager.run("systemctl", "stop", UNIT, "edged.socket")
        shutil.rmtree(self.state, ignore_errors=True)
        self.write_config()
        self.manager.run("systemctl", "start", UNIT)
        return self

    def drop_in(self, text: str) -> None:
        """Override directives of the unit."""
        path = self.manager.root / DROPIN
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.manager.run("systemctl", "daemon-reload")

    def pid_of(self, module: str) -> int:
        """Of the child that runs `python -m MODULE`, as seen out here; 0 if there is none."""
        main = self.manager.host_pid(self.manager.main_pid(UNIT))
        found = [child.pid for child in psutil.Process(main).children() if module in child.cmdline()]
        return found[0] if found else 0

    def property(self, name: str) -> str:
        return self.manager.show(UNIT, name)

    def says(self, text: str) -> None:
        """Wait until `systemctl status` shows `text`."""
        eventually(lambda: text in self.property("StatusText"), f"the status says {text!r}")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a device without a network would be given."""
    folder = tmp_path_factory.mktemp("wheel")
    for part in ("edged", "service"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, folder)
    recent = int(importlib.metadata.version("setuptools").partition(".")[0]) >= 77
    isolation = ["--no-build-isolation"] if recent else []
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", *isolation, "-w", folder / "made", folder]
    subprocess.run(command, check=True)
    return next((folder / "made").glob("*.whl"))


def install(manager: Manager, wheel: Path, task: Task, command: str = "make install") -> None:
    shutil.copy(wheel, manager.root / "srv")
    manager.shell(command, PACKAGE=f"/srv/{wheel.name}", PIP_NO_INDEX="1")
    if not (manager.root / "srv/calibration").exists():
        shutil.copytree(task.calibration, manager.root / "srv/calibration")


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory, wheel: Path, task: Task) -> Iterator[Manager]:
    """A machine with edged installed."""
    with managed(tmp_path_factory.mktemp("systemd") / "installed") as manager:
        install(manager, wheel, task)
        yield manager


@pytest.fixture
def service(manager: Manager) -> Iterator[Service]:
    """Configured, not yet started; its log is shown when something goes wrong."""
    (manager.root / DROPIN).unlink(missing_ok=True)
    manager.run("systemctl", "daemon-reload")
    yield Service(manager)
    print(manager.journal(UNIT)[-20_000:])
    manager._enter(["umount", "--lazy", "/var/lib/edged/drop/digits"])  # if a test failed while it hung
    manager.run("systemctl", "stop", UNIT, "edged.socket")
    manager._enter(["systemctl", "reset-failed", UNIT])


def commands_of_readme() -> list[str]:
    """The block of commands for a device, without `sudo` and remarks."""
    text = (ROOT / "README.md").read_text()
    block = text.partition("On a real device:")[2].lstrip("\n").partition("\n\n")[0]
    commands = [line.strip().partition("  #")[0].strip() for line in block.splitlines()]
    assert all(command.startswith(("sudo ", "sudoedit ")) for command in commands)
    return [command.removeprefix("sudo ") for command in commands]


def own_files(manager: Manager) -> set[str]:
    """Whatever an installation could leave, less what systemd writes about any service."""
    folders = [f"/{folder}" for folder in OWN_FOLDERS if (manager.root / folder).exists()]
    conditions = ["-not", "-type", "d", *(part for path in OTHERS for part in ("-not", "-path", path))]
    found = manager.run("find", *folders, "-xdev", *conditions).splitlines()
    return {path for path in found if not path.endswith(".pyc")}


def test_installed_by_the_readme_and_gone_again(tmp_path: Path, wheel: Path, task: Task) -> None:
    install_it, edit, enable, drop, look, remove = commands_of_readme()
    with managed(tmp_path / "readme") as manager:
        before = own_files(manager)
        install(manager, wheel, task, install_it)
        assert edit == "sudoedit /etc/edged/edged.yaml"
        service = Service(manager)
        service.write_config()
        manager.shell(enable)
        shutil.copy(task.first, manager.root / "srv/model.pth")
        manager.shell(drop.replace("NAME", "digits").replace("model.pth", "/srv/model.pth"))
        assert service.update_of("model.pth")["state"] == "COMMITTED"
        assert re.search(r"digits +serving +1", manager.shell(look)), manager.shell(look)
        assert service.infer(next(task.test.rglob("*.png"))).status_code == 200

        assert manager.run("systemd-analyze", "verify", UNIT, "edged.socket") == ""
        exposure = manager.run("systemd-analyze", "security", "--threshold=20", UNIT)
        assert float(exposure.splitlines()[-1].split(":")[1].split()[0]) <= 2.0

        manager.shell("make uninstall")
        assert not (manager.root / "opt/edged").exists()
        assert manager.fails("systemctl", "status", UNIT)
        install(manager, wheel, task, install_it)  # config and state were kept
        manager.shell(enable)
        assert service.generation() == 1

        manager.shell(remove)
        shutil.rmtree(manager.root / "srv/calibration")
        left = own_files(manager) - before
        assert left == {f"/srv/{wheel.name}", "/srv/model.pth"}
        for folder in ("opt/edged", "etc/edged", "var/lib/edged", "var/cache/edged", "run/edged"):
            assert not (manager.root / folder).exists()
        assert "edged" not in (manager.root / "etc/passwd").read_text() + (manager.root / "etc/group").read_text()
        assert manager.run("systemctl", "list-units", "--all", "--no-legend", "edged*") == ""


def test_a_folder_that_is_not_ours_is_left_alone(manager: Manager) -> None:
    for target in ("install", "uninstall"):
        told = manager.fails("make", "-C", "/usr/src/edged", target, "PREFIX=/usr/share")
        assert "/usr/share" in told
    assert (manager.root / "usr/share/doc").is_dir()


def test_staged_for_an_image(manager: Manager, wheel: Path) -> None:
    options = "DESTDIR=/srv/image PREFIX=/opt/elsewhere SYSTEMD_VERSION=249 JETSON=1"
    manager.shell(f"make install {options}", PACKAGE=f"/srv/{wheel.name}", PIP_NO_INDEX="1")
    image = manager.root / "srv/image"
    units = image / "usr/local/lib/systemd/system"
    assert "ExecStart=/opt/elsewhere/bin/edged run" in (units / UNIT).read_text()
    assert sorted(path.name for path in (units / f"{UNIT}.d").iterdir()) == ["jetson.conf", "systemd-247.conf"]
    manager.run("mv", "/srv/image/opt/elsewhere", "/opt/elsewhere")
    assert "0.1.0" in manager.run("/opt/elsewhere/bin/edged", "--version")
    manager.fails("grep", "-rI", "/srv/image", "/opt/elsewhere/bin", "/opt/elsewhere/pyvenv.cfg")
    manager.shell("rm -r /srv/image /opt/elsewhere")


def test_the_sandbox_lets_torch_work_and_the_worker_step_back(service: Service, task: Task) -> None:
    service.config["models"][0]["quantization"]["recipe"] = "best"  # long enough to be looked at
    service.begin()
    service.drop(task.first)
    worker = eventually(lambda: service.pid_of("service.worker.main"), "a worker has started")
    eventually(lambda: Path(f"/proc/{worker}/oom_score_adj").read_text() == "1000\n", "the worker stepped back")
    status = psutil.Process(worker)
    assert status.nice() == 19
    assert os.sched_getscheduler(worker) == os.SCHED_IDLE
    assert status.ionice().ioclass == psutil.IOPRIO_CLASS_IDLE
    eventually(lambda: status.num_threads() >= min(2, len(os.sched_getaffinity(0))), "torch has its threads")
    user = int(service.manager.run("id", "-u", "edged"))
    assert status.uids().real == user
    assert service.update_of("first.pt")["state"] == "COMMITTED"

    generation, main = service.pid_of("service.inference.main"), service.manager.main_pid(UNIT)
    scores = [
        int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (generation, service.manager.host_pid(main))
    ]
    assert max(scores) <= 0
    assert "NoNewPrivs:\t1" in Path(f"/proc/{generation}/status").read_text()
    service.says("serving digits generation 1")
    log = service.manager.journal(UNIT)
    assert "workers are confined" in log
    assert "not confined" not in log  # as this worker has reported, too


RUN_ONNX = """
import json, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
session = onnxruntime.InferenceSession("/srv/model.onnx", options, providers=["CPUExecutionProvider"])
(logits,) = session.run(None, {"input": numpy.load("/srv/input.npy")})
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print("ANSWER", json.dumps({"logits": logits.tolist(), "confined": status["NoNewPrivs"].strip()}))
"""


def onnx_network(weights: Tensor) -> onnx.ModelProto:
    """A convolution with weights of 8 bits, as a quantized network would be handed to ONNX Runtime; and their mean."""
    codes, scale = weights.to(torch.int8).numpy(), np.float32(1)
    constants = [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scale, "scale")]
    nodes = [
        onnx.helper.make_node("DequantizeLinear", ["codes", "scale"], ["weight"]),
        onnx.helper.make_node("Conv", ["input", "weight"], ["map"]),
        onnx.helper.make_node("GlobalAveragePool", ["map"], ["logits"]),
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("input", [1, weights.shape[1], 32, 32]), ("logits", [1, len(weights), 1, 1]))
    ]
    graph = onnx.helper.make_graph(nodes, "sandbox", ends[:1], ends[1:], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def test_the_sandbox_lets_onnx_runtime_work(service: Service) -> None:
    weights, image = torch.randint(-128, 128, (16, 3, 3, 3)).float(), torch.rand(1, 3, 32, 32)
    srv = service.manager.root / "srv"
    onnx.save(onnx_network(weights), srv / "model.onnx")
    np.save(srv / "input.npy", image.numpy())
    (srv / "run_onnx.py").write_text(RUN_ONNX)
    command = "ExecStart=\nExecStart=/opt/edged/bin/python /srv/run_onnx.py"
    service.drop_in(f"[Service]\nType=oneshot\nRestart=no\nExecReload=\n{command}\n")
    service.manager.run("systemctl", "start", UNIT)
    log = service.manager.journal(UNIT)
    answer = json.loads(log.rpartition("ANSWER ")[2].splitlines()[0])
    expected = torch.nn.functional.conv2d(image, weights).mean((2, 3), keepdim=True)
    assert torch.allclose(torch.tensor(answer["logits"]), expected, rtol=1e-4, atol=1e-3)
    assert answer["confined"] == "1"


ASK_GRPC = """
import grpc
from service.grpc.messages import METHODS, SERVICE
with grpc.insecure_channel("127.0.0.1:8001") as channel:
    for name in ("ServerReady", "ModelReady"):
        request, response = METHODS[name]
        asked = request(name="digits") if name == "ModelReady" else request()
        answer = channel.unary_unary(f"/{SERVICE}/{name}")(asked.SerializeToString(), timeout=60)
        print(name, response.FromString(answer).ready)
"""


def test_the_sandbox_lets_grpc_listen(service: Service) -> None:
    service.config["serve"]["grpc_port"] = 8001
    service.begin()
    assert service.status()["grpc_address"] == "127.0.0.1:8001"
    (service.manager.root / "srv/ask_grpc.py").write_text(ASK_GRPC)
    answer = service.manager.run("/opt/edged/bin/python", "/srv/ask_grpc.py")
    assert answer.split() == ["ServerReady", "True", "ModelReady", "False"]


def test_kill_9_and_it_serves_the_same_again(service: Service, task: Task) -> None:
    service.begin()
    service.put_live(task.first)
    before = service.manager.main_pid(UNIT)
    children = psutil.Process(service.manager.host_pid(before)).children()
    service.manager.run("kill", "-9", str(before))
    eventually(lambda: service.manager.main_pid(UNIT) not in (0, before), "another main process")
    eventually(lambda: service.property("SubState") == "running", "ready again")
    assert service.property("NRestarts") == "1"
    assert service.generation() == 1  # at once: READY comes after the generation serves
    assert service.infer(next(task.test.rglob("*.png"))).json()["model_version"] == "1"
    assert not psutil.wait_procs(children, 10)[1]


def hangs_until_the_watchdog_acts(service: Service, pid: int) -> None:
    eventually(lambda: service.manager.main_pid(UNIT) not in (0, pid), "the watchdog has acted")
    log = service.manager.journal(UNIT)
    assert "Watchdog timeout (limit 20s)!" in log
    # SIGABRT, or a fault while the stacks are written: faulthandler reads those of threads that are running.
    assert re.search(r"status=(6/ABRT|11/SEGV)", log)
    assert "Failed with result 'watchdog'" in log


def test_a_stopped_process_is_restarted(service: Service, task: Task) -> None:
    service.drop_in("[Service]\nWatchdogSec=20\nTimeoutAbortSec=3\n")
    service.begin()
    service.put_live(task.first)
    pid = service.manager.main_pid(UNIT)
    service.manager.run("kill", "-STOP", str(pid))
    hangs_until_the_watchdog_acts(service, pid)
    eventually(lambda: service.property("SubState") == "running", "ready again")
    assert service.generation() == 1


def test_one_loop_that_hangs_is_enough_and_does_not_keep_the_rest_from_serving(service: Service, task: Task) -> None:
    service.drop_in("[Service]\nWatchdogSec=20\n")
    service.begin()
    service.put_live(task.first)
    pid, image = service.manager.main_pid(UNIT), next(task.test.rglob("*.png"))
    shutil.copy(ROOT / "tests" / "support" / "hung_mount.py", service.manager.root / "srv")
    with service.manager.spawned(SYSTEM_PYTHON, "/srv/hung_mount.py", "/var/lib/edged/drop/digits") as share:
        assert share.stdout is not None
        assert share.stdout.readline() == "mounted\n"
        service.says("no progress: drop folder")
        assert service.infer(image).status_code == 200  # all else goes on: a timer alone would feed the watchdog
        hangs_until_the_watchdog_acts(service, pid)
        assert 'File "' in service.manager.journal(UNIT)  # where each thread was

        # The folder still hangs. That must not end in restarts for ever, nor without the model.
        eventually(lambda: service.property("SubState") == "running", "ready again")
        again = service.manager.main_pid(UNIT)
        assert service.infer(image).status_code == 200
        service.says("serving digits generation 1")
        for _ in range(4):  # beyond the time of the watchdog
            is_fed_again(service)
        assert service.manager.main_pid(UNIT) == again
    service.manager.run("umount", "--lazy", "/var/lib/edged/drop/digits")
    service.drop(task.second)
    assert service.update_of("second.pt")["state"] == "COMMITTED"
    assert service.manager.main_pid(UNIT) == again


def is_fed_again(service: Service) -> None:
    before = service.property("WatchdogTimestampMonotonic")
    eventually(lambda: service.property("WatchdogTimestampMonotonic") != before, "the watchdog is fed")


def test_a_worker_that_needs_too_much_goes_alone(service: Service, task: Task) -> None:
    service.config["worker"] = {"retry_s": 2, "tries": 1000}
    service.begin()
    service.put_live(task.first)
    main, generation = service.manager.main_pid(UNIT), service.pid_of("service.inference.main")
    group = service.manager.root / "sys/fs/cgroup/memory" / service.property("ControlGroup").strip("/")
    figures = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    room = int(figures["total_rss"]) + (40 << 20)  # a worker with torch takes more
    service.manager.run("systemctl", "set-property", "--runtime", UNIT, f"MemoryMax={room}")

    service.drop(task.second)
    deferred = service.update_of("second.pt", "DEFERRED")
    assert (deferred["code"], "lack of memory" in deferred["reason"]) == ("memory", True)
    assert re.search(r"oom_kill [1-9]", (group / "memory.oom_control").read_text())
    assert service.infer(next(task.test.rglob("*.png"))).json()["model_version"] == "1"
    assert (service.manager.main_pid(UNIT), service.pid_of("service.inference.main")) == (main, generation)
    service.says("deferred, it is tried again")

    service.manager.run("systemctl", "set-property", "--runtime", UNIT, "MemoryMax=infinity")
    assert service.update_of("second.pt")["state"] == "COMMITTED"
    assert (service.manager.main_pid(UNIT), service.property("NRestarts")) == (main, "0")


def test_reload(service: Service) -> None:
    service.begin()
    pid = service.manager.main_pid(UNIT)
    service.config["models"].append({**service.config["models"][0], "name": "more"})
    service.write_config()
    service.manager.run("systemctl", "reload", UNIT)
    service.says("more has nothing to serve yet")

    service.config["models"][1]["name"] = "no name at all"
    service.write_config()
    assert "Job for edged.service failed" in service.manager.fails("systemctl", "reload", UNIT)
    assert "models[1].name" in service.manager.journal(UNIT)
    assert [model["name"] for model in service.status()["models"]] == ["digits", "more"]

    service.manager.run("kill", "-HUP", str(pid))  # without the check that the unit makes
    service.says("config not reloaded, the old one stays")
    eventually(lambda: service.property("SubState") == "running", "the reload has ended")
    assert [model["name"] for model in service.status()["models"]] == ["digits", "more"]
    del service.config["models"][1]
    service.write_config()
    service.manager.run("systemctl", "reload", UNIT)
    eventually(lambda: service.property("StatusText") == "digits has nothing to serve yet", "all is well again")
    assert service.manager.main_pid(UNIT) == pid


def test_a_wrong_config_is_not_tried_over_and_over(service: Service) -> None:
    service.begin()
    service.manager.run("systemctl", "stop", UNIT)
    service.config["serve"]["port"] = "many"
    service.write_config()
    service.manager.fails("systemctl", "start", UNIT)
    assert (service.property("ActiveState"), service.property("ExecMainStatus")) == ("failed", "78")
    assert service.property("NRestarts") == "0"
    assert "serve.port" in service.manager.journal(UNIT)


def test_a_state_folder_that_cannot_be_written_is_tried_until_it_can(service: Service) -> None:
    service.begin()
    service.manager.run("systemctl", "stop", UNIT)
    claimed = service.state / "claimed"
    claimed.rmdir()
    claimed.write_text("in the way, as a full disk would be")
    service.manager.run("systemctl", "start", "--no-block", UNIT)
    eventually(lambda: int(service.property("NRestarts")) >= 1, "it is tried again")
    assert "cannot write state_dir /var/lib/edged" in service.manager.journal(UNIT)
    claimed.unlink()
    eventually(lambda: service.property("SubState") == "running", "it runs by itself")


def test_stop_answers_what_was_begun(service: Service, task: Task) -> None:
    service.config["serve"]["deadline_ms"] = 60_000
    service.begin()
    service.put_live(task.first)
    generation, image = psutil.Process(service.pid_of("service.inference.main")), next(task.test.rglob("*.png"))
    generation.suspend()
    with ThreadPoolExecutor(8) as clients:
        asked = [clients.submit(service.infer, image) for _ in range(8)]
        eventually(lambda: service.metric('edged_inference_requests_in_flight{model="digits"}') == 8, "8 are in flight")
        service.manager.run("systemctl", "stop", "--no-block", UNIT)
        eventually(lambda: service.property("SubState") == "stop-sigterm", "it is being stopped")
        eventually(lambda: service.property("StatusText").startswith("stopping"), "it says so")
        with pytest.raises(OSError, match="refused"), socket.socket(socket.AF_UNIX) as late:
            late.connect(str(service.state / "edged.sock"))
        generation.resume()
        answers = [future.result().status_code for future in asked]
    assert answers == [200] * 8
    eventually(lambda: service.property("ActiveState") == "inactive", "it has stopped")
    assert service.property("Result") == "success"


ANSWERED = 'edged_inference_requests_total{code="200",model="digits"}'
CLIENT = """
import json, os, time, urllib.request
codes = {}
while not os.path.exists("/srv/stop"):
    image = open("/srv/image.png", "rb").read()
    request = urllib.request.Request("http://127.0.0.1:8080/v2/models/digits/infer", image)
    request.add_header("Inference-Header-Content-Length", "0")
    try:
        code = urllib.request.urlopen(request, timeout=60).status
    except Exception as error:
        code = repr(error)
    codes[code] = codes.get(code, 0) + 1
    time.sleep(0.01)
print(json.dumps(codes))
"""


def test_with_the_socket_unit_a_restart_refuses_nobody(service: Service, task: Task) -> None:
    root = service.manager.root
    service.begin()
    service.put_live(task.first)
    service.manager.run("systemctl", "stop", UNIT)
    service.manager.run("systemctl", "start", "edged.socket")
    service.manager.run("systemctl", "start", UNIT)
    assert service.status()["address"] == "http://127.0.0.1:8080"
    shutil.copy(next(task.test.rglob("*.png")), root / "srv/image.png")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(service.manager.spawned(SYSTEM_PYTHON, "-c", CLIENT)) for _ in range(3)]
        for _ in range(2):
            pid = service.manager.main_pid(UNIT)
            service.manager.run("systemctl", "restart", UNIT)
            assert service.manager.main_pid(UNIT) != pid
            eventually(lambda: (service.metric(ANSWERED) or 0) > 20, "they go on asking")
        (root / "srv/stop").touch()
        for client in clients:
            told, _ = client.communicate(timeout=120)
            assert list(json.loads(told)) == ["200"], told


def test_the_socket_unit_opens_no_door_that_the_config_may_not(service: Service) -> None:
    service.begin()
    service.manager.run("systemctl", "stop", UNIT)
    override = service.manager.root / "etc/systemd/system/edged.socket.d/test.conf"
    override.parent.mkdir(parents=True, exist_ok=True)
    override.write_text("[Socket]\nListenStream=\nListenStream=0.0.0.0:8080\n")
    service.manager.run("systemctl", "daemon-reload")
    try:
        service.manager.run("systemctl", "start", "edged.socket")
        service.manager.fails("systemctl", "start", UNIT)
        assert service.property("ExecMainStatus") == "78"
        assert "0.0.0.0:8080, which other machines can reach" in service.manager.journal(UNIT)
    finally:
        override.unlink()
        service.manager.run("systemctl", "daemon-reload")


def test_the_jetson_drop_in_opens_its_devices_and_no_others(service: Service) -> None:
    """Some device stands for the memory manager's: what is tested is who may open it, in the sandbox."""
    manager = service.manager
    manager.shell("groupadd --force --system render")  # as Ubuntu has it
    manager.shell("mknod -m 660 /dev/nvmap c 10 229; chgrp video /dev/nvmap; mknod -m 666 /dev/other c 10 200")
    tries = "ExecStartPre=/bin/sh -ec 'exec 3<>/dev/nvmap; ! (exec 4<>/dev/other)'\n"
    service.drop_in("[Service]\n" + tries)
    service.config["models"][0]["name"] = "jetson"
    with pytest.raises(AssertionError, match="Job for edged"):
        service.begin()
    assert "/dev/nvmap: Permission denied" in manager.journal(UNIT) or "Operation not permitted" in manager.journal(
        UNIT
    )
    service.drop_in((ROOT / "systemd/dropins/jetson.conf").read_text() + tries)
    service.begin()
    assert service.property("SubState") == "running"
