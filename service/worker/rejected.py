"""Keep the report of a model that a gate rejects, without an artifact. Runs in the worker."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from edged.compress import Compressed
from edged.errors import GateError
from edged.models.loading import Source
from service.worker.job import Job


@contextmanager
def kept_if_rejected(
    job: Job, source: Source, compressed: Compressed, totals: Mapping[str, Any], attachments: Mapping[str, bytes]
) -> Iterator[None]:
    """Write report.json and `attachments` to `job.out` if the block raises a GateError and the job asks for it.

    Args:
        job: Whether to keep the files, and where.
        source: File that the model was loaded from.
        compressed: The rejected model, for the layers and the plan of the report.
        totals: Measured values of the evaluation.
        attachments: Files by name.

    Raises:
        GateError: The error of the block.
    """
    try:
        yield
    except GateError:
        if job.keep_rejected:
            layers = [layer.to_dict() for layer in compressed.layers]
            totals = {**totals, "bits": job.spec.bits}
            report = {"source": source.to_dict(), "totals": totals, "layers": layers, "plan": compressed.plan.to_dict()}
            _write(job, {"report.json": json.dumps(report, indent=2).encode(), **attachments})
        raise


def _write(job: Job, files: Mapping[str, bytes]) -> None:
    try:
        job.out.mkdir(parents=True)
        for name, data in files.items():
            (job.out / name).write_bytes(data)
    except OSError as error:  # the gate remains the reason of the rejection
        sys.stderr.write(f"cannot keep the report of the rejected model: {error}\n")
