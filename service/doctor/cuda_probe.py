"""`python -m service.doctor.cuda_probe`: query the CUDA driver without torch, and print the result as one line of JSON.

The probe is a process of its own, because a broken driver may crash it.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

_LIBRARY = "libcuda.so.1"


def probe() -> dict[str, Any]:
    """Query the CUDA driver.

    Returns:
        {"missing": reason} without the library. Otherwise "code" and "words" of cuInit's result, and with code 0 also
        "driver" (version) and "devices" (names).
    """
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        return {"missing": str(error)}
    code = int(cuda.cuInit(0))
    found: dict[str, Any] = {"code": code, "words": _words(cuda, code)}
    if code == 0:
        version, count = ctypes.c_int(), ctypes.c_int()
        cuda.cuDriverGetVersion(ctypes.byref(version))
        cuda.cuDeviceGetCount(ctypes.byref(count))
        found["driver"] = f"{version.value // 1000}.{version.value % 1000 // 10}"
        found["devices"] = [_name(cuda, number) for number in range(count.value)]
    return found


def _words(cuda: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    if cuda.cuGetErrorString(code, ctypes.byref(text)) != 0 or text.value is None:
        return "an error that the driver does not describe"
    return text.value.decode(errors="replace")


def _name(cuda: ctypes.CDLL, number: int) -> str:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), number)
    cuda.cuDeviceGetName(name, len(name), device)
    return name.value.decode(errors="replace")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe()) + "\n")
