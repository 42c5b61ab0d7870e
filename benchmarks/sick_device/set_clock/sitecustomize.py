"""A wall clock that benchmarks.sick_device.clock sets while a process runs. Other clocks and files stay as they are.

Python imports a module of this name at startup if it is on PYTHONPATH. EDGED_CLOCK is a file with the seconds that the
clock is ahead. All that the supervisor and a generation know of the time of day comes from time.time.
"""

import os
import time

_real, _file = time.time, os.environ["EDGED_CLOCK"]


def _set_clock() -> float:
    with open(_file) as file:  # noqa: PTH123 - pathlib would be imported by every process
        return _real() + int(file.read() or 0)


time.time = _set_clock
