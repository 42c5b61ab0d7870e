"""What an idle edged costs: CPU seconds and wake-ups an hour, of the supervisor and of its generations.

A daemon of its own with the default settings puts a model live, is left alone, and then watched for some minutes
through /proc; nobody asks it anything meanwhile. CPU time is user and system time of all threads, a wake-up a voluntary
context switch. Usage: python -m benchmarks.idle --minutes N [--pid PID]
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

SETTLE_S = 20.0  # what an update leaves to be done: the last response, the end of the worker
GOAL_S = 2.0  # of CPU an hour


@dataclass(frozen=True)
class Spent:
    """What one process has used so far.

    Attributes:
        cpu_s: Seconds on a processor, all threads.
        wakeups: Voluntary context switches, all threads.
    """

    cpu_s: float
    wakeups: int

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.cpu_s - other.cpu_s, self.wakeups - other.wakeups)

    def hourly(self, seconds: float) -> Spent:
        """What it comes to in an hour, if `self` was used in `seconds`."""
        return Spent(self.cpu_s * 3600 / seconds, round(self.wakeups * 3600 / seconds))


def main() -> None:
    """Measure and print a table."""
    parser = parser_of(__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long to watch (5)")
    parser.add_argument("--pid", type=int, help="a supervisor that runs already, instead of a daemon for this")
    options = parser.parse_args()
    if options.pid is not None:
        show(watch(options.pid, options.minutes * 60))
        return
    with tempfile.TemporaryDirectory(prefix="edged-idle-") as made:
        folder = Path(made) / "edged"
        folder.mkdir()
        config = write_config(folder)
        with daemon(config, keep=False):
            submit(config, "digits", write_checkpoint(folder / "digits.pth"))
            time.sleep(SETTLE_S)
            show(watch(find_supervisor(config), options.minutes * 60))


def write_config(folder: Path) -> Path:
    """All defaults, but for what a small model in a temporary folder needs."""
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
    """A network whose answers are not looked at."""
    torch.save(digits.train_resnet18(digits.load(), epochs=1).state_dict(), path)
    return path


def find_supervisor(config: Path) -> int:
    """The process of the daemon with this config."""
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if str(config) in line and "run" in line:
            return int(process.pid)
    raise SystemExit(f"no daemon runs with {config}: {command('status', '--config', str(config), check=False)}")


def watch(supervisor: int, seconds: float) -> dict[str, Spent]:
    """What each process of the tree uses an hour, judged by the next `seconds`."""
    tree = {name(process): process.pid for process in processes(supervisor)}
    before, start = {name: spent(pid) for name, pid in tree.items()}, time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - start
    return {name: (spent(pid) - before[name]).hourly(took) for name, pid in tree.items()}


def processes(supervisor: int) -> list[psutil.Process]:
    """The supervisor and all below it."""
    root = psutil.Process(supervisor)
    return [root, *root.children(recursive=True)]


def name(process: psutil.Process) -> str:
    """What to call a process in the table."""
    line = process.cmdline()
    roles = {
        "service.inference.main": "generation",
        "service.inference.fork_server": "fork server",
        "run": "supervisor",
    }
    role = next((role for word, role in roles.items() if word in line), "other")
    return f"{role} {process.pid}"


def spent(pid: int) -> Spent:
    """By its CPU clock and /proc."""
    wakeups = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        wakeups += int(status["voluntary_ctxt_switches"])
    return Spent(time.clock_gettime(cpu_clock(pid)), wakeups)


def cpu_clock(pid: int) -> int:
    """The clock of a process's CPU time, as clock_getcpuclockid(3) gives it: /proc/PID/stat counts in 10 ms only."""
    return (~pid << 3) | 2


def show(hourly: dict[str, Spent]) -> None:
    """One line a process, and their sum against the goal."""
    print(f"{'':24} {'CPU s/hour':>12} {'wake-ups/hour':>14}")
    for label, used in hourly.items():
        print(f"{label:24} {used.cpu_s:12.2f} {used.wakeups:14,}")
    total = Spent(sum(used.cpu_s for used in hourly.values()), sum(used.wakeups for used in hourly.values()))
    print(f"{'all':24} {total.cpu_s:12.2f} {total.wakeups:14,}    goal: at most {GOAL_S:g} s")


if __name__ == "__main__":
    main()
