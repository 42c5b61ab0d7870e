"""What a gate refuses is no artifact, but somebody will ask why. Runs in the worker."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from edged.compress import Compressed
from edged.errors import GateError
from service.worker.job import Job


@contextmanager
def kept_if_refused(
    job: Job, compressed: Compressed, totals: Mapping[str, Any], attachments: Mapping[str, bytes]
) -> Iterator[None]:
    """On a GateError of the block, and if the job asks for it, leave report.json and `attachments` in `job.out`.

    Args:
        job: Says whether and where.
        compressed: The layers and the plan are told.
        totals: Figures of the evaluation.
        attachments: Files by name.

    Raises:
        GateError: That of the block.
    """
    try:
        yield
    except GateError:
        if job.keep_refused:
            layers = [layer.to_dict() for layer in compressed.layers]
            totals = {**totals, "bits": job.spec.bits}
            report = {"totals": totals, "layers": layers, "plan": compressed.plan.to_dict()}
            _write(job, {"report.json": json.dumps(report, indent=2).encode(), **attachments})
        raise


def _write(job: Job, files: Mapping[str, bytes]) -> None:
    try:
        job.out.mkdir(parents=True)
        for name, data in files.items():
            (job.out / name).write_bytes(data)
    except OSError as error:  # the reason to tell is the gate's
        sys.stderr.write(f"cannot keep what is known of the refused model: {error}\n")
