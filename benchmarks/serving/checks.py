"""What must be true of the answers and of the memory, whatever the speed: used by benchmarks.serving and the tests."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.serving.load import Answer

MEMORY_TOLERANCE = 0.05


@dataclass(frozen=True)
class Swap:
    """One change of the generation in service. Times are those of time.monotonic().

    Attributes:
        start: When it was asked for.
        end: When it was over, the generation before gone.
        version: What answers from then on.
    """

    start: float
    end: float
    version: str


def answers_of_two(answers: Sequence[Answer]) -> list[str]:
    """Answers that are not wholly of the generation that they name: what is wrong, an entry for each such generation.

    Every request of a run is the same, and no two generations have the same weights. So all answers that name one
    generation must hold the same bytes of outputs, and no other generation may give these.
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
    """Answers of a generation that was replaced already, or whose turn has not come: what is wrong, an entry for each.

    Generations may come back, so their numbers need not grow: what must grow is the number of swaps that an answer has
    seen. It follows from the generation that the answer names and from when it was under way, because a swap takes
    longer than a request. It must not fall from one answer to a request that was sent after it, over any connection.

    Args:
        answers: All of them.
        first: The version before the first swap.
        swaps: In order.
    """
    good = sorted((answer for answer in answers if not answer.failed), key=lambda answer: answer.sent)
    seen = [_swaps_seen(answer, first, swaps) for answer in good]
    problems = [
        f"an answer of {answer.version}, which was not in service between its request and its end"
        for answer, number in zip(good, seen, strict=True)
        if number is None
    ]
    known = [(answer, number) for answer, number in zip(good, seen, strict=True) if number is not None]
    by_end = sorted(known, key=lambda each: each[0].done)
    ends = [answer.done for answer, _ in by_end]
    most = 0
    before = 0
    for answer, number in known:
        until = bisect_left(ends, answer.sent)  # answers that were there when this request went out
        most = max([most, *(other for _, other in by_end[before:until])])
        before = max(before, until)
        if number < most:
            problems.append(f"an answer of {answer.version} after {most} swaps, when the newest had been seen")
    return problems


def memory_grew(early: int, late: int, tolerance: float = MEMORY_TOLERANCE) -> bool:
    """Whether memory after many swaps is more than it was after few.

    Args:
        early: Bytes of the whole process tree after few swaps.
        late: After many.
        tolerance: Share by which it may differ.
    """
    return late > early * (1 + tolerance)


def _outputs(answer: Answer) -> str:
    """What the answer holds besides the name of the generation."""
    header = {key: value for key, value in answer.header.items() if key != "model_version"}
    behind = b"" if answer.json_bytes is None else answer.body[answer.json_bytes :]
    return hashlib.sha256(repr(sorted(header.items())).encode() + behind).hexdigest()


def _swaps_seen(answer: Answer, first: str, swaps: Sequence[Swap]) -> int | None:
    """How many swaps lie behind the generation that answered; None if it cannot have answered then."""
    over = bisect_left([swap.end for swap in swaps], answer.sent)
    begun = bisect_right([swap.start for swap in swaps], answer.done)
    versions = [first, *(swap.version for swap in swaps)]
    return next((number for number in range(over, begun + 1) if versions[number] == answer.version), None)
