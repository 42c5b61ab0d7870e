"""The sandbox of a worker: the process gives up the rights that its job does not need.

A worker parses untrusted files. Even if such a file takes the process over, it can only read its inputs, write its own
folders and report to the supervisor. The parts:

    privileges   no capabilities beyond those for files, no set-user-ID programs, no core dumps
    files        Landlock: only the places below, and in its own folders only regular files
    network      seccomp: no sockets of any kind
    processes    Landlock and seccomp: no signals to others, no look into their memory, no change of their priority

Before it is confined, the process reads nothing but the supervisor's job. This module must not import torch: the
process must still have a single thread.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edged.atomic import as_state_error, make_folder
from edged.calibration.folder import label_path
from edged.calibration.places import find_images
from edged.errors import CalibrationError, SandboxError
from service.system import landlock, privileges, seccomp
from service.system.landlock import DEVICE, LIST, READ, RUN, WRITE, Access, Rule
from service.worker.denied_calls import denied_calls
from service.worker.job import Job

AUTO, REQUIRE, OFF = "auto", "require", "off"
PRIVILEGES, FILES, NETWORK, PROCESSES = "privileges", "files", "network", "processes"
PARTS = (PRIVILEGES, FILES, NETWORK, PROCESSES)

_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/opt/nvidia", "/opt/intel")
# What libraries read when they are loaded, none of it a secret.
_SETTINGS = (
    *(
        "ld.so.cache",
        "ld.so.conf",
        "ld.so.conf.d",
        "ld.so.preload",
        "os-release",
        "localtime",
        "nsswitch.conf",
        "passwd",
    ),
    *("group", "nv_tegra_release", "nvidia-container-runtime", "OpenCL"),
)
_PROC = (
    *("self", "cpuinfo", "meminfo", "stat", "loadavg", "uptime", "version", "filesystems", "devices", "modules"),
    *("sys/kernel", "sys/vm", "driver"),
)
_DEVICES = ("null", "zero", "full", "random", "urandom")
_GPU_DEVICES = ("nvidia*", "nvhost*", "nvmap", "nvgpu", "nvsciipc", "dri", "dxg", "tegra*")
_LIBRARY_VARIABLES = ("LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH")
TEMPORARY = "tmp"

_pinned: list[int] = []  # open until the process ends


@dataclass(frozen=True)
class Part:
    """One part of the sandbox.

    Attributes:
        name: One of PARTS.
        lacking: Why it does not hold, or not all of it; None if it holds.
    """

    name: str
    lacking: str | None = None


def available(version: int | None = None) -> list[Part]:
    """Return what this machine gives a worker.

    Args:
        version: Version of Landlock, 0 for none; None to ask the kernel.
    """
    version = landlock.abi() if version is None else version
    no_seccomp = seccomp.why_not()
    no_landlock = None if version else "the kernel has no Landlock (Linux 5.13 and later, with lsm=landlock)"
    processes = no_seccomp or no_landlock  # without Landlock, /proc shows the memory of the user's other processes
    return [Part(PRIVILEGES), Part(FILES, no_landlock), Part(NETWORK, no_seccomp), Part(PROCESSES, processes)]


def parts_of(mode: str, version: int | None = None) -> list[Part]:
    """Return the parts of the sandbox on this machine by the mode that is configured.

    Args:
        mode: AUTO, REQUIRE or OFF.
        version: Version of Landlock, 0 for none; None to ask the kernel.
    """
    return [Part(name, "worker.sandbox is off") for name in PARTS] if mode == OFF else available(version)


def lacking(parts: Iterable[Part]) -> str:
    """Return which parts do not hold, with their reasons, as one line; "" if all hold."""
    return "; ".join(f"{part.name}: {part.lacking}" for part in parts if part.lacking is not None)


def enter(job: Job, version: int | None = None) -> list[Part]:
    """Confine this process to what its job needs, for good.

    Args:
        job: The job, whose `sandbox` says whether all parts must hold. Its folders are made.
        version: Version of Landlock to use; None for that of the kernel.

    Returns:
        The parts, with those that do not hold.

    Raises:
        SandboxError: A part does not hold that must, or there are other threads already.
        StateError: A folder cannot be made.
    """
    if job.sandbox == OFF:
        return parts_of(OFF)
    version = landlock.abi() if version is None else version
    parts = available(version)
    _require_what_is_configured(job, parts)
    _require_one_thread()
    use_private_temporary_folder(job)
    programs, gpu = _needs_programs(job), _needs_gpu(job)
    parts = _confine(places(job, programs=programs, gpu=gpu), parts, version, programs=programs, gpu=gpu)
    _require_what_is_configured(job, parts)
    return parts


def enter_to_read(files: Iterable[Path]) -> list[Part]:
    """Confine this process to reading untrusted files, as far as this machine can, for good.

    Args:
        files: Paths of the files, which need not exist.

    Returns:
        The parts, with those that do not hold.

    Raises:
        SandboxError: There are other threads already.
    """
    _require_one_thread()
    with suppress(FileNotFoundError):
        tempfile.gettempdir()  # found by writing to it, so now; libraries ask for it when they are imported
    rules = [*(Rule(path, READ) for path in (*interpreter(), *files)), *system(programs=False, gpu=False)]
    return _confine(rules, available(), landlock.abi(), programs=False, gpu=False)


def _confine(rules: Iterable[Rule], parts: Iterable[Part], version: int, *, programs: bool, gpu: bool) -> list[Part]:
    """Set up those parts that this machine has; return the parts, with those that do not hold."""
    rules = list(rules)
    calls = denied_calls(os.getpid(), signals=version < landlock.SCOPES_ABI, programs=programs, unix_sockets=gpu)
    steps: dict[str, Callable[[], object]] = {  # in this order: seccomp refuses what the others do
        PRIVILEGES: _give_up_privileges,
        FILES: lambda: _pinned.extend(landlock.restrict(rules, version)),
        NETWORK: lambda: seccomp.deny(calls),
    }
    held = {part.name: part.lacking for part in parts}
    for name, step in steps.items():
        if held[name] is None:
            try:
                step()
            except OSError as error:
                held[name] = f"cannot be set up: {error.strerror or error}"
    if held[PROCESSES] is None:
        held[PROCESSES] = held[NETWORK] or held[FILES]
    return [Part(name, reason) for name, reason in held.items()]


def _require_what_is_configured(job: Job, parts: Iterable[Part]) -> None:
    if job.sandbox == REQUIRE and (missing := lacking(parts)):
        raise SandboxError(f"worker.sandbox is require, and this machine lacks {missing}; set it to auto")


def _require_one_thread() -> None:
    if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208 - only the number counts
        raise SandboxError("the sandbox would not hold for threads that were started before it; this is a bug of edged")


def _give_up_privileges() -> None:
    privileges.dump_no_core()
    privileges.gain_no_privileges()
    privileges.drop_capabilities((privileges.CAP_DAC_OVERRIDE, privileges.CAP_DAC_READ_SEARCH))


def use_private_temporary_folder(job: Job) -> None:
    """Have libraries make temporary files, and CUDA the kernels that it compiles, in the job's own folder.

    Raises:
        StateError: A folder cannot be made.
    """
    temporary = scratch(job) / TEMPORARY
    for folder in (temporary, job.cache_root, job.engine_folder):
        if folder is not None:
            with as_state_error(folder):
                make_folder(folder)
    # A cache of kernels that generations load, too, would be a way into these.
    os.environ |= {"TMPDIR": str(temporary), "CUDA_CACHE_PATH": str(temporary / "cuda")}
    tempfile.tempdir = None


def scratch(job: Job) -> Path:
    """Return the folder of a job alone, which holds `out` and temporary files."""
    return job.out.absolute().parent


def places(job: Job, *, programs: bool = False, gpu: bool = False) -> Iterator[Rule]:
    """Yield what a worker may reach.

    Args:
        job: Its job; the folders that it writes to exist.
        programs: Whether it may start programs.
        gpu: Whether it may use GPUs.
    """
    private = [path.resolve() for path in job.private]
    for path in interpreter():
        yield from without(private, path, RUN if programs else READ)
    yield from system(programs=programs, gpu=gpu)
    for path in images(job.calibration_dir):
        yield from without(private, path, READ)
    yield Rule(job.checkpoint, READ)
    for folder in (scratch(job), job.cache_root, job.engine_folder):
        if folder is not None:
            yield Rule(folder, WRITE)


def system(*, programs: bool, gpu: bool) -> Iterator[Rule]:
    """Yield what libraries read of the system and its devices."""
    yield Rule(Path("/sys"), READ)
    if programs:  # which have their own /proc/self
        yield Rule(Path("/proc"), READ)
    for folder, names, access in (("/etc", _SETTINGS, READ), ("/proc", _PROC, READ), ("/dev", _DEVICES, DEVICE)):
        yield from (Rule(Path(folder, name), access, pinned=folder == "/proc") for name in names)
    for pattern in _GPU_DEVICES if gpu else ():
        yield from (Rule(path, DEVICE) for path in Path("/dev").glob(pattern))


def interpreter() -> Iterator[Path]:
    """Yield the folders of Python, its packages and the libraries of the system."""
    packages = [sys.modules[name].__path__[0] for name in ("edged", "service")]
    variables = [path for name in _LIBRARY_VARIABLES for path in os.environ.get(name, "").split(os.pathsep)]
    prefixes = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]
    found: list[str | Path] = [*_SYSTEM, *prefixes, *sys.path, *variables, *packages]
    yield from dict.fromkeys(Path(path).resolve() for path in found if path)


def images(place: Path) -> Iterator[Path]:
    """Yield what has to be readable for the images of a place: itself, and where links and lists lead.

    Args:
        place: A folder of images, a data.yaml or a list.
    """
    yield place
    try:
        found = find_images(place)
    except CalibrationError:  # which the worker will report in its turn
        return
    folders: set[Path] = set()
    for file in found.files:
        path = found.root / file
        labels = label_path(path)
        folders |= {path.parent, labels.parent}
        for link in (path, labels):
            if link.is_symlink():
                yield link
    root = place.resolve()
    for folder in sorted(folders):
        if not (real := folder.resolve()).is_relative_to(root):
            yield real


def without(private: Sequence[Path], path: Path, access: Access) -> Iterator[Rule]:
    """Yield rules for a folder that leave out what is private in it: only names of the files in there can be read.

    Args:
        private: Resolved paths.
        path: Folder or file.
        access: What is allowed in it.
    """
    real = path.resolve()
    if not any(hidden.is_relative_to(real) for hidden in private):
        yield Rule(real, access)
        return
    if real in private:
        return
    yield Rule(real, LIST)
    try:
        entries = [*real.iterdir()]
    except OSError:
        return
    for entry in entries:
        if not entry.is_symlink():
            yield from without(private, entry, access)


def _needs_gpu(job: Job) -> bool:
    wanted = job.device != "cpu" or job.serving_device != "cpu" or _needs_programs(job)
    return wanted and any(next(Path("/dev").glob(pattern), None) for pattern in _GPU_DEVICES)


def _needs_programs(job: Job) -> bool:
    """Return whether TensorRT may build an engine, which it does in a process of its own."""
    return job.runtime in ("tensorrt", "auto") and importlib.util.find_spec("tensorrt") is not None
