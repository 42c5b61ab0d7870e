"""The ways to serve a model that its worker compared, as text for pages and terminals. Pure.

`edged.pipeline.candidates` measures them. Any key may be missing, because another version may have written the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from service.units import format_bytes, three_digits

JSON = Mapping[str, Any]

HEAD = ("Engine", "Numbers", "Time of an image", "Agreement", "Accuracy", "Memory", "Verdict")


class Candidate(NamedTuple):
    """One way to serve a model, a field for each column of HEAD; empty where something was not measured."""

    engine: str
    numbers: str
    time: str
    agreement: str
    accuracy: str
    memory: str
    verdict: str

    @property
    def name(self) -> str:
        """Engine and numbers, for example "onnxruntime, integer"."""
        return f"{self.engine}, {self.numbers}"

    @property
    def description(self) -> str:
        """What was measured, in a line, for example "4.53 ms, agreement 99.00 %, 12.0 MiB: serves"."""
        agreement = self.agreement and f"agreement {self.agreement}"
        accuracy = self.accuracy and f"accuracy {self.accuracy}"
        measured = ", ".join(filter(None, (self.time, agreement, accuracy, self.memory)))
        return ": ".join(filter(None, (measured, self.verdict)))


def candidates(totals: JSON) -> list[Candidate]:
    """Return the candidates in the order in which they were listed; none for reports of before there were any.

    Args:
        totals: Totals of a report.
    """
    entries = totals.get("candidates") or []
    serving = next((entry.get("ms") for entry in entries if entry.get("chosen")), None)
    return [_candidate(entry, serving) for entry in entries]


def _candidate(entry: JSON, serving: float | None) -> Candidate:
    ms, agreement, memory = (entry.get(key) for key in ("ms", "agreement", "memory_bytes"))
    in_float = len(entry.get("in_float") or ())
    silu = ", SiLU in float" if entry.get("silu") == "float" else ""
    layers = f", {in_float} in float" if in_float else ""
    return Candidate(
        engine=str(entry.get("engine")),
        numbers=f"{entry.get('precision')}{silu}{layers}",
        time="" if ms is None else f"{three_digits(ms)} ms",
        agreement="" if agreement is None else f"{agreement:.2f} %",
        accuracy=_accuracy(entry),
        memory="" if memory is None else format_bytes(memory),
        verdict=_verdict(entry, serving),
    )


def _accuracy(entry: JSON) -> str:
    accuracy, drop = entry.get("accuracy"), entry.get("drop")
    if accuracy is None:
        return ""
    return f"{accuracy:.2f} %" if drop is None else f"{accuracy:.2f} % (drop {drop:+.2f})"


def _verdict(entry: JSON, serving: float | None) -> str:
    if entry.get("chosen"):
        return "serves" if entry.get("ms") is not None else "serves, not timed"
    ms = entry.get("ms")
    close = ms is not None and serving is not None and ms < serving  # by less than measurements vary
    return str(entry.get("refused") or ("about as fast" if close else "not faster"))


def kept_in_float(totals: JSON) -> list[str]:
    """Return the names of the layers that compute in float although the model serves on integers.

    Args:
        totals: Totals of a report.
    """
    chosen = [entry for entry in totals.get("candidates") or [] if entry.get("chosen")]
    return [str(name) for entry in chosen for name in entry.get("in_float") or []]


def served_by(totals: JSON) -> str | None:
    """Return engine and numbers of a model in service, for example "onnxruntime, integer, SiLU in float".

    Args:
        totals: Totals of a report.

    Returns:
        The text; None if they are unknown.
    """
    serve: JSON = totals.get("serve") or {}
    if not {"engine", "precision"} <= serve.keys():
        return None
    chosen = next((entry for entry in totals.get("candidates") or [] if entry.get("chosen")), serve)
    return _candidate(chosen, None).name
