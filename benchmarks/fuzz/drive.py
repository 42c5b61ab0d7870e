"""Fuzz one target in a process of its own: `python -m benchmarks.fuzz.drive TARGET COUNT SEED ARTIFACT` prints JSON.

An input that ends the process, or keeps it from ending, is a fault of its target.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from hypothesis import given, seed

from benchmarks import own_memory
from benchmarks.fuzz.target import Case, Target, many

MAX_BYTES, MAX_SECONDS = 1 << 30, 10.0  # seconds of processor time, since the machine may be busy
_NAMED = 5  # faults of a target
PATIENCE_S = 3600.0
ROOT = Path(__file__).parents[2]


def fuzz(target: Target, count: int, number: int, folder: Path) -> dict[str, Any]:
    """Read inputs of a target; return what they did: numbers of inputs, refusals and faults, and the worst costs.

    Args:
        target: What to fuzz.
        count: Number of inputs.
        number: Seed of what is drawn.
        folder: Empty folder for the inputs.
    """
    target.prepare(folder)
    row: dict[str, Any] = {"target": target.name, "kind": target.what, "inputs": 0, "refused": 0, "faults": []}
    worst = {"bytes": 0, "seconds": 0.0}

    @seed(number)
    @many(count)
    @given(target.cases)
    def read(case: Case) -> None:
        before, start = own_memory.restart_peak(), time.process_time()
        row["inputs"] += 1
        try:
            row["refused"] += target.attempt(case, folder) is not None
        except Exception as error:  # what the fuzzer looks for
            row["faults"].append(f"{_described(error)}; {case!r:.300}")
        seconds, used = time.process_time() - start, own_memory.beyond(before)
        worst["bytes"], worst["seconds"] = max(worst["bytes"], used), max(worst["seconds"], seconds)
        if used > MAX_BYTES or seconds > MAX_SECONDS:
            row["faults"].append(f"took {used >> 20} MiB and {seconds:.1f} s; {case!r:.300}")

    read()
    found = len(row["faults"])
    row["faults"] = [ascii(fault) for fault in row["faults"][:_NAMED]]
    return {**row, "crashes": found, "mebibytes": worst["bytes"] >> 20, "seconds": round(worst["seconds"], 2)}


def fuzz_apart(name: str, count: int, number: int, artifact: Path) -> dict[str, Any]:
    """Fuzz a target in another process; return what `fuzz` does, or a fault if the process fails or hangs."""
    command = [sys.executable, "-m", "benchmarks.fuzz.drive", name, str(count), str(number), str(artifact)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        fault = f"the process did not end within {PATIENCE_S:g} s"
    else:
        if done.returncode == 0:
            return dict(json.loads(done.stdout.splitlines()[-1]))
        fault = f"the process ended with status {done.returncode}: {done.stderr[-300:]!a}"
    return {
        "target": name,
        "kind": name,
        "inputs": 0,
        "refused": 0,
        "faults": [fault],
        "crashes": 1,
        "mebibytes": 0,
        "seconds": 0.0,
    }


def _described(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:200]} ({Path(place.filename).name}:{place.lineno})"


def main() -> None:
    """Fuzz the target that the arguments name."""
    from benchmarks.fuzz.files import file_targets

    name, count, number, artifact = sys.argv[1:]
    own_memory.limit()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="edged-") as folder:
        print(json.dumps(fuzz(file_targets(Path(artifact))[name], int(count), int(number), Path(folder))))


if __name__ == "__main__":
    main()
