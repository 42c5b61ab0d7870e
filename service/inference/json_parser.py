"""A process that parses the large JSON of requests for a generation, which goes on computing meanwhile.

    python -m service.inference.json_parser PARENT

It reads a frame for each JSON, and answers it with one: a request without the data of its input, in JSON, and then the
data as bytes. What parsing takes is bounded, and all of it is returned once the process ends. Imports no engine.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedIOBase
from typing import Any

import numpy as np
import psutil

from service.inference.inputs import as_numbers, as_texts
from service.inference.requests import parse_json
from service.ipc import frames
from service.ipc.messages import RequestError
from service.system.processes import die_with_parent

NUMBERS, TEXTS = "numbers", "texts"  # kinds of data
_NICE = 10  # a tenth of a core while all are busy: the generation computes first
_MOST_REST = 256 << 10  # bytes of JSON without the data of the input
# Memory for each byte of JSON: a number of four characters is an object of 24 bytes, in a list of 8, and then 8 bytes.
_MEMORY_RATE = 16
_MEMORY_BYTES = 64 << 20  # in addition


def main(arguments: Sequence[str]) -> int:
    """Answer frames until the standard input ends."""
    die_with_parent(int(arguments[0]))
    os.nice(_NICE)
    gc.disable()  # it looks at each list again and again while they become many, and JSON has no cycles
    answer_frames(sys.stdin.buffer, sys.stdout.buffer)  # type: ignore[arg-type]  # they are buffered
    return 0


def answer_frames(requests: BufferedIOBase, answers: BufferedIOBase) -> None:
    """Answer each frame of a stream."""
    while (frame := frames.read_blocking(requests)) is not None:
        text = frame[1]
        try:
            with _limited_memory(len(text)):
                header, parts = split(text)
        except RequestError as error:
            header, parts = {"error": str(error), "status": error.status}, []
        except MemoryError:
            header, parts = {"error": _too_complex(len(text)), "status": 413}, []
        del frame, text
        frames.write_blocking(answers, header, b"".join(parts))
        del parts


def split(text: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Parse a request, and separate the data of its input.

    Args:
        text: JSON.

    Returns:
        What describes the data; and the JSON of all else, followed by the data.

    Raises:
        RequestError: The text is no JSON object, or much of it is not the data of one input.
    """
    request = parse_json(text)
    data = _take_data(request)
    header: dict[str, Any] = {}
    parts: list[bytes] = []
    if (numbers := as_numbers(data)) is not None:
        header = {"kind": NUMBERS, "dtype": numbers.dtype.str, "shape": numbers.shape}
        parts = [numbers.tobytes()]
    elif (texts := as_texts(data)) is not None:
        parts = [str(each).encode("utf-8", "surrogatepass") for each in texts]
        header = {"kind": TEXTS, "sizes": [len(each) for each in parts]}
    rest = json.dumps(request).encode()
    if len(rest) > _MOST_REST:
        raise RequestError(
            f"the body has {len(rest)} bytes of JSON besides the data of one input; send at most {_MOST_REST}", 413
        )
    return {**header, "json_bytes": len(rest)}, [rest, *parts]


def join(header: Mapping[str, Any], content: bytes) -> dict[str, Any]:
    """Return the request that `split` has parsed.

    The data of its input is then an array, or a list of bytes.

    Args:
        header: What describes the data.
        content: The JSON of all else, followed by the data.
    """
    view = memoryview(content)[header["json_bytes"] :]
    request: dict[str, Any] = json.loads(content[: header["json_bytes"]])
    if header.get("kind") == NUMBERS:
        request["inputs"][0]["data"] = np.frombuffer(view, np.dtype(header["dtype"])).reshape(header["shape"])
    elif header.get("kind") == TEXTS:
        texts, start = [], 0
        for size in header["sizes"]:
            texts.append(view[start : start + size])
            start += size
        request["inputs"][0]["data"] = texts
    return request


def _take_data(request: dict[str, Any]) -> Any:
    """Remove the data of the only input from a request, and return it; None if it has none."""
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        return None
    return inputs[0].pop("data", None)


@contextmanager
def _limited_memory(size: int) -> Iterator[None]:
    """Let this process have as much memory as JSON of a size may take; then parsing ends with a MemoryError."""
    limit = psutil.Process().memory_info().vms + _MEMORY_RATE * size + _MEMORY_BYTES
    before, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, most))  # or the next JSON could be too large to be received


def _too_complex(size: int) -> str:
    return (
        f"{size} bytes of JSON have so many small values that they take over {_MEMORY_RATE} times their size; send"
        " tensors as bytes, with the binary tensor data extension"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
