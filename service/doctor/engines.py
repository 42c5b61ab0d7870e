"""Checks of the engines that compute requests: which are there, and how well the processor computes on integers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from edged.errors import UnavailableError
from edged.execution.onnx_providers import NAMES
from edged.execution.processor import VNNI, processor_saturates
from service.config.load import Config, ModelConfig
from service.doctor.accelerator import has_gpu
from service.doctor.check import FAIL, OK, WARN, Check, Machine
from service.doctor.packages import probe, version_of

_INSTALL = {
    "onnxruntime": "`pip install onnxruntime`",
    "openvino": "`pip install openvino`",
    "torch": "`pip install torch`",
    "tensorrt": "`pip install tensorrt`",
}
_INSTALL_ON_JETSON = _INSTALL | {
    "onnxruntime": (
        "`pip install onnxruntime`; for the GPU `pip uninstall onnxruntime`, then the onnxruntime-gpu wheel of your"
        " JetPack from NVIDIA's index for Jetson"
    ),
    "torch": "the torch wheel of your JetPack, not `pip install torch`",
    "tensorrt": "`sudo apt install python3-libnvinfer`",
}
_DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "torch": ("torch",),
    "tensorrt": ("tensorrt",),
}


class _Found(NamedTuple):
    """An engine that can be imported.

    Attributes:
        version: Its version; "" if another check shows it.
        computes_on: ONNX Runtime's providers, or OpenVINO's devices.
    """

    version: str
    computes_on: tuple[str, ...]


class _Broken(NamedTuple):
    """An engine that cannot be imported.

    Attributes:
        reason: What its import said.
    """

    reason: str


def check_engines(machine: Machine, config: Config | None) -> Iterator[Check]:
    """Check that engines can be imported, and that the ones that the config names are there."""
    install = _INSTALL if machine.read("/etc/nv_tegra_release") is None else _INSTALL_ON_JETSON
    found = {engine: _find(engine) for engine in _INSTALL}
    there = [_described(engine, state) for engine, state in found.items() if isinstance(state, _Found)]
    missing = [engine for engine in found if found[engine] is None and (engine != "tensorrt" or has_gpu(machine))]
    detail = "; ".join([*there, *(f"{engine} is not installed" for engine in missing)])
    hint = ", ".join(f"{engine}: {install[engine]}" for engine in missing)
    if isinstance(found["onnxruntime"], _Found):
        yield Check("runtimes", OK, detail, hint)
    else:
        hint = hint or install["onnxruntime"]
        yield Check("runtimes", WARN, f"{detail}, so requests take more memory and time", hint)
    for engine, state in found.items():
        if isinstance(state, _Broken):
            fix = f"`pip install --force-reinstall {engine}`, or `pip uninstall {engine}`"
            yield Check(engine, WARN, f"it cannot be imported: {state.reason}", fix)
    for model in () if config is None else config.models:
        yield from _configured(model, found, install)


def _configured(
    model: ModelConfig, found: Mapping[str, _Found | _Broken | None], install: Mapping[str, str]
) -> Iterator[Check]:
    """Check that a model's engine is there, with the providers that the model names."""
    engine = model.runtime.name
    if engine == "auto" or engine not in found:
        return
    state = found[engine]
    if not isinstance(state, _Found):
        fix = f"{install[engine]}, or set models[].runtime.name: auto"
        detail = f"it is {engine}, which cannot be used here, so no checkpoint of the model can be quantized"
        if engine != "tensorrt":  # ONNX Runtime stands in for it
            detail += ", and no generation of it can start"
        yield Check(f"runtime of {model.name}", FAIL, detail, fix, UnavailableError.exit_code)
    elif engine == "onnxruntime" and (
        missing := [name for name in model.runtime.providers if NAMES[name] not in state.computes_on]
    ):
        fix = (
            f"`pip uninstall {engine}`, then the {engine}-gpu of your device, or set models[].runtime.providers: [cpu]"
        )
        detail = f"this {engine} has no provider {' and '.join(missing)}: what is left of the list computes"
        yield Check(f"runtime of {model.name}", WARN, detail, fix)


def check_processor(machine: Machine, _: Config | None) -> Iterator[Check]:
    """Check whether the processor sums products of 8-bit integers exactly."""
    text = machine.read("/proc/cpuinfo") or ""
    flags = set(" ".join(re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)).split())
    if flags & VNNI:
        yield Check("integers", OK, f"the processor has VNNI ({', '.join(sorted(flags & VNNI))})")
    elif "asimddp" in flags:
        yield Check("integers", OK, "the processor has the dot product of 8-bit integers (asimddp)")
    elif processor_saturates(machine.root, "x86_64" if "avx2" in flags else "other"):
        detail = (
            "the processor has no VNNI: integers take about twice the time, and with weights of 8 bits, which would"
            " saturate, a third more in exact kernels"
        )
        yield Check("integers", OK, detail, "nothing: `quantization: {bits: 7}` or fewer cannot saturate")
    else:
        yield Check("integers", OK, "the processor names no instructions for products of 8-bit integers")


def _find(engine: str) -> _Found | _Broken | None:
    """Import an engine in a process of its own; None if it is not installed."""
    if not any(map(version_of, _DISTRIBUTIONS[engine])):
        return None
    if engine == "torch":  # another check imports it
        return _Found("", ())
    answer = probe("service.doctor.engine_probe", engine)
    if isinstance(answer, str):
        return _Broken(answer)
    return _Found(answer["version"], tuple(answer["computes_on"]))


def _described(engine: str, found: _Found) -> str:
    return f"{engine} {found.version} with {', '.join(found.computes_on)}" if found.version else engine
