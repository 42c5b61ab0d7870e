"""Processes that stop or exceed their limits, and a wall clock that jumps: the daemon serves on and loses no drop."""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor

from benchmarks.faults.section import Row
from benchmarks.faults.trained import trained
from benchmarks.markdown import table
from benchmarks.sick_device.clock import STOPS, jumped, stopped

TITLE = "Processes that stop, and clocks that jump"


def measure(_: argparse.Namespace) -> list[Row]:
    """Return a row for each kind of process that stops, and one for each jump."""
    rows = []
    with trained() as (task, folder):
        with ThreadPoolExecutor(2) as pool:  # most of the time is waited
            running = [pool.submit(stopped, kind, folder / str(number), task) for number, kind in enumerate(STOPS)]
            for each in running:
                rows.append(each.result())
                print("   ", rows[-1], flush=True)
        for name, faults in jumped(folder / "clock", task):
            rows.append({"kind": name, "faults": [f"{name}: {fault}" for fault in faults]})
            print("   ", rows[-1], flush=True)
    return rows


def page(rows: list[Row]) -> str:
    """Return text and table."""
    stops = [row for row in rows if "answered" in row]
    jumps = [row for row in rows if "answered" not in row]
    text = (
        "Under requests, one process of the daemon is stopped (SIGSTOP), or the worker exceeds worker.memory_max. A"
        " checkpoint that was dropped meanwhile, or right after, has to go live, requests have to be answered, and no"
        " traceback is in the log. A generation that is stopped fails its requests by their deadline until it is"
        " replaced after two minutes; a fork server that does not answer is replaced after three."
    )
    header = ("what", "seconds until all is well", "requests answered", "requests failed", "faults")
    lines = [(row["kind"], row["seconds"], row["answered"], row["failed"], len(row["faults"])) for row in stops]
    lost = sum(len(row["faults"]) for row in jumps)
    jumping = (
        f"The wall clock of a daemon and its children was set {len(jumps)} times, each with a checkpoint dropped"
        " (`benchmarks/sick_device/set_clock` replaces time.time in the running processes): an hour and ten years ahead"
        " and back, when the daemon was idle, while the worker ran, and while an update waited for its next attempt."
        " Each has to go live without a restart, with stages between 0 and 600 s, with all requests answered and"
        f" heartbeats for the watchdog, and nothing is deleted from history and rejected files. Faults: {lost}."
    )
    return f"{text}\n\n{table(header, lines)}\n\n{jumping}"
