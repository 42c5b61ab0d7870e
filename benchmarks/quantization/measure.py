"""Measure one row for benchmarks.accuracy, in a process of its own so that the peak memory is that of one method.

python -m benchmarks.quantization.measure --network resnet20 --bits 4 --method balanced --cache DIR --out FILE
"""

from __future__ import annotations

import dataclasses
import gc
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.options import parser_of
from benchmarks.quantization.heldout import held_out_loss
from benchmarks.quantization.networks import TEST_BATCH, Loaded, load
from benchmarks.quantization.results import Row, pack_hits
from edged.comparators.peers.brevitas import DEFAULT_SCALE, PEERS, SCALES, prepare, quantize_with_peer
from edged.compress import compress
from edged.evaluation.classification import accuracy, predict
from edged.evaluation.fidelity import fidelity
from edged.memory import give_back_free_memory, peak_bytes, resident_bytes
from edged.spec import RECIPES, Method, QuantSpec, Statistics, recipe

METHODS = ("rtn", "obq", "paper", *(name for name in RECIPES if name != "paper"), *PEERS)


def main() -> None:
    """Measure and write the row."""
    parser = parser_of(__doc__)
    parser.add_argument("--network", required=True)
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--scale", choices=SCALES, default=DEFAULT_SCALE, help="Brevitas' kind of scale")
    parser.add_argument("--cache", type=Path, required=True, help="folder for decoded images")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    row = measure(options.network, options.bits, options.method, options.scale, options.cache)
    options.out.write_text(json.dumps(dataclasses.asdict(row)))


def measure(network: str, bits: int, method: str, scale: str, cache_root: Path) -> Row:
    """Quantize once and return time, memory, accuracy and held-out loss."""
    loaded = load(network, cache_root)
    if method in PEERS:
        prepare()
    # Warm up: kernels are chosen and the thread pool is started.
    predict(loaded.model, loaded.calibration, loaded.calibration.calibration[: loaded.batch_size], loaded.batch_size)
    before = reset_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    model, decoded = quantize(loaded, bits, method, scale)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    added = peak_mib() - before
    logits = predict(model, loaded.test, torch.arange(len(loaded.test)), batch_size=TEST_BATCH)
    loss = held_out_loss(loaded.model, decoded, loaded.calibration)
    return Row(
        network=network,
        bits=bits,
        method=method,
        top1=accuracy(logits, loaded.labels).top1,
        reference_top1=accuracy(loaded.reference, loaded.labels).top1,
        agreement=fidelity(loaded.reference, logits).agreement,
        held_out=loss.geometric_mean,
        held_out_sum_ratio=loss.sum_ratio,
        seconds=wall,
        cpu_seconds=cpu,
        added_mib=added,
        hits=pack_hits((logits.argmax(1) == loaded.labels).numpy()),
        images=len(loaded.test),
        threads=torch.get_num_threads(),
        torch=torch.__version__.split("+")[0],
    )


def quantize(loaded: Loaded, bits: int, method: str, scale: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the quantized network and its decoded weights by layer name."""
    if method in PEERS:
        return quantize_with_peer(loaded.model, loaded.calibration, bits, method, loaded.batch_size, scale)
    done = compress(loaded.model, loaded.calibration, spec_of(method, bits))
    return done.model, {name.removesuffix(".weight"): weight.decode() for name, weight in done.quantized.items()}


def spec_of(method: str, bits: int) -> QuantSpec:
    """Return a recipe, or rounding to nearest without any correction, or OBQ with the other settings of `paper`."""
    if method == "rtn":
        return recipe("fast", method=Method.RTN, statistics=Statistics.NONE, bits=bits)
    if method == "obq":
        return recipe("paper", method=Method.OBQ, bits=bits)
    return recipe(method, bits=bits)


def reset_peak() -> float:
    """Reset the peak memory if the system permits it, and return the resident memory in MiB."""
    gc.collect()
    give_back_free_memory()  # free but resident memory would hide later allocations
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("cannot reset the peak memory of this process: it may include loading")
    return resident_bytes() / (1 << 20)


def peak_mib() -> float:
    """Return the highest resident memory since `reset_peak` in MiB."""
    return peak_bytes() / (1 << 20)


if __name__ == "__main__":
    main()
