"""Keep the report of a model that a gate rejects, without an artifact. Runs in the worker."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from edged.errors import GateError
from edged.models.loading import Source
from edged.pipeline.choosing import Served
from service.worker.job import Job


@contextmanager
def kept_if_rejected(job: Job, source: Source, served: Served, attachments: Mapping[str, bytes]) -> Iterator[None]:
    """Write report.json and `attachments` to `job.out` if the block raises a GateError and the job asks for it.

    Args:
        job: Whether to keep the files, and where.
        source: File that the model was loaded from.
        served: The rejected model, with the measured values of its evaluation and the candidates.
        attachments: Files by name.

    Raises:
        GateError: The error of the block.
    """
    try:
        yield
    except GateError:
        if job.keep_rejected:
            model = served.network
            layers = [layer.to_dict() for layer in model.layers]
            totals = {**served.evaluation.totals, "bits": job.spec.bits, "candidates": served.candidates}
            report = {"source": source.to_dict(), "totals": totals, "layers": layers, "plan": model.plan.to_dict()}
            _write(job, {"report.json": json.dumps(report, indent=2).encode(), **attachments})
        raise


def _write(job: Job, files: Mapping[str, bytes]) -> None:
    try:
        job.out.mkdir()
        for name, data in files.items():
            (job.out / name).write_bytes(data)
    except OSError as error:  # the gate remains the reason of the rejection
        sys.stderr.write(f"cannot keep the report of the rejected model: {error}\n")
