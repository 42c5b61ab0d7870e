"""Fork a generation for each request, from a process that has imported what generations need. For benchmarks.starts.

Usage: python -m benchmarks.serving.forker DESCRIPTOR MODULE ...
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys

from service.inference.main import main as serve


def main() -> None:
    """Import the modules, report it, and fork until the socket is closed."""
    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # the collector writes to the objects that it visits, which would copy their pages
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped at once
    with socket.socket(fileno=int(sys.argv[1])) as control:
        control.send(b"\0")
        while True:
            text, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 1)
            if not text:
                return
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                arguments = ["--parent", str(parent), "--socket-fd", str(descriptors[0])]
                os._exit(serve([*json.loads(text), *arguments]))
            control.send(str(pid).encode())
            os.close(descriptors[0])


if __name__ == "__main__":
    main()
