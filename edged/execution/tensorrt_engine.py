"""TensorRT engines as files: built in a child process, found again while they fit, and rebuilt once they do not.

    MODEL-tensorrt_plan-KEY/engine.plan    the engine, as trtexec and other programs read it
    MODEL-tensorrt_plan-KEY/engine.json    what it was built from and for, see `Sidecar`
    timing.cache                      times that TensorRT has measured, so that later builds take less time

MODEL is the start of the model's digest; KEY covers all that an engine fits.

An engine is a cache: it can be deleted at any time. It fits one model, one version of TensorRT and one type of GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.atomic import as_state_error, fsync_tree, make_folder, rename_into_place
from edged.errors import EngineError, MemoryLimitError
from edged.execution.cuda_memory import gpu_name
from edged.execution.engine_cache import TIMINGS, model_digits
from edged.execution.tensorrt_build import (
    FAILED,
    MEMORY,
    MODEL,
    PLAN,
    REQUEST,
    RESULT,
    NotBuiltError,
    import_tensorrt,
)
from edged.json_document import MALFORMED
from edged.version import __version__

_WORKSPACE_BYTES = 1 << 30
_LEAST_WORKSPACE_BYTES = 64 << 20
_DIGITS = 16
SIDECAR = "engine.json"


@dataclass(frozen=True)
class BuildLimits:
    """Limits of a build.

    Attributes:
        memory_bytes: Memory that the build may take; None for no limit. TensorRT can be limited only in the workspace
            of its kernels, which gets half of it. The rest is for the network and for TensorRT itself.
        deadline_s: Seconds that the build may take.
        max_batch: Largest number of images in one call; for models of any number of images.
    """

    memory_bytes: int | None = None
    deadline_s: float = 1800.0
    max_batch: int = 1

    @property
    def workspace_bytes(self) -> int:
        """Bytes of the workspace."""
        if self.memory_bytes is None:
            return _WORKSPACE_BYTES
        return max(_LEAST_WORKSPACE_BYTES, min(_WORKSPACE_BYTES, self.memory_bytes // 2))


@dataclass(frozen=True)
class Sidecar:
    """What an engine was built from, and for.

    Attributes:
        key: Name of the folder.
        model_sha256: Digest of the ONNX model.
        plan_sha256: Digest of the plan.
        tensorrt: Version of TensorRT.
        gpu: Name and compute capability of the GPU.
        integer: Whether the engine computes on integers.
        max_batch: Largest number of images in one call.
        workspace_bytes: Limit of the workspace.
        edged: Version of edged.
    """

    key: str
    model_sha256: str
    plan_sha256: str
    tensorrt: str
    gpu: str
    integer: bool
    max_batch: int
    workspace_bytes: int
    edged: str

    @classmethod
    def read(cls, path: Path) -> Sidecar:
        """Read a sidecar.

        Raises:
            EngineError: It is missing or damaged.
        """
        try:
            data = json.loads(path.read_bytes())
            found = cls(**{field.name: data[field.name] for field in dataclasses.fields(cls)})
        except (OSError, *MALFORMED) as error:
            raise EngineError(f"{path} cannot be read: {error!r:.200}; the engine is built anew") from error
        for field in dataclasses.fields(cls):
            if type(getattr(found, field.name)).__name__ != field.type:
                raise EngineError(f"{path} cannot be read: {field.name} is no {field.type}; the engine is built anew")
        return found


@dataclass(frozen=True)
class BuiltEngine:
    """An engine that fits this device.

    Attributes:
        plan: Path of the plan.
        sidecar: What it was built from.
        reused: Whether it was there already.
    """

    plan: Path
    sidecar: Sidecar
    reused: bool = False


def build_engine(model: bytes, folder: Path, limits: BuildLimits = BuildLimits()) -> BuiltEngine:
    """Return the engine of a model; build it in a child process unless one is there that fits.

    Call it before a model is published, never while a request waits. `open_engine` loads what it returns. A caller with
    candidates treats them so:

        EngineError        the candidate cannot serve; the message is the reason to show, and another engine serves
        MemoryLimitError   the same, or let the update be deferred, because a later try may succeed

    Args:
        model: ONNX model, of the target "tensorrt" (`edged.execution.onnx_model`) and for any number of images, or for
            one.
        folder: Folder of the engines; made if it is missing.
        limits: Limits of the build.

    Raises:
        MemoryLimitError: The build takes more memory than there is, or was killed for it.
        EngineError: TensorRT is missing, cannot build the model, or did not end in time.
        StateError: The folder cannot be written.
    """
    digest = hashlib.sha256(model).hexdigest()
    found = find_engine(digest, folder, limits.max_batch)
    if found is not None:
        return found
    with _workplace(folder) as work:
        (work / MODEL).write_bytes(model)
        request = {"workspace_bytes": limits.workspace_bytes, "max_batch": limits.max_batch}
        (work / REQUEST).write_text(json.dumps(request))
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(folder / TIMINGS, work / TIMINGS)
        result = _run_child(work, limits)
        return _kept(work, folder, digest, limits, result)


def find_engine(model_sha256: str, folder: Path, max_batch: int = 1) -> BuiltEngine | None:
    """Return the engine of a model that fits this device, or None if it has to be built.

    Args:
        model_sha256: Digest of the ONNX model.
        folder: Folder of the engines.
        max_batch: Least number of images that it must take in one call.

    Raises:
        EngineError: TensorRT is missing.
    """
    for path in sorted(folder.glob(f"{model_digits(model_sha256)}-tensorrt_plan-*/{SIDECAR}")):
        with contextlib.suppress(EngineError):
            sidecar = Sidecar.read(path)
            if sidecar.model_sha256 == model_sha256 and sidecar.max_batch >= max_batch:
                plan = path.with_name(PLAN)
                check_engine(plan, sidecar)
                return BuiltEngine(plan, sidecar, reused=True)
    return None


def check_engine(plan: Path, sidecar: Sidecar) -> bytes:
    """Return the bytes of a plan once it is known to fit this device.

    Raises:
        EngineError: It was built for another version of TensorRT or another GPU, is damaged or missing.
    """
    for what, built, here in (
        ("TensorRT", sidecar.tensorrt, str(require_tensorrt().__version__)),
        ("the GPU", sidecar.gpu, gpu_name()),
    ):
        if built != here:
            raise EngineError(f"{plan} was built for {what} {built}, and here is {here}; the engine is built anew")
    try:
        data = plan.read_bytes()
    except OSError as error:
        raise EngineError(f"{plan} cannot be read: {error.strerror}; the engine is built anew") from error
    if hashlib.sha256(data).hexdigest() != sidecar.plan_sha256:
        raise EngineError(f"{plan} is damaged: its digest is not that of its sidecar; the engine is built anew")
    return data


def require_tensorrt() -> Any:
    """Import TensorRT.

    Raises:
        EngineError: It is missing or too old.
    """
    try:
        return import_tensorrt()
    except NotBuiltError as error:
        raise EngineError(str(error)) from error


@contextlib.contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """Make a folder for one build next to the engines, so that the results can be renamed into place."""
    with as_state_error(folder):
        make_folder(folder)
        work = Path(tempfile.mkdtemp(prefix=".build-", dir=folder))
    try:
        with as_state_error(work):
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run_child(work: Path, limits: BuildLimits) -> dict[str, Any]:
    command = [sys.executable, "-m", "edged.execution.tensorrt_build", str(work), str(os.getpid())]
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=limits.deadline_s, check=False
        )
    except subprocess.TimeoutExpired as error:  # the child is dead by now
        raise EngineError(
            f"TensorRT did not build the engine within {limits.deadline_s:g} s; another engine serves"
        ) from error
    try:
        result: dict[str, Any] = json.loads((work / RESULT).read_bytes())
    except (OSError, ValueError):
        result = _died(done.returncode)
    if result.get("failed") == MEMORY:
        raise MemoryLimitError(f"{result['reason']}; free memory, or choose another runtime")
    if "failed" in result:
        raise EngineError(f"{result['reason']}; another engine serves")
    return result


def _died(code: int) -> dict[str, Any]:
    """Describe a child without a result: one that was killed was most likely killed for memory."""
    if code == -9:
        return {"failed": MEMORY, "reason": "the process that builds was killed, most likely for lack of memory"}
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return {"failed": FAILED, "reason": f"the process that builds ended with {how}"}


def _kept(work: Path, folder: Path, digest: str, limits: BuildLimits, result: dict[str, Any]) -> BuiltEngine:
    """Move the plan and its sidecar to their place, both at once."""
    facts = (digest, result["tensorrt"], result["gpu"], str(limits.max_batch), str(limits.workspace_bytes))
    key = f"{model_digits(digest)}-tensorrt_plan-{hashlib.sha256(chr(10).join(facts).encode()).hexdigest()[:_DIGITS]}"
    data = (work / PLAN).read_bytes()
    sidecar = Sidecar(
        key,
        digest,
        hashlib.sha256(data).hexdigest(),
        result["tensorrt"],
        result["gpu"],
        result["integer"],
        limits.max_batch,
        limits.workspace_bytes,
        __version__,
    )
    (work / SIDECAR).write_text(json.dumps(dataclasses.asdict(sidecar), indent=1))
    (work / TIMINGS).replace(folder / TIMINGS)
    for name in (MODEL, REQUEST, RESULT):
        (work / name).unlink()
    fsync_tree(work)
    shutil.rmtree(folder / key, ignore_errors=True)  # an engine that is damaged
    rename_into_place(work, folder / key)
    return BuiltEngine(folder / key / PLAN, sidecar)
