"""The command line of benchmarks that measure trained networks at several widths, a table row each."""

from __future__ import annotations

import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.checkout import commit
from benchmarks.markdown import table
from benchmarks.options import parser_of, some_of
from benchmarks.quantization.networks import NETWORKS, Loaded, load


@dataclass(frozen=True)
class Page:
    """A page with one table.

    Attributes:
        command: Short name of the benchmark, in `python -m benchmarks.NAME`.
        title: Title of the page.
        header: Header of the table; the first two columns are the network and the bits.
        notes: Text below the table.
    """

    command: str
    title: str
    header: Sequence[str]
    notes: str


def network_parser(docstring: str | None) -> ArgumentParser:
    """Return a parser of the options that `measure_each_network` reads.

    Args:
        docstring: Text of the command's help.
    """
    parser = parser_of(docstring)
    parser.add_argument("--networks", type=some_of(NETWORKS, "network"), default=tuple(NETWORKS))
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--test-images", type=int, help="number of test images to draw; by default all")
    parser.add_argument("--cache", type=Path, help="folder for decoded images; by default a temporary one")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    return parser


def measure_each_network(
    options: Namespace, page: Page, measured: Callable[[Loaded, int], Iterator[tuple[str, ...]]]
) -> None:
    """Measure the networks and widths that the command line names; print the rows, and write the page if requested.

    Args:
        options: Parsed options of `network_parser`.
        page: The page.
        measured: Yields the rows of a network at a number of bits, without these two.
    """
    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks:
            loaded = load(name, Path(options.cache or folder), options.test_images)
            for bits in options.bits:
                for row in measured(loaded, bits):
                    rows.append((name, str(bits), *row))
                    print(table(page.header, rows[-1:]).splitlines()[-1], flush=True)
    if options.out:
        bits = " ".join(map(str, options.bits))
        command = f"python -m benchmarks.{page.command} --networks {','.join(options.networks)} --bits {bits}"
        command += f" --test-images {options.test_images}" if options.test_images else ""
        title = f"# {page.title}\n\n`{command}`, at {commit()}."
        options.out.write_text("\n\n".join([title, table(page.header, rows), page.notes]))
