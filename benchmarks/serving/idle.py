"""Measure an idle edged: CPU seconds and wake-ups per hour of the supervisor and its generations.

A daemon with default settings puts a model live and is then observed through /proc for some minutes without requests.
CPU time is user and system time of all threads; a wake-up is a voluntary context switch. Usage: python -m
benchmarks.idle --minutes N [--pid PID]
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import yaml

from benchmarks.demo import digits
from benchmarks.demo.daemon import command, daemon, submit
from benchmarks.options import parser_of

SETTLE_S = 20.0  # time for the rest of an update: the last response, the exit of the worker
GOAL_S = 2.0  # CPU seconds per hour


@dataclass(frozen=True)
class Spent:
    """Resources that a process has used.

    Attributes:
        cpu_s: CPU seconds of all threads.
        wakeups: Voluntary context switches of all threads.
    """

    cpu_s: float
    wakeups: int

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.cpu_s - other.cpu_s, self.wakeups - other.wakeups)

    def hourly(self, seconds: float) -> Spent:
        """Return the amount per hour if `self` was used in `seconds`."""
        return Spent(self.cpu_s * 3600 / seconds, round(self.wakeups * 3600 / seconds))


def main() -> None:
    """Measure and print a table."""
    parser = parser_of(__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="length of the observation (5)")
    parser.add_argument("--pid", type=int, help="a running supervisor to observe instead of a new daemon")
    options = parser.parse_args()
    if options.pid is not None:
        show(watch(options.pid, options.minutes * 60))
        return
    with tempfile.TemporaryDirectory(prefix="edged-idle-") as made:
        folder = Path(made) / "edged"
        folder.mkdir()
        config = write_config(folder)
        with daemon(config):
            submit(config, "digits", write_checkpoint(folder / "digits.pth"))
            time.sleep(SETTLE_S)
            show(watch(find_supervisor(config), options.minutes * 60))


def write_config(folder: Path) -> Path:
    """Write a config with defaults except for what a small model in a temporary folder needs, and return its path."""
    data = digits.load()
    digits.write_folders(data, digits.TRAIN, folder / "images")
    model = {
        "name": "digits",
        "calibration": {"dir": "images", "images": 64},
        "input": {"size": digits.SIDE, "resize": digits.SIDE},
        "gates": {"min_agreement": 0},
    }
    path = folder / "edged.yaml"
    path.write_text(yaml.safe_dump({"state_dir": "state", "serve": {"port": 0}, "models": [model]}))
    return path


def write_checkpoint(path: Path) -> Path:
    """Train a network briefly, because its outputs are not used, and save its state dict."""
    torch.save(digits.train(digits.load(), epochs=1, architecture=digits.RESNET18).state_dict(), path)
    return path


def find_supervisor(config: Path) -> int:
    """Return the id of the process that runs the daemon with this config."""
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if str(config) in line and "run" in line:
            return int(process.pid)
    raise SystemExit(f"no daemon is running with {config}: {command('status', '--config', str(config), check=False)}")


def watch(supervisor: int, seconds: float) -> dict[str, Spent]:
    """Return what each process of the tree uses per hour, extrapolated from the next `seconds`."""
    tree = {name(process): process.pid for process in processes(supervisor)}
    before, start = {name: spent(pid) for name, pid in tree.items()}, time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - start
    return {name: (spent(pid) - before[name]).hourly(took) for name, pid in tree.items()}


def processes(supervisor: int) -> list[psutil.Process]:
    """Return the supervisor and all its descendants."""
    root = psutil.Process(supervisor)
    return [root, *root.children(recursive=True)]


def name(process: psutil.Process) -> str:
    """Return the label of a process in the table."""
    line = process.cmdline()
    roles = {
        "service.inference.main": "generation",
        "service.inference.fork_server": "fork server",
        "run": "supervisor",
    }
    role = next((role for word, role in roles.items() if word in line), "other")
    return f"{role} {process.pid}"


def spent(pid: int) -> Spent:
    """Return what a process has used, by its CPU clock and /proc."""
    wakeups = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        wakeups += int(status["voluntary_ctxt_switches"])
    return Spent(time.clock_gettime(cpu_clock(pid)), wakeups)


def cpu_clock(pid: int) -> int:
    """Return the clock of a process's CPU time as clock_getcpuclockid(3) does: /proc/PID/stat only counts in 10 ms."""
    return (~pid << 3) | 2


def show(hourly: dict[str, Spent]) -> None:
    """Print a line for each process, and their sum with the goal."""
    print(f"{'':24} {'CPU s/hour':>12} {'wake-ups/hour':>14}")
    for label, used in hourly.items():
        print(f"{label:24} {used.cpu_s:12.2f} {used.wakeups:14,}")
    total = Spent(sum(used.cpu_s for used in hourly.values()), sum(used.wakeups for used in hourly.values()))
    print(f"{'all':24} {total.cpu_s:12.2f} {total.wakeups:14,}    goal: at most {GOAL_S:g} s")


if __name__ == "__main__":
    main()
