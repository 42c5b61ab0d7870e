"""Checks of the GPU: the CUDA driver, queried without torch, and its device nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edged.errors import AccessError, DeviceError
from service.config.load import Config
from service.doctor.check import FAIL, OK, WARN, Check, Machine
from service.doctor.packages import cuda_settings, probe

# Nodes of a Jetson and of a graphics card; others (nvidia-caps, nvidia-modeset) are not needed for computing.
_NODES = ("nvhost-*", "nvmap", "nvgpu/*/*", "nvidia[0-9]*", "nvidiactl", "nvidia-uvm")
_LISTED = 4

# Remedies by the result of cuInit.
_REMEDIES = {
    2: "free memory, or `sudo reboot`",
    34: "`sudo ldconfig` after removing the stub libcuda.so.1 from the library path",
    100: "`ls -l /dev/nvidia* /dev/nvhost-*`; in a container start it with `--runtime nvidia` or `--gpus all`",
    101: "unset CUDA_VISIBLE_DEVICES: `env -u CUDA_VISIBLE_DEVICES edged doctor`",
    304: "`sudo dmesg` shows the driver's error; `sudo reboot` after an update of the driver",
    802: "`sudo systemctl restart nvidia-fabricmanager`, or wait until the device is up",
    803: "`sudo reboot`: the loaded driver and libcuda.so.1 are of different versions",
    804: "`sudo apt remove 'cuda-compat-*'`, or install the driver that goes with libcuda.so.1",
    999: "`sudo modprobe nvidia_uvm`, then `sudo dmesg`; `sudo reboot` if that does not help",
}
_OTHER_REMEDY = "`sudo dmesg` shows the driver's error"


def check_cuda(machine: Machine, config: Config | None) -> Iterator[Check]:
    """Check that the CUDA driver starts, and say what uses the GPU."""
    found = probe("service.doctor.cuda_probe")
    wanted = cuda_settings(config)
    trouble = FAIL if wanted else WARN
    computing = f"and {wanted}" if wanted else "computing on the CPU"
    if isinstance(found, str):
        yield Check(
            "cuda",
            trouble,
            f"the driver crashed its process: {found}; {computing}",
            _OTHER_REMEDY,
            DeviceError.exit_code,
        )
    elif "missing" in found and not wanted and not _nodes(machine):
        yield Check("cuda", OK, "no CUDA driver and no NVIDIA device here: computing on the CPU")
    elif "missing" in found:
        fix = "`sudo apt install nvidia-l4t-cuda` on a Jetson, else the driver's package; then `sudo ldconfig`"
        yield Check("cuda", trouble, f"{found['missing']}; {computing}", fix, DeviceError.exit_code)
    elif found["code"] != 0:
        detail = f"cuInit answers {found['code']}: {found['words']}; {computing}"
        yield Check("cuda", trouble, detail, _REMEDIES.get(found["code"], _OTHER_REMEDY), DeviceError.exit_code)
    else:
        uses = "" if config is None else f"; {_uses(config)}"
        devices = ", ".join(found["devices"]) or "no device"
        yield Check("cuda", OK, f"driver for CUDA {found['driver']}: {devices}{uses}")


def check_device_nodes(machine: Machine, config: Config | None) -> Iterator[Check]:
    """Check that the user may open the GPU's device nodes."""
    nodes = _nodes(machine)
    if not nodes:
        yield Check("device nodes", OK, "none of an NVIDIA device: no /dev/nvidia*, /dev/nvhost-* or /dev/nvmap")
        return
    closed = [(node, status) for node in nodes if not machine.may_use(status := node.stat())]
    if not closed:
        yield Check("device nodes", OK, f"{len(nodes)} of an NVIDIA device, which {machine.user()} may open")
        return
    wanted = cuda_settings(config)
    names = ", ".join(f"/dev/{node.relative_to(machine.path('/dev'))}" for node, _ in closed[:_LISTED])
    more = f" and {len(closed) - _LISTED} more" if len(closed) > _LISTED else ""
    # Joining the node's group is enough, unless the group is root's and must be changed first.
    groups = sorted({machine.group(status.st_gid) for _, status in closed if status.st_gid != 0}) or ["video"]
    yield Check(
        "device nodes",
        FAIL if wanted else WARN,
        f"{machine.user()} may not open {names}{more}; they belong to group {', '.join(groups)}",
        f"`sudo usermod -aG {','.join(groups)} {machine.user()}`, then start edged anew",
        AccessError.exit_code,
    )


def has_gpu(machine: Machine) -> bool:
    """Return whether there is a device node of NVIDIA."""
    return bool(_nodes(machine))


def _uses(config: Config) -> str:
    """Describe what computes on the GPU if torch can use it."""
    on_gpu = {"auto": "on the GPU if torch finds it", "cuda": "on the GPU", "cpu": "on the CPU"}
    served = [model.name for model in config.models if model.runtime.name == "torch"]
    requests = f", requests of {', '.join(served)} {on_gpu[config.serve.device]} (serve.device)" if served else ""
    return f"quantizing {on_gpu[config.worker.device]} (worker.device){requests}"


def _nodes(machine: Machine) -> list[Path]:
    folder = machine.path("/dev")
    return sorted(node for pattern in _NODES for node in folder.glob(pattern) if not node.is_dir())
