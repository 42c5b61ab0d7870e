"""Count what faults and hostile input do. Writes docs/reliability.md.

python -m benchmarks.faults                 try all sections
python -m benchmarks.faults --only files    try some

Results are stored in --results by section, and the page shows all sections in that file. The exit code is 1 if anything
was lost, ran or grew without bound.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.hostile.corpus import corpus
from benchmarks.hostile.files import MAX_BYTES, read_all, summary
from benchmarks.markdown import table
from benchmarks.options import parser_of, some_of

MAX_SECONDS = 10
Row = dict[str, Any]
INTRODUCTION = """# Reliability

What was tried, how often, and what was lost. Each section is measured by `python -m benchmarks.faults --only NAME`; the
slow tests repeat it.
"""


def files(_: argparse.Namespace) -> list[Row]:
    """Read every hostile checkpoint in a process under an audit hook."""
    with tempfile.TemporaryDirectory(prefix="edged-") as folder:
        canary = Path(folder) / "canary"
        rows = summary(read_all(corpus(str(canary)), Path(folder)))
        for row in rows:
            if row["seconds"] > MAX_SECONDS:
                row["faults"].append(f"{row['kind']}: one took {row['seconds']} s")
        if canary.exists():
            rows[0]["faults"].append("a file was made by the code in one of them")
    return rows


def files_page(rows: list[Row]) -> str:
    """Return the section of the page on hostile checkpoints."""
    total = {key: sum(row[key] for row in rows) for key in ("files", "refused", "ran_code")}
    faults = [fault for row in rows for fault in row["faults"]]
    harmless = total["files"] - total["refused"] - len(faults)
    lines = [
        (
            row["kind"],
            row["files"],
            row["refused"],
            row["ran_code"],
            len(row["faults"]),
            row["mebibytes"],
            row["seconds"],
        )
        for row in rows
    ]
    worst = (max(row["mebibytes"] for row in rows), max(row["seconds"] for row in rows))
    lines.append(("**all**", total["files"], total["refused"], total["ran_code"], len(faults), *worst))
    header = ("kind of file", "files", "refused", "ran code", "other faults", "MiB at most", "seconds at most")
    text = (
        f"{total['files']} files made by `benchmarks/hostile/corpus.py`, each read as a drop is read, in a process"
        " whose interpreter reports every program, socket, written file, import and lookup of a name. MiB are those"
        f" beyond the memory of the process before; the limits are {MAX_BYTES >> 20} MiB and {MAX_SECONDS} s."
        f" {total['refused']} were refused with one line, {harmless} were read as what they say: their damage hit a"
        " weight or nothing at all, and no checksum covers it."
    )
    return f"## Hostile checkpoints\n\n{text}\n\n{table(header, lines)}"


# Name -> what measures the section, and what writes it down.
SECTIONS: Mapping[str, tuple[Callable[[argparse.Namespace], list[Row]], Callable[[list[Row]], str]]] = {
    "files": (files, files_page),
}


def main() -> None:
    """Try the selected sections and write the page."""
    options = _options()
    results: dict[str, Any] = json.loads(options.results.read_text()) if options.results.exists() else {}
    if options.machine:
        results["machine"] = options.machine
    faults: list[str] = []
    for name in options.only:
        print(f"{name} ...", flush=True)
        start = time.time()
        rows = SECTIONS[name][0](options)
        results[name] = {"rows": rows, "when": time.strftime("%Y-%m-%d", time.gmtime(start))}
        faults += [f"{name}: {fault}" for row in rows for fault in row.get("faults", ())]
        for row in rows:
            print("   ", json.dumps(row), flush=True)
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(results, indent=1))
    options.page.write_text(document(results))
    print(f"results in {options.results}, page in {options.page}")
    if faults:
        sys.exit("\n".join(["faults:", *faults]))


def document(results: Mapping[str, Any]) -> str:
    """Return the page with all sections that were measured."""
    on = f"\nMeasured on {results['machine']}.\n" if results.get("machine") else ""
    pages = [page(results[name]["rows"]) for name, (_, page) in SECTIONS.items() if name in results]
    return "\n\n".join([f"{INTRODUCTION}{on}".rstrip(), *pages]) + "\n"


def _options() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument(
        "--only", type=some_of(SECTIONS, "section"), default=tuple(SECTIONS), help=f"some of {','.join(SECTIONS)}"
    )
    parser.add_argument("--results", type=Path, default=Path.home() / ".cache" / "edged-faults.json")
    parser.add_argument("--page", type=Path, default=Path("docs/reliability.md"))
    parser.add_argument("--machine", default="", help="description of the machine on the page")
    return parser.parse_args()


if __name__ == "__main__":
    main()
