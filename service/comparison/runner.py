"""Make all measurements of a comparison, one process after another, and keep the rows in a folder. Imports no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from edged.atomic import as_state_error, write_atomic
from edged.errors import EdgedError, UsageError
from edged.progress import ProgressListener
from service.comparison.differences import against_reference, error_of
from service.comparison.job import (
    FULL_PRECISION,
    INTEGER_BITS,
    METHODS,
    PEERS,
    PEERS_OF_INTEGERS,
    REFERENCE,
    Measurement,
)
from service.comparison.picture import draw
from service.comparison.table import as_csv
from service.system.processes import FEW_KERNELS, child_environment

RESULT = "comparison.json"
AGAINST = f"against_{REFERENCE}"
PROGRAM = ("-m", "service.comparison.main")
_ORDER = {name: place for place, name in enumerate((FULL_PRECISION, *METHODS, *PEERS))}
Row = dict[str, Any]
Measure = Callable[[Measurement, ProgressListener, str], Row]


class MeasurementError(EdgedError):
    """A measurement failed for the reason that its process reported."""

    def __init__(self, message: str, code: str, exit_code: int) -> None:
        super().__init__(message)
        self.code, self.exit_code = code, exit_code  # type: ignore[misc]  # of the error in the other process


def measurements(base: Measurement, methods: Sequence[str], bits: Sequence[int]) -> Iterator[Measurement]:
    """Yield what to measure: full precision first, then each method at each number of bits that it knows.

    Args:
        base: What all measurements share.
        methods: Names of methods and peers; each is measured once, whatever the order.
        bits: Bits per weight.
    """
    yield base
    for method in dict.fromkeys(methods):
        for width in (INTEGER_BITS,) if method in PEERS_OF_INTEGERS else dict.fromkeys(bits):
            yield dataclasses.replace(base, method=method, bits=width)


def compare(
    wanted: Sequence[Measurement], out: Path | None, listener: ProgressListener, measure: Measure | None = None
) -> dict[str, Any]:
    """Measure what is not in the folder yet, and write the folder's files after each row.

    Args:
        wanted: Measurements, full precision first.
        out: Folder for comparison.json, comparison.csv and comparison.svg; None to write nothing. It may hold rows of
            an earlier call for the same checkpoint, images and seed, which are kept, but for rows of methods that
            would take another number of steps now.
        listener: Receives the stages of each measurement, and their progress.
        measure: Makes one measurement; by default in a process of its own.

    Returns:
        "identity", "machine" and "rows", in plain JSON types. A row has what `service.comparison.measure.measure`
        returns; in addition its score has "standard_error", and "against_balanced" has "difference" and
        "standard_error" where there is a row to compare with. A method that failed has a row with "error".

    Raises:
        EdgedError: Full precision cannot be measured: the checkpoint or the images cannot be used.
        UsageError: The folder holds another comparison.
        StateError: The folder cannot be written.
    """
    measure = measure or in_own_process
    first = measure(wanted[0], listener, f"1/{len(wanted)} {wanted[0].method}")
    result = {"identity": first.pop("identity"), "machine": first.pop("machine"), "rows": [first]}
    if out is not None:
        result["rows"] += _earlier(out, result)
    for number, job in enumerate(wanted[1:], start=2):
        if any(_answers(row, job) for row in result["rows"]):
            continue
        try:
            row = measure(job, listener, f"{number}/{len(wanted)} {job.method} {job.bits}")
            del row["identity"], row["machine"]
            row["most_iterations"] = job.iterations
        except EdgedError as error:
            row = {"method": job.method, "bits": job.bits, "error": str(error)}
        kept = [r for r in result["rows"] if (r["method"], r["bits"]) != (job.method, job.bits)]
        result["rows"] = sorted([*kept, row], key=_place)
        if out is not None:
            _write(out, _annotated(result))
    _annotated(result)
    if out is not None:
        _write(out, result)
    return result


def _place(row: Row) -> tuple[int, int]:
    """Return what rows are sorted by: the method in the order that they are listed in, and then more bits first."""
    return _ORDER.get(row["method"], len(_ORDER)), -row["bits"]


def _answers(row: Row, job: Measurement) -> bool:
    """Return whether a row of an earlier call is what a measurement would give."""
    if (row["method"], row["bits"]) != (job.method, job.bits) or "error" in row:
        return False
    return not row["iterations"] or row.get("most_iterations") == job.iterations


def _annotated(result: dict[str, Any]) -> dict[str, Any]:
    """Add standard errors and differences to the rows; what they follow from stays, for later rows."""
    for row in result["rows"]:
        if (error := error_of(row)) is not None:
            row["score"]["standard_error"] = round(error, 4)
        row.pop(AGAINST, None)
        if (found := against_reference(row, result)) is not None:
            difference, error = found
            row[AGAINST] = {
                "difference": round(difference, 4),
                "standard_error": None if error is None else round(error, 4),
            }
    return result


def in_own_process(job: Measurement, listener: ProgressListener, label: str) -> Row:
    """Make one measurement in a process of its own.

    Args:
        job: What to measure.
        listener: Receives the stages of that process.
        label: Put before the names of its stages.

    Raises:
        MeasurementError: It failed; the message says why.
    """
    command = [sys.executable, "-W", "ignore", *PROGRAM]
    environment = child_environment(job.threads, kernels=FEW_KERNELS)
    with tempfile.TemporaryFile() as printed:
        child = subprocess.Popen(  # noqa: S603 - this program
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=printed, env=environment, text=True
        )
        with child:
            assert child.stdin is not None  # noqa: S101 - asked for
            assert child.stdout is not None  # noqa: S101
            try:
                with contextlib.suppress(BrokenPipeError):  # it has ended; why is read below
                    json.dump({"parent": os.getpid(), "measurement": job.to_dict()}, child.stdin)
                    child.stdin.close()
                last = _follow(child.stdout, listener, label)
            except BaseException:
                child.kill()
                raise
        if "row" in last:
            row: Row = last["row"]
            return row
        if "error" in last:
            raise MeasurementError(last["error"], last["code"], last["exit_code"])
        raise MeasurementError(_exit_reason(child.returncode, printed), EdgedError.code, EdgedError.exit_code)


def _follow(lines: IO[str], listener: ProgressListener, label: str) -> Mapping[str, Any]:
    """Pass the progress that a child reports on, and return its last message; empty if it sent none."""
    message: dict[str, Any] = {}
    with ExitStack() as stage:
        for line in lines:
            message = json.loads(line)
            if "stage" in message:
                stage.close()
                stage.enter_context(listener.stage(f"{label}: {message['stage']}"))
                listener.progress(0, 1)  # names a stage that does not count its steps, such as that of a peer
            elif "done" in message:
                listener.progress(message["done"], message["total"])
    return message


def _exit_reason(code: int, printed: IO[bytes]) -> str:
    """Return why a child ended without a result, with the last line that it printed."""
    printed.seek(0)
    lines = [line for line in printed.read().decode(errors="replace").splitlines() if line.strip()]
    how = f"was killed by signal {-code}, which is 9 when memory runs out" if code < 0 else f"exited with code {code}"
    return f"its process {how}" + (f": {lines[-1].strip():.200}" if lines else "")


def _earlier(out: Path, result: Mapping[str, Any]) -> list[Row]:
    """Return the rows that a folder holds of the same comparison, without that of full precision."""
    path = out / RESULT
    if not path.exists():
        return []
    with as_state_error(path):
        text = path.read_bytes()
    try:
        earlier = json.loads(text)
        rows = [row for row in earlier["rows"] if row["method"] != FULL_PRECISION]
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is no result of `edged compare`; choose another folder for --out") from None
    for key in ("identity", "machine"):
        before, now = earlier.get(key) or {}, result[key]
        differs = [name for name in {**now, **before} if before.get(name) != now.get(name)]
        if differs:
            raise UsageError(f"--out {out} holds a comparison with another {differs[0]}; choose another folder")
    return rows


def _write(out: Path, result: Mapping[str, Any]) -> None:
    with as_state_error(out):
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / RESULT, (json.dumps(result, indent=2) + "\n").encode())
        write_atomic(out / "comparison.csv", as_csv(result).encode())
        write_atomic(out / "comparison.svg", draw(result).encode())
