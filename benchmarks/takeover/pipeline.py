"""What a worker does that was taken over: it tries all of `attempts`, and reports what it could do."""

from __future__ import annotations

import json
import os
from typing import Any

from attempts import RESULTS, Surroundings, try_all  # type: ignore[import-not-found]  # it is next to this file

from edged.errors import ArchitectureError
from service.worker.job import Job


def run_job(job: Job, *_: Any) -> None:
    """Try everything, write down what could be done, and give up."""
    found = try_all(Surroundings.look_around(job, os.getppid()))
    job.cache_root.mkdir(exist_ok=True)
    (job.cache_root / f".{RESULTS}").write_text(json.dumps(found))
    (job.cache_root / f".{RESULTS}").rename(job.cache_root / RESULTS)
    raise ArchitectureError("the worker was taken over and has tried what it could")
