"""`python -m service.fork_server ...`: imports once all that a generation needs, and forks one for each request.

Imports no sooner than that: what is imported here is in every generation's memory, and all of them share it. One request
is one message with two file descriptors: the generation's socket and the write end of a pipe for what it says on stderr.

    request   {"id": n, "arguments": [...]}        those of service.generation_child without the socket
    answer    {"id": n, "pid": m} or {"id": n, "error": "..."}

Everything here happens in one thread, and nothing is computed: neither threads nor what OpenMP knows of its own survive
a fork.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import sys
import traceback
from collections.abc import Sequence

from PIL import Image

from service import generation_child
from service.children import die_with_parent
from service.process_title import set_name, set_title

MAX_MESSAGE = 1 << 16
_DESCRIPTORS = 2  # of a request


def main(arguments: list[str]) -> int:
    """Fork until the supervisor closes the socket."""
    parser = argparse.ArgumentParser(prog="service.fork_server")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--socket-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    set_name("edged-fork")
    Image.init()  # what reads each format is a module of its own
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        sys.stderr.write(f"{threads} threads after the imports, where there should be one: what they hold is lost\n")
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


def _answer(control: socket.socket, identity: int, arguments: Sequence[str], descriptors: Sequence[int]) -> None:
    if len(descriptors) < _DESCRIPTORS:
        control.send(_told(identity, error="too many open files"))
        return
    leash, generations_leash = socket.socketpair()
    with leash:
        with generations_leash:
            try:
                between = os.fork()
            except OSError as error:
                control.send(_told(identity, error=f"cannot fork: {error.strerror}"))
                return
            if between == 0:
                _fork_again(control, leash, generations_leash, arguments, descriptors)
        os.waitpid(between, 0)
        # The generation's parent has ended, so it is the supervisor's child now, and nobody else can wait for it.
        pid = leash.recv(64)
        if not pid:
            control.send(_told(identity, error="cannot fork: it ended at once"))
            return
        control.send(_told(identity, pid=int(pid)))
        leash.send(b"go")


def _told(identity: int, **answer: object) -> bytes:
    return json.dumps({"id": identity, **answer}).encode()


def _fork_again(
    control: socket.socket,
    leash: socket.socket,
    generations_leash: socket.socket,
    arguments: Sequence[str],
    descriptors: Sequence[int],
) -> None:
    """In the process between: have a child that nobody here waits for, and end. Does not return, nor does the child."""
    code = 1
    try:
        if os.fork() != 0:
            os._exit(0)
        control.close()
        leash.close()
        code = _generation(generations_leash, list(arguments), *descriptors)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)  # taking torch apart takes half a second of a core, beside the generation that serves now


def _generation(leash: socket.socket, arguments: list[str], connection: int, errors: int) -> int:
    """Become a generation, and be one until its end."""
    os.dup2(errors, sys.stderr.fileno())
    os.close(errors)
    leash.send(str(os.getpid()).encode())
    if not leash.recv(2):
        return 1  # the fork server ended: the supervisor never heard of this process
    leash.close()
    os.setsid()  # until here it is in the fork server's group, where the supervisor looks for such processes
    set_name("edged-gen")
    set_title(["service.generation_child", *arguments])
    return generation_child.main([*arguments, "--socket-fd", str(connection)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
