"""Checks of Python and of torch."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from edged.errors import DeviceError
from service.config.load import Config
from service.doctor.check import FAIL, OK, Check, Machine

_PROBE_S = 120.0
_LEAST_PYTHON, _LEAST_TORCH = (3, 10), (2, 6)


def check_python(_: Machine, __: Config | None) -> Iterator[Check]:
    """Check the version of Python."""
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < _LEAST_PYTHON:
        fix = "`python3.10 -m venv /opt/edged` and install edged there"
        yield Check("python", FAIL, f"{found}; edged needs 3.10", fix)
    else:
        yield Check("python", OK, found)


def check_packages(_: Machine, config: Config | None) -> Iterator[Check]:
    """Check that torch can be imported, which the worker quantizes with."""
    if version_of("torch") is None:
        fix = "install the build of your device: JetPack's wheel, or `pip install torch`"
        yield Check("torch", FAIL, "not installed; models are served without it, but none can be quantized", fix)
        return
    found = probe("service.doctor.torch_probe")
    if isinstance(found, str):
        fix = "`pip install --force-reinstall torch`, on a Jetson JetPack's wheel"
        yield Check("torch", FAIL, f"torch {version_of('torch')} cannot be imported: {found}", fix)
        return
    yield _torch(found, cuda_settings(config))
    vision = version_of("torchvision")  # whether its operators load does not matter: edged uses none of them
    yield Check("torchvision", OK, "not installed, and not needed" if vision is None else vision)


def check_grpc(_: Machine, config: Config | None) -> Iterator[Check]:
    """Check that the packages of gRPC can be imported, if it is configured."""
    if config is None or config.serve.grpc_port is None:
        return
    found = probe("service.doctor.grpc_probe")
    if isinstance(found, str):
        fix = "`pip install --force-reinstall grpcio protobuf`, or remove serve.grpc_port"
        yield Check("grpc", FAIL, f"grpcio {version_of('grpcio')} cannot be imported: {found}", fix)
    else:
        yield Check("grpc", OK, ", ".join(f"{package} {version}" for package, version in found.items()))


def cuda_settings(config: Config | None) -> str:
    """Return the settings that need a GPU, such as "worker.device is cuda"; "" if none does."""
    if config is None:
        return ""
    devices = {"worker.device": config.worker.device, "serve.device": config.serve.device}
    return " and ".join(f"{name} is cuda" for name, device in devices.items() if device == "cuda")


def probe(module: str, *arguments: str) -> dict[str, Any] | str:
    """Run `python -m MODULE ARGUMENTS` and return the JSON object that it prints, or the reason why there is none.

    The probe runs in a process of its own, because a broken build may crash it.
    """
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            [sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=_PROBE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return "it takes too long"
    try:
        found = json.loads(done.stdout)
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    return (done.stderr.strip().splitlines() or ["it exited without output"])[-1]


def version_of(package: str) -> str | None:
    """Return the version of an installed package, or None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _torch(found: dict[str, Any], cuda_wanted: str) -> Check:
    release, built_for = found["torch"], found.get("built_for_cuda")
    build = f"{release} {'with CUDA' if found['cuda'] else 'on the CPU'}"
    if _release(release) < _LEAST_TORCH:
        fix = "`pip install 'torch>=2.6'`, or a newer JetPack"
        return Check("torch", FAIL, f"{build}; before 2.6 reading a checkpoint can run its code (CVE-2025-32434)", fix)
    if cuda_wanted and not found["cuda"]:
        why = "it was built without CUDA" if built_for is None else f"it finds no device for its CUDA {built_for}"
        fix = "install the torch of your device (JetPack's wheels), or choose cpu"
        return Check("torch", FAIL, f"{build}: {why}, and {cuda_wanted}", fix, exit_code=DeviceError.exit_code)
    return Check("torch", OK, build)


def _release(version: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)
