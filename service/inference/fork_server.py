"""`python -m service.inference.fork_server`: import once what a generation needs, and fork one for each request.

A swap then costs no import, and generations share the memory of what is imported. A request is one message with two
file descriptors: the generation's socket, and the write end of a pipe for what it says on stderr.

    request   {"id": n, "arguments": [...]}                     of service.inference.main, without the socket
    answer    {"id": n, "pid": m} or {"id": n, "error": "..."}  the former from the generation itself

All of it happens in one thread, and nothing is computed: no thread survives a fork, but OpenMP would think so.
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

import torch
from PIL import Image

from service.inference import main as generation_child
from service.system.process_title import set_name, set_title
from service.system.processes import die_with_parent

MAX_MESSAGE = 1 << 16
_DESCRIPTORS = 2  # of a request
_GO, _TOLD = b"go", b"told"


def main(arguments: list[str]) -> int:
    """Fork until the supervisor closes the socket."""
    parser = argparse.ArgumentParser(prog="service.inference.fork_server")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--socket-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    set_name("edged-fork")
    _import_the_rest()
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        sys.stderr.write(
            f"{threads} threads after the imports instead of one; a lock that one holds may never be free\n"
        )
    gc.collect()
    gc.freeze()  # the collector writes to whatever it looks at, and what is written to is not shared any more
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


def _import_the_rest() -> None:
    """What is imported only when it is needed first: a package that is replaced meanwhile must not show."""
    Image.init()
    with torch.device("cpu"):
        pass


def _answer(control: socket.socket, identity: int, arguments: Sequence[str], descriptors: Sequence[int]) -> None:
    """Have a process answer that is a child of the supervisor; where there is none, say so."""
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
            # From here on its child is the supervisor's, and nobody else can bury it.
            failure = os.waitstatus_to_exitcode(os.waitpid(between, 0)[1])
            if failure:
                raise OSError(failure, os.strerror(failure))
            ours.send(_GO)
            if ours.recv(len(_TOLD)) != _TOLD:
                raise BrokenPipeError(errno.EPIPE, "the new process ended at once")
    except OSError as error:
        control.send(json.dumps({"id": identity, "error": f"cannot fork: {error.strerror}"}).encode())


class _Birth(NamedTuple):
    """What a new process has until it is a generation.

    Attributes:
        control: To the supervisor.
        leash: To the fork server.
        identity: Of the request.
    """

    control: socket.socket
    leash: socket.socket
    identity: int

    def told(self) -> bool:
        """Tell the supervisor of this process once it is its parent; False if it will never be."""
        with self.control, self.leash:
            if self.leash.recv(len(_GO)) != _GO:
                return False  # the fork server has ended
            self.control.send(json.dumps({"id": self.identity, "pid": os.getpid()}).encode())
            with contextlib.suppress(OSError):
                self.leash.send(_TOLD)
        return True


def _fork_again(birth: _Birth, arguments: Sequence[str], descriptors: Sequence[int]) -> NoReturn:
    """In the process between: have a child that nobody here waits for, and end. The child ends here as well."""
    code = 1
    try:
        try:
            child = os.fork()
        except OSError as error:
            os._exit(error.errno or code)
        if child != 0:
            os._exit(0)
        if birth.told():
            code = _generation(list(arguments), *descriptors)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)  # taking torch apart takes half a second of a core, beside the generation that serves now


def _generation(arguments: list[str], connection: int, errors: int) -> int:
    """Be a generation; returns its exit code."""
    # Until here it is in the fork server's group, where the supervisor looks for what it was not told of. Not a session
    # of its own: the kernel may give each session the same time, and niceness then only counts within it.
    os.setpgid(0, 0)
    os.dup2(errors, sys.stderr.fileno())
    os.close(errors)
    set_name("edged-gen")
    set_title(["service.inference.main", *arguments])
    return generation_child.main([*arguments, "--socket-fd", str(connection)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
