"""Stop the daemon that `make demo KEEP=1` left running, and remove its folder. `make demo-stop` runs this.

The file edged-demo.pid has two lines: the id of the daemon's process and the path of its config. The process is stopped
only if it belongs to this user and runs edged with that config, because the id may belong to another process by now.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import psutil

from benchmarks.demo.daemon import STOP_S
from benchmarks.options import parser_of

PID_FILE = Path("edged-demo.pid")
PREFIX = "edged-demo-"  # of the demo's folders


def main() -> None:
    """Stop the daemon and say so; it is no error if none runs."""
    parser_of(__doc__).parse_args()
    print(stop(PID_FILE))


def remember(file: Path, pid: int, config: Path) -> None:
    """Write the file that `find` and `stop` read."""
    file.write_text(f"{pid}\n{config}\n")


def find(file: Path) -> tuple[psutil.Process, Path] | None:
    """Return the daemon that a file names, and its config; None if it is not running.

    Args:
        file: File that `remember` has written; it may be missing or name a process that is not the daemon.
    """
    try:
        pid, config = file.read_text().splitlines()
        process = psutil.Process(int(pid))
        owned = process.uids().real == os.getuid()
        ours = process.cmdline()[-3:] == ["run", "--config", config] and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, psutil.Error):
        return None
    return (process, Path(config)) if owned and ours else None


def stop(file: Path) -> str:
    """Stop the daemon that a file names, remove its folder and the file, and return what was done."""
    found = find(file)
    if found is None:
        stale = file.exists()
        file.unlink(missing_ok=True)
        return "no demo is running" + (f"; removed {file}, which named none" if stale else "")
    process, config = found
    process.terminate()
    try:
        process.wait(STOP_S)
    except psutil.TimeoutExpired:
        sys.exit(f"the daemon {process.pid} has not stopped within {STOP_S} s; its log is {config.parent}/edged.log")
    if config.parent.name.startswith(PREFIX) and config.parent.parent == Path(tempfile.gettempdir()):
        shutil.rmtree(config.parent)
    file.unlink(missing_ok=True)
    return f"stopped the demo's daemon (process {process.pid}) and removed {config.parent}"


if __name__ == "__main__":
    main()
