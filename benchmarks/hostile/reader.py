"""Read files one after the other in a process that reports what each did: the answer to a path on stdin is a JSON line.

An audit hook sees what the interpreter does while a file is read. Nothing of these events belongs to reading one:
programs, sockets, files that are written, code that is compiled or run, and names that an unpickler looks up.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import own_memory
from benchmarks.hostile.detectors import VALUE, VALUES, detector
from benchmarks.hostile.mutations import valid_files
from benchmarks.hostile.spelling import as_zip
from edged.errors import RejectedError
from edged.models.inspection import inspect_checkpoint

_FORBIDDEN = re.compile(
    r"os\.(system|exec|posix_spawn|spawn|fork|forkpty|kill|remove|rename|rmdir|mkdir|link|symlink|chmod|putenv|startfile)"
    r"|subprocess\.|socket\.|shutil\.|pty\.|ctypes\.|webbrowser\.|urllib\.|ftplib\.|smtplib\.|sqlite3\.|tempfile\."
    r"|pickle\.find_class|marshal\.|import$|exec$|compile$|code\.__new__|function\.__new__|builtins\.(input|breakpoint)"
    r"|sys\._|signal\."
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """The forbidden events of the interpreter while a file is read.

    Attributes:
        events: What happened, as text.
        active: Whether events are recorded.
    """

    def __init__(self) -> None:
        self.events: list[str] = []
        self.active = False
        sys.addaudithook(self._see)  # stays as long as the process

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
        if writes or _FORBIDDEN.match(event):
            self.events.append(f"{event} {arguments!r:.200}")


def read(path: Path, watch: Watch) -> dict[str, Any]:
    """Return what a file did: "outcome", "reason", "events", "bytes" of memory beyond those in use, and "seconds"."""
    before, start = own_memory.restart_peak(), time.perf_counter()
    watch.events, watch.active = [], True
    reason = ""
    try:
        inspect_checkpoint(path)
        outcome = "accepted"
    except RejectedError as error:
        outcome, reason = error.code, str(error)
    except BaseException as error:  # a fault of the reader, which is what the corpus looks for
        outcome, reason = "crash", f"{type(error).__name__}: {error}"[:500]
    watch.active = False
    used = {"bytes": own_memory.beyond(before), "seconds": time.perf_counter() - start}
    return {"outcome": outcome, "reason": reason, "events": watch.events, **used}


def main() -> None:
    """Read the files whose paths come on stdin; the first line is a folder for a file that is read before them."""
    own_memory.limit()
    folder = Path(sys.stdin.readline().strip())
    for form, content in valid_files().items():  # whatever is imported on first use is imported now
        (folder / f"valid.{form}").write_bytes(content)
        inspect_checkpoint(folder / f"valid.{form}")
    (folder / "valid.yolov5").write_bytes(as_zip(detector(), VALUES, VALUE))
    inspect_checkpoint(folder / "valid.yolov5")
    for codec in ("cp437", "raw_unicode_escape", "unicode_escape"):  # of names in zips and in pickles
        codecs.lookup(codec)
    watch = Watch()
    for line in sys.stdin:
        print(json.dumps(read(Path(line.rstrip("\n")), watch)), flush=True)


if __name__ == "__main__":
    main()
