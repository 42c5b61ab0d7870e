"""`edged doctor`: looks for what would keep edged from working on this machine, and says what to do about it.

Here too nothing is imported that could take the process down with it: torch is tried in a child.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.locate import DEFAULT_CONFIG, find_config
from service.units import format_bytes

if TYPE_CHECKING:
    from service.config import ServeConfig

OK, WARN, FAIL = "ok", "warn", "fail"

# `import torch` and one convolution take 250 MB, a serving ResNet-50 about 400 (measured).
_MEMORY_WARN = 1 << 30
_DISK_WARN = 2 << 30
_DISK_FAIL = 200 << 20
_INSTANCES_WARN = 16
_PROBE_S = 120.0


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        level: "ok", "warn" or "fail".
        detail: What was found, one line.
        fix: What to do; "" if nothing.
    """

    name: str
    level: str
    detail: str
    fix: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def diagnose(config: str | None = None) -> list[Check]:
    """Run all checks.

    Args:
        config: Config file as given by the user; None for the default one.
    """
    return [check_python(), *check_packages(), check_memory(), *check_inotify(), *_check_config(config)]


def check_python() -> Check:
    """Which Python runs this."""
    return Check("python", OK, f"{platform.python_version()} at {sys.executable}")


def check_packages() -> Iterator[Check]:
    """Whether torch and torchvision can be imported, and whether torchvision's compiled operators fit torch."""
    if missing := [package for package in ("torch", "torchvision") if _version(package) is None]:
        fix = "install the builds of your device (JetPack's wheels, or pip install torch torchvision)"
        yield Check("torch", FAIL, f"{' and '.join(missing)} not installed", fix)
        return
    probe = None
    try:
        # Fixed arguments; a process of its own, because a broken build may take its process with it.
        probe = subprocess.run(
            [sys.executable, "-m", "service.torch_probe"], capture_output=True, text=True, timeout=_PROBE_S, check=False
        )
        found = json.loads(probe.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        why = (probe.stderr.strip().splitlines() or ["it ended without a word"])[-1] if probe else "it takes too long"
        yield Check("torch", FAIL, f"torch {_version('torch')} cannot be imported: {why}", "install it again")
        return
    device = "with CUDA" if found["cuda"] else "on the CPU"
    yield Check("torch", OK, f"{found['torch']} {device}")
    operators = "" if found["operators"] else ", its compiled operators do not load: edged defines what it needs itself"
    yield Check("torchvision", OK, f"{found['torchvision']}{operators}")


def check_memory() -> Check:
    """Enough memory for a worker beside a serving generation."""
    available, total = _memory()
    detail = f"{format_bytes(available)} of {format_bytes(total)} available"
    if available < _MEMORY_WARN:
        fix = "stop other programs, add swap, or set worker.memory_max and swap: resource"
        return Check("memory", WARN, f"{detail}; a worker and a generation want 1 GiB", fix)
    return Check("memory", OK, detail)


def check_inotify(proc: Path = Path("/proc/sys/fs/inotify")) -> Iterator[Check]:
    """Limits of inotify; without it the drop folder is polled."""
    try:
        instances = int((proc / "max_user_instances").read_text())
        queued = int((proc / "max_queued_events").read_text())
    except (OSError, ValueError):
        yield Check("inotify", WARN, "not available", "nothing, the drop folder is looked into every 2 s instead")
        return
    detail = f"{instances} instances, queue of {queued} events"
    if instances < _INSTANCES_WARN:
        yield Check("inotify", WARN, detail, "sysctl fs.inotify.max_user_instances=128")
    else:
        yield Check("inotify", OK, detail)


def check_folder(name: str, path: Path) -> Iterator[Check]:
    """A folder, or the nearest one above it that exists, is writable and has space."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        fix = f"make it writable for this user (uid {os.getuid()}), or choose another {name}"
        yield Check(name, FAIL, f"{existing} is not writable", fix)
        return
    made = "" if existing == path else f"{path} will be created; "
    free = shutil.disk_usage(existing).free
    level = OK if free >= _DISK_WARN else WARN if free >= _DISK_FAIL else FAIL
    fix = "" if level == OK else "free some space there: an update needs about twice its checkpoint"
    yield Check(name, level, f"{made}{format_bytes(free)} free", fix)


def _check_config(given: str | None) -> Iterator[Check]:
    from edged.errors import ConfigError

    path = find_config(given)
    if given is None and path == Path(DEFAULT_CONFIG) and not path.exists():
        yield Check(
            "config", WARN, f"{path} does not exist", "write one, see configs/edged.yaml, or give --config FILE"
        )
        return
    try:
        from service.config import load_config

        config = load_config(path)
    except ImportError as error:
        yield Check("config", FAIL, f"cannot be read: {error}", "pip install edged again")
        return
    except ConfigError as error:
        for line in str(error).splitlines():
            yield Check("config", FAIL, line, "correct this line")
        return
    yield Check("config", OK, f"{path}, {len(config.models)} model(s)")
    yield from check_folder("state_dir", config.state_dir)
    for model in config.models:
        yield check_images(model.name, model.calibration.dir)
    yield check_token(config.serve)


def check_images(model: str, folder: Path) -> Check:
    """A calibration folder holds enough files that look like images."""
    suffixes = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
    count = sum(
        1
        for _, _, names in os.walk(folder)
        for name in names
        if os.path.splitext(name)[1].lower() in suffixes  # noqa: PTH122 - a name, not a path
    )
    detail = f"{count} images in {folder}"
    if count < 32:
        return Check(
            f"calibration of {model}", FAIL, detail, "put at least 32 there, better 512 to 1024 of what it will see"
        )
    if count < 256:
        return Check(f"calibration of {model}", WARN, detail, "more images give a more accurate model: 512 to 1024")
    return Check(f"calibration of {model}", OK, detail)


def check_token(serve: ServeConfig) -> Check:
    """Beyond this machine, everybody may ask the model without a token; nobody may administer without one."""
    if not serve.public:
        return Check("serve", OK, f"{serve.host}: this machine only")
    fix = "put a proxy with TLS and authentication before it, or keep serve.host at 127.0.0.1"
    users = "whoever reaches it and has a token" if serve.inference_token_file else "everybody who reaches it"
    token = "with" if serve.admin_token else "without"
    return Check("serve", WARN, f"{serve.host}: {users} may use the models; administration {token} token", fix)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _memory() -> tuple[int, int]:
    import psutil

    memory = psutil.virtual_memory()
    return memory.available, memory.total
