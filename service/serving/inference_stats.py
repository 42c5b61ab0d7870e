"""What Triton's statistics extension reports of one generation: counts and nanoseconds. Reads no clock."""

from __future__ import annotations

from typing import Any

from service.ipc.messages import Work

_COMPUTE = ("compute_input", "compute_infer", "compute_output")


class InferenceStats:
    """Requests of a generation since it went live: what each part of their way took."""

    def __init__(self) -> None:
        self._last_s = 0.0
        self._images = 0
        self._fails = 0
        self._fail_ns = 0
        self._successes = 0
        self._success_ns = 0
        self._queue_ns = 0
        self._compute_ns = [0, 0, 0]  # in the order of `_COMPUTE`
        self._batches: dict[int, list[int]] = {}  # by images: number of passes, then as above

    def note(self, status: int | None, start_ns: int, end_ns: int, work: Work | None, now_s: float) -> None:
        """Count one request. Each request waits for this, so it takes few steps.

        Args:
            status: HTTP status of its reply; None if it got none.
            start_ns: When it joined the queue of the generation, by time.monotonic_ns().
            end_ns: When it was answered or failed, by the same clock.
            work: What the generation did for it; None if it did nothing.
            now_s: The time in seconds since 1970.
        """
        self._last_s = now_s
        if work is not None:
            for images, *times in work.passes:  # also of a failed request: others were computed in the same pass
                _add(self._batches.setdefault(images, [0, 0, 0, 0]), 1, *times)
        if work is None or status is None or status >= 400:
            self._fails += 1
            self._fail_ns += end_ns - start_ns
            return
        self._images += work.images
        self._successes += 1
        self._success_ns += end_ns - start_ns
        self._queue_ns += work.started_ns - start_ns + work.waited_ns
        _add(self._compute_ns, work.input_ns, work.infer_ns, work.output_ns)

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as JSON types, with the names that Triton gives them.

        There is no cache of responses, so none was ever hit or missed.
        """
        return {
            "last_inference": int(self._last_s * 1000),
            "inference_count": self._images,
            "execution_count": sum(passes for passes, *_ in self._batches.values()),
            "inference_stats": {
                "success": _duration(self._successes, self._success_ns),
                "fail": _duration(self._fails, self._fail_ns),
                "queue": _duration(self._successes, self._queue_ns),
                **_durations(self._successes, self._compute_ns),
                "cache_hit": _duration(0, 0),
                "cache_miss": _duration(0, 0),
            },
            "batch_stats": [
                {"batch_size": images, **_durations(passes, times)}
                for images, (passes, *times) in sorted(self._batches.items())
            ],
        }


def _add(totals: list[int], *values: int) -> None:
    for index, value in enumerate(values):
        totals[index] += value


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}


def _durations(count: int, times: list[int]) -> dict[str, dict[str, int]]:
    return {name: _duration(count, ns) for name, ns in zip(_COMPUTE, times, strict=True)}
