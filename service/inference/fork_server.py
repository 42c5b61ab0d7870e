"""`python -m service.inference.fork_server`: import once what generations need, and fork one for each request.

A swap then needs no imports, and generations share the memory of the imported modules. A request is one message with
two file descriptors: the generation's socket, and the write end of a pipe for its stderr.

    request   {"id": n, "arguments": [...]}                     for service.inference.main, without the socket
    answer    {"id": n, "pid": m} or {"id": n, "error": "..."}  the former from the generation itself

The process has one thread and computes nothing: threads do not survive a fork, and OpenMP would rely on them.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import json
import os
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from PIL import Image

from service.inference import main as generation_child
from service.system.pillow_warnings import ignore_warnings_of_pillow
from service.system.process_title import set_name, set_title
from service.system.processes import die_with_parent, leave_to_idle_time

MAX_MESSAGE = 1 << 16
_DESCRIPTORS = 2  # that come with a request
_GO, _ANNOUNCED = b"go", b"announced"


def main(arguments: list[str]) -> int:
    """Fork until the supervisor closes the socket."""
    parser = argparse.ArgumentParser(prog="service.inference.fork_server")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--socket-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    set_name("edged-fork")
    ignore_warnings_of_pillow()
    _import_lazy_modules()
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        sys.stderr.write(
            f"{threads} threads after the imports instead of one; a lock that one of them holds may never be released\n"
        )
    gc.collect()
    gc.freeze()  # the collector writes to the objects it visits, which would copy their pages
    with socket.socket(fileno=options.socket_fd) as control:
        while True:
            text, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE, _DESCRIPTORS)
            if not text:
                return 0
            request = json.loads(text)
            try:
                _answer(control, request["id"], request["arguments"], descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)


def _import_lazy_modules() -> None:
    """Import what is otherwise imported on first use, so that an upgrade of a package does not affect later forks.

    Engines are imported by the generations themselves: ONNX Runtime starts a thread, which a fork would not have.
    """
    Image.init()
    np.random.default_rng()


def _answer(control: socket.socket, identity: int, arguments: Sequence[str], descriptors: Sequence[int]) -> None:
    """Fork a generation that announces itself to the supervisor; send an error if that fails."""
    try:
        if len(descriptors) < _DESCRIPTORS:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                between = os.fork()
                if between == 0:
                    ours.close()
                    _fork_again(_Birth(control, theirs, identity), arguments, descriptors)
            # From here on its child belongs to the supervisor, which alone can reap it.
            failure = os.waitstatus_to_exitcode(os.waitpid(between, 0)[1])
            if failure:
                raise OSError(failure, os.strerror(failure))
            ours.send(_GO)
            if ours.recv(len(_ANNOUNCED)) != _ANNOUNCED:
                raise BrokenPipeError(errno.EPIPE, "the new process exited at once")
    except OSError as error:
        control.send(json.dumps({"id": identity, "error": f"cannot fork: {error.strerror}"}).encode())


class _Birth(NamedTuple):
    """Connections of a new process until it becomes a generation.

    Attributes:
        control: Socket to the supervisor.
        leash: Socket to the fork server.
        identity: Id of the request.
    """

    control: socket.socket
    leash: socket.socket
    identity: int

    def announce(self) -> bool:
        """Report this process to the supervisor once that is its parent; return False if it never will be."""
        with self.control, self.leash:
            if self.leash.recv(len(_GO)) != _GO:
                return False  # the fork server has exited
            self.control.send(json.dumps({"id": self.identity, "pid": os.getpid()}).encode())
            with contextlib.suppress(OSError):
                self.leash.send(_ANNOUNCED)
        return True


def _fork_again(birth: _Birth, arguments: Sequence[str], descriptors: Sequence[int]) -> NoReturn:
    """Fork the generation from the intermediate process, which exits without waiting for it. Neither returns."""
    code = 1
    try:
        try:
            child = os.fork()
        except OSError as error:
            os._exit(error.errno or code)
        if child != 0:
            os._exit(0)
        if birth.announce():
            code = _generation(list(arguments), *descriptors)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # The kernel takes milliseconds to take the memory back, while another generation serves, on the very core that
        # closed the socket: the supervisor's.
        leave_to_idle_time(os.getpid())
        os._exit(code)  # finalizing torch takes half a second of a core, which the generation in service needs


def _generation(arguments: list[str], connection: int, errors: int) -> int:
    """Serve as a generation, and return its exit code."""
    # Until here it is in the fork server's process group, where the supervisor looks for unannounced processes. It gets
    # no session of its own: the kernel may share time evenly among sessions, and niceness then counts only within one.
    os.setpgid(0, 0)
    os.dup2(errors, sys.stderr.fileno())
    os.close(errors)
    set_name("edged-gen")
    set_title(["service.inference.main", *arguments])
    return generation_child.main([*arguments, "--socket-fd", str(connection)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
