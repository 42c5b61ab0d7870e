"""Changes that benchmarks.serving makes to a daemon for comparison. The daemon's own code does not know them.

Python imports a module of this name at startup if it is on PYTHONPATH. EDGED_ALTERED selects the change:

- "empty": generations serve a network that computes nothing, so that only the overhead of requests remains.
- "spinning": children use OpenMP's default waiting and its default number of threads.
- "leaking": the supervisor leaks some memory for every generation that it retires.
"""

import os
import sys
from typing import Any

LEAK_BYTES = 1 << 20  # a swap
CHILDREN = (
    "service.inference.fork_server",
    "service.worker.main",
)  # generations are forked from the first, so they inherit its changes


def empty_network() -> None:
    """Let a network return zeros once its process is ready; before that its outputs are checked."""
    import torch

    from edged.artifacts.reader import Artifact
    from service.ipc import frames

    ready = False
    load_model, write = Artifact.load_model, frames.write_blocking

    class Empty(torch.nn.Module):
        def __init__(self, artifact: Artifact) -> None:
            super().__init__()
            self.network = load_model(artifact)
            self.classes = artifact.architecture.num_classes

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = images.new_zeros(len(images), self.classes) if ready else self.network(images)
            return outputs

    def watched_write(file: Any, header: dict[str, Any], body: bytes = b"") -> None:
        nonlocal ready
        write(file, header, body)
        ready = ready or header.get("kind") == "ready"

    Artifact.load_model = lambda artifact: Empty(artifact)  # type: ignore[method-assign]
    frames.write_blocking = watched_write


def spin() -> None:
    """Undo the settings of service.system.processes. OpenMP is loaded later and reads them then."""
    for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.pop(name, None)
    os.environ["OMP_NUM_THREADS"] = str(os.cpu_count())  # OpenMP's default


def leak() -> None:
    """Leak memory for every generation that is retired."""
    from service.serving.model_server import ModelServer

    kept: list[bytes] = []
    retire = ModelServer.retire

    async def leaking(self: ModelServer, generation: Any) -> None:
        await retire(self, generation)
        kept.append(os.urandom(LEAK_BYTES))  # not zeros, whose pages would not count

    ModelServer.retire = leaking  # type: ignore[method-assign]


def alter(wanted: str, command: list[str]) -> None:
    """Make the selected change in the processes that it is meant for."""
    if wanted == "empty" and CHILDREN[0] in command:
        empty_network()
    elif wanted == "spinning" and any(child in command for child in CHILDREN):
        spin()
    elif wanted == "leaking" and "run" in command:
        leak()


alter(os.environ.get("EDGED_ALTERED", ""), sys.orig_argv)
