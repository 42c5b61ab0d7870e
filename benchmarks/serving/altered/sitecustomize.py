"""Changes that benchmarks.serving makes to a daemon for comparison. The daemon's own code does not know them.

Python imports a module of this name at startup if it is on PYTHONPATH. EDGED_ALTERED selects the change:

- "empty": generations serve a network that computes nothing, so that the overhead of requests remains.
- "bare": likewise, and images are neither decoded nor normalized, so that only the overhead of requests remains.
- "spinning": children use OpenMP's default waiting and its default number of threads.
- "leaking": the supervisor leaks some memory for every generation that it retires.
- "dripping": likewise, and a descriptor of shared memory, a thread and a process.
"""

import os
import subprocess
import sys
import threading
from typing import Any

LEAK_BYTES = 1 << 20  # a swap
CHILDREN = (
    "service.inference.fork_server",
    "service.worker.main",
)  # generations are forked from the first, so they inherit its changes


def empty_network() -> None:
    """Let an engine return zeros once its process is ready; before that its outputs are checked."""
    import numpy as np

    from edged.artifacts import engines
    from service.ipc import frames

    ready = False
    open_executor, write = engines.open_executor, frames.write_blocking

    def open_empty(artifact: Any, *arguments: Any, **options: Any) -> Any:
        executor = open_executor(artifact, *arguments, **options)
        compute, classes = executor.run, artifact.architecture.num_classes

        def run(images: Any) -> Any:
            return np.zeros((len(images), classes), np.float32) if ready else compute(images)

        executor.run = run  # type: ignore[method-assign]
        return executor

    def watched_write(file: Any, header: dict[str, Any], body: bytes = b"") -> None:
        nonlocal ready
        write(file, header, body)
        ready = ready or header.get("kind") == "ready"

    engines.open_executor = open_empty
    frames.write_blocking = watched_write


def unprepared_images() -> None:
    """Let files and pixels become zeros at once. Prepared tensors are copied and checked as before."""
    import numpy as np

    from edged.calibration import images

    def decode(data: bytes, spec: Any, *_: Any) -> Any:
        pixels = np.zeros((spec.channels, spec.size, spec.size), np.uint8)
        return images.Decoded(pixels, spec.size, spec.size)

    def normalize(pixels: Any, spec: Any) -> Any:
        return np.zeros(pixels.shape, np.float32)

    images.decode, images.normalize = decode, normalize


def spin() -> None:
    """Undo the settings of service.system.processes. OpenMP is loaded later and reads them then."""
    for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.pop(name, None)
    os.environ["OMP_NUM_THREADS"] = str(os.cpu_count())  # OpenMP's default


def leak(everything: bool) -> None:
    """Leak memory for every generation that is retired; if `everything`, all else that can leak, too."""
    from service.serving.model_server import ModelServer

    kept: list[Any] = []
    retire = ModelServer.retire

    async def leaking(self: ModelServer, generation: Any) -> None:
        await retire(self, generation)
        kept.append(os.urandom(LEAK_BYTES))  # not zeros, whose pages would not count
        if everything:
            os.memfd_create("leaked")
            threading.Thread(target=threading.Event().wait, daemon=True).start()
            kept.append(subprocess.Popen(["sleep", "3600"]))

    ModelServer.retire = leaking  # type: ignore[method-assign]


def alter(wanted: str, command: list[str]) -> None:
    """Make the selected change in the processes that it is meant for."""
    if wanted in ("empty", "bare") and CHILDREN[0] in command:
        empty_network()
        if wanted == "bare":
            unprepared_images()
    elif wanted == "spinning" and any(child in command for child in CHILDREN):
        spin()
    elif wanted in ("leaking", "dripping") and "run" in command:
        leak(everything=wanted == "dripping")


alter(os.environ.get("EDGED_ALTERED", ""), sys.orig_argv)
