"""Measure accuracy, held-out layer loss, time and memory of every recipe and comparator on real networks.

The networks are CIFAR ResNet-20/32/56 on 10,000 test images and a ResNet-18 on imagenette, all layers at the same
width. Requires EDGED_DATA with weights/, cifar10/ and imagenette/. Each measurement runs in a process of its own. Rows
are kept in a file, so that single ones can be measured again; tables and plot show all rows of that file.

    python -m benchmarks.accuracy                                            # recipes, rtn and obq: some hours
    python -m benchmarks.accuracy --peers                                    # Brevitas' GPTQ and Qronos too
    python -m benchmarks.accuracy --networks resnet20 --bits 2 --methods balanced --out docs/accuracy
    python -m benchmarks.accuracy --render --out docs/accuracy               # measure nothing
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.options import parser_of
from benchmarks.quantization.measure import METHODS
from benchmarks.quantization.networks import NETWORKS, data_root
from benchmarks.quantization.plot import draw
from benchmarks.quantization.results import Results, Row
from benchmarks.quantization.tables import document, network_table
from edged.comparators.peers.brevitas import DEFAULT_SCALE, PEERS, SCALES, is_installed

OWN_METHODS = tuple(method for method in METHODS if method not in PEERS)
# OBQ downdates an inverse for every row, rows * d^3 work: 1.7e14 multiplications over ResNet-18's 3x3 layers.
TOO_SLOW = {("resnet18", "obq")}


def main() -> None:
    """Measure what the options select, print the tables, and write them if requested."""
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(OWN_METHODS))
    parser.add_argument("--peers", action="store_true", help="also measure Brevitas' methods (extra `bench`)")
    parser.add_argument("--scale", choices=SCALES, default=DEFAULT_SCALE, help="Brevitas' kind of scale")
    parser.add_argument("--missing", action="store_true", help="measure only rows that the results lack")
    parser.add_argument("--render", action="store_true", help="only write tables and plot, without measuring")
    parser.add_argument("--results", type=Path, default=Path("build/accuracy.json"), help="file in which rows are kept")
    parser.add_argument("--cache", type=Path, default=Path("build/accuracy-cache"), help="folder for decoded images")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.svg")
    parser.add_argument("--machine", default="", help="description of this machine in OUT.md")
    options = parser.parse_args()
    methods = [*options.methods, *(peer for peer in PEERS if options.peers and peer not in options.methods)]
    results = Results(options.results)
    if not options.render:
        require(methods)
        measure_all(options, methods, results)
    print(document(results, options.machine or f"{torch.get_num_threads()} threads"))
    if options.out:
        options.out.with_suffix(".md").write_text(document(results, options.machine, options.out.name))
        options.out.with_suffix(".svg").write_text(draw(results))


def require(methods: list[str]) -> None:
    """Exit with a message if data or packages are missing."""
    data_root()
    if any(method in PEERS for method in methods) and not is_installed():
        print("Brevitas is not installed: pip install 'edged[bench]', or leave out --peers", file=sys.stderr)
        sys.exit(2)


def measure_all(options: argparse.Namespace, methods: list[str], results: Results) -> None:
    """Measure one row after another and save each as soon as it is complete."""
    options.cache.mkdir(parents=True, exist_ok=True)
    for network in options.networks:
        for method in methods:
            if (network, method) in TOO_SLOW:
                print(f"{network} {method} left out: benchmarks.quantization.solve extrapolates its time")
                continue
            for bits in options.bits:
                if not (options.missing and (network, bits, method) in results.rows):
                    results.add(measure(network, bits, method, options))
                    print(network_table(results, network, [(network, bits, method)]).splitlines()[-1], flush=True)


def measure(network: str, bits: int, method: str, options: argparse.Namespace) -> Row:
    """Run one measurement in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.quantization.measure"]
        command += ["--network", network, "--bits", str(bits), "--method", method, "--scale", options.scale]
        subprocess.run([*command, "--cache", options.cache, "--out", out], check=True)
        return Row(**json.loads(out.read_text()))


if __name__ == "__main__":
    main()
