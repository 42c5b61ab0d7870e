"""Count what faults and hostile input do. Writes docs/reliability.md.

python -m benchmarks.faults                 try all sections
python -m benchmarks.faults --only files    try some

The sections of the page that were not tried stay as they are. The rows of each section are stored in the folder
--results. The exit code is 1 if anything was lost, ran or grew without bound.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.checkout import commit
from benchmarks.faults.section import load, measured, names, with_section
from benchmarks.options import parser_of, some_of


def main() -> None:
    """Try the selected sections and write the page."""
    options = _options()
    options.results.mkdir(parents=True, exist_ok=True)
    faults: list[str] = []
    for name in options.only:
        print(f"{name} ...", flush=True)
        section, when, state = load(name), time.strftime("%Y-%m-%d", time.gmtime()), commit()
        rows = section.measure(options)
        faults += [f"{name}: {fault}" for row in rows for fault in row.get("faults", ())]
        for row in rows:
            print("   ", json.dumps(row), flush=True)
        results = {"rows": rows, "when": when, "commit": state, "times": options.times}
        (options.results / f"{name}.json").write_text(json.dumps(results, indent=1))
        text = f"{measured(name, options.times, when, state)}\n\n{section.page(rows)}"
        options.page.write_text(with_section(options.page.read_text(), section.TITLE, text))
    print(f"results in {options.results}, page in {options.page}")
    if faults:
        sys.exit("\n".join(["faults:", *faults]))


def _options() -> argparse.Namespace:
    parser = parser_of(__doc__)
    known = names()
    parser.add_argument("--only", type=some_of(known, "section"), default=known, help=f"some of {','.join(known)}")
    parser.add_argument("--times", type=int, help="how often a section that repeats something does so")
    parser.add_argument("--results", type=Path, default=Path.home() / ".cache" / "edged-faults")
    parser.add_argument("--page", type=Path, default=Path("docs/reliability.md"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
