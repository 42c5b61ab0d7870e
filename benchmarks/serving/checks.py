"""Checks of responses and memory that do not depend on speed. Used by benchmarks.serving and the tests."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.serving.load import Answer

MEMORY_TOLERANCE = 0.05


@dataclass(frozen=True)
class Swap:
    """One change of the live generation. Times are those of time.monotonic().

    Attributes:
        start: Time of the request for the swap.
        end: Time at which the swap was complete and the previous generation retired.
        version: Version that answers from then on.
    """

    start: float
    end: float
    version: str


def answers_of_two(answers: Sequence[Answer]) -> list[str]:
    """Return a problem for each generation whose responses are not entirely its own.

    All requests of a run are equal, and no two generations have equal weights. So all responses that name a generation
    must contain the same output bytes, and no other generation may return these.
    """
    outputs: dict[str, set[str]] = {}
    for answer in answers:
        if not answer.failed:
            outputs.setdefault(answer.version, set()).add(_outputs(answer))
    problems = [
        f"{version} gave {len(found)} different outputs" for version, found in outputs.items() if len(found) > 1
    ]
    versions = list(outputs)
    for index, version in enumerate(versions):
        same = [other for other in versions[index + 1 :] if outputs[version] & outputs[other]]
        problems += [f"{version} and {other} gave the same outputs" for other in same]
    return problems


def went_back(answers: Sequence[Answer], first: str, swaps: Sequence[Swap]) -> list[str]:
    """Return a problem for each response of a generation that was already replaced or not yet live.

    Generations may come back, so their numbers need not grow, but the number of swaps before a response must not fall.
    It follows from the generation that the response names and from the time of the request, because a swap takes longer
    than a request. It must not fall between a response and any request that was sent after it, over any connection.

    Args:
        answers: All responses of a run.
        first: Version before the first swap.
        swaps: Swaps in order.
    """
    good = sorted((answer for answer in answers if not answer.failed), key=lambda answer: answer.sent)
    seen = [_swaps_seen(answer, first, swaps) for answer in good]
    problems = [
        f"a response of {answer.version}, which was not live between request and response"
        for answer, number in zip(good, seen, strict=True)
        if number is None
    ]
    known = [(answer, number) for answer, number in zip(good, seen, strict=True) if number is not None]
    by_end = sorted(known, key=lambda each: each[0].done)
    ends = [answer.done for answer, _ in by_end]
    most = 0
    before = 0
    for answer, number in known:
        until = bisect_left(ends, answer.sent)  # responses received before this request was sent
        most = max([most, *(other for _, other in by_end[before:until])])
        before = max(before, until)
        if number < most:
            problems.append(f"a response of {answer.version} after {most} swaps, when a newer generation had responded")
    return problems


def memory_grew(early: int, late: int, tolerance: float = MEMORY_TOLERANCE) -> bool:
    """Return whether memory after many swaps is larger than after few.

    Args:
        early: `own_bytes` of the process tree after few swaps.
        late: The same after many swaps.
        tolerance: Relative growth that is allowed: the lines of the log that the supervisor keeps, up to a bound.
    """
    return late > early * (1 + tolerance)


def _outputs(answer: Answer) -> str:
    """Return a digest of the response without the name of the generation."""
    header = {key: value for key, value in answer.header.items() if key != "model_version"}
    behind = b"" if answer.json_bytes is None else answer.body[answer.json_bytes :]
    return hashlib.sha256(repr(sorted(header.items())).encode() + behind).hexdigest()


def _swaps_seen(answer: Answer, first: str, swaps: Sequence[Swap]) -> int | None:
    """Return the number of swaps before the generation that responded, or None if it was not live at that time."""
    over = bisect_left([swap.end for swap in swaps], answer.sent)
    begun = bisect_right([swap.start for swap in swaps], answer.done)
    versions = [first, *(swap.version for swap in swaps)]
    return next((number for number in range(over, begun + 1) if versions[number] == answer.version), None)
