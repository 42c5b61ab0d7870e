"""The ways in which a quantized network can be served: engines, with activations as integers or as floats."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from edged.artifacts.engines import installed_engines, require_engine
from edged.compress import Compressed
from edged.errors import MemoryLimitError
from edged.evaluation.gates import METRICS
from edged.memory import give_back_free_memory
from edged.pipeline.evaluation import Evaluation
from edged.spec import AUTO, FLOAT, INTEGER, PRECISIONS, QuantSpec

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(eq=False)
class Candidate:
    """One way to serve a quantized network, and what is known of it so far.

    Attributes:
        engine: The engine, one of `edged.spec.RUNTIMES`.
        precision: Numbers that it computes with, one of `edged.spec.PRECISIONS`.
        network: The network in that engine; None before it is loaded, and where it cannot be.
        ms: Median time of one image in milliseconds; None if it was not measured.
        memory_bytes: Resident memory that the network takes in the engine; None if it was not measured.
        evaluation: Comparison with full precision on the held-out images; None without one.
        refused: Why it cannot serve; None if nothing speaks against it.
        error: The exception behind `refused`, where there is one.
        lacks_room: Whether it was refused for lack of memory only.
        in_float: Names of the layers that it keeps in float because rounding their inputs costs too much.
        silu: Numbers that SiLU computes with where the precision is integer, one of `edged.spec.PRECISIONS`.
        last_resort: Whether it is tried only where no other candidate can be loaded.
    """

    engine: str
    precision: str
    network: Compressed | None = None
    ms: float | None = None
    memory_bytes: int | None = None
    evaluation: Evaluation | None = None
    refused: str | None = None
    error: Exception | None = None
    lacks_room: bool = False
    in_float: tuple[str, ...] = ()
    silu: str = INTEGER
    last_resort: bool = False

    @property
    def passes(self) -> bool:
        """Whether it was compared with full precision and passes the gates."""
        return self.evaluation is not None and self.refused is None

    @property
    def fails_gates(self) -> bool:
        """Whether it was compared with full precision and fails a gate."""
        return self.evaluation is not None and self.refused is not None

    def refuse(self, reason: str, error: Exception | None = None) -> None:
        """Record why it cannot serve, and let go of its engine."""
        self.refused, self.error, self.network = reason, error, None

    def to_dict(self, *, chosen: bool) -> dict[str, Any]:
        """Return plain JSON types, as they stand in the report."""
        totals = {} if self.evaluation is None else self.evaluation.totals
        metric, _ = METRICS[totals.get("task", "classification")]
        return {
            "engine": self.engine,
            "precision": self.precision,
            "in_float": list(self.in_float),
            "silu": self.silu,
            "ms": None if self.ms is None else round(self.ms, 3),
            "agreement": totals.get("agreement"),
            "accuracy": totals.get("quantized", {}).get(metric),
            "drop": totals.get("drop", {}).get(metric),
            "memory_bytes": self.memory_bytes,
            "chosen": chosen,
            "refused": self.refused,
        }


def settled_spec(spec: QuantSpec, runtime: str) -> QuantSpec:
    """Return a spec with activations in float where AUTO leaves no choice: torch alone may serve, and only in float.

    Call it before a quantization, which takes minutes: an engine that is missing is found here.

    Args:
        spec: How to quantize.
        runtime: One of `edged.spec.RUNTIMES`.

    Raises:
        UnavailableError: The engine is not installed.
    """
    if runtime != AUTO:
        require_engine(runtime)
    torch_alone = runtime == "torch" or (runtime == "auto" and installed_engines() == ("torch",))
    return dataclasses.replace(spec, activation_bits=None) if spec.activation_bits == AUTO and torch_alone else spec


def within_memory(attempt: Callable[[QuantSpec], T], spec: QuantSpec) -> tuple[T, QuantSpec]:
    """Call a function with a spec; where memory lacks and AUTO leaves a choice, with activations in float.

    Args:
        attempt: The function. It raises MemoryLimitError before it does what takes long.
        spec: How to quantize.

    Returns:
        What the function returns, and the spec that it was called with at last.

    Raises:
        MemoryLimitError: Floats do not fit either, or there is no choice.
    """
    try:
        return attempt(spec), spec
    except MemoryLimitError as error:
        if spec.activation_bits != AUTO:
            raise
        reason = str(error)  # the error itself would keep what the attempt has in memory
    give_back_free_memory()
    in_float = dataclasses.replace(spec, activation_bits=None)
    done = attempt(in_float)
    log.warning("activations stay in float, because there is no room to quantize them: %s", reason)
    return done, in_float


def candidates_of(compressed: Compressed, spec: QuantSpec, runtime: str) -> list[Candidate]:
    """Return the ways to serve a network that come into question, the preferred one of equally fast ones first.

    torch has no integer kernels for such networks. It computes integers exactly but slowly, so they are a candidate
    only where nothing else may serve.

    Args:
        compressed: The quantized network.
        spec: How it was quantized.
        runtime: One of `edged.spec.RUNTIMES`; only this engine, or any that is installed with "auto". TensorRT may be
            unable to build a network, or take too long. Then ONNX Runtime serves in its place.

    Raises:
        UnavailableError: The engine is not installed.
    """
    if runtime != "auto":
        require_engine(runtime)
    engines = installed_engines() if runtime == "auto" else (runtime,)
    precisions = _precisions(compressed, spec)
    graphs = [(engine, precision) for precision in precisions for engine in engines if engine != "torch"]
    if "torch" not in engines:
        torch: Sequence[str] = ()
    elif FLOAT in precisions:
        torch = (FLOAT,)
    else:
        torch = () if graphs else (INTEGER,)
    pairs = [(*pair, False) for pair in [*graphs, *(("torch", precision) for precision in torch)]]
    if runtime == "tensorrt":
        pairs += [("onnxruntime", precision, True) for precision in precisions]
    return [
        Candidate(engine, precision, silu=silu, last_resort=last_resort)
        for engine, precision, last_resort in pairs
        for silu in _silus(compressed, engine, precision)
    ]


def _silus(compressed: Compressed, engine: str, precision: str) -> Sequence[str]:
    """Return the numbers that SiLU may compute with.

    It costs less accuracy in float. Which one is faster in ONNX Runtime depends on the processor; other engines take it
    into the layer before, or simulate it.
    """
    if precision == FLOAT or not any(isinstance(module, nn.SiLU) for module in compressed.model.modules()):
        return (INTEGER,)
    return (FLOAT, INTEGER) if engine == "onnxruntime" else (FLOAT,)


def _precisions(compressed: Compressed, spec: QuantSpec) -> Sequence[str]:
    if compressed.activations is None:
        return (FLOAT,)
    return PRECISIONS if spec.activation_bits == AUTO else (INTEGER,)
