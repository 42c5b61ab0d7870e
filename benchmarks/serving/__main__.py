"""Measure serving: swaps under load, next to Triton, MLServer and LitServe. Writes docs/serving.md.

python -m benchmarks.serving --setup-peers DIR             create the virtual environments of the peers, once
python -m benchmarks.serving --peers DIR --machine NAME    measure all sections; --only swaps,kill selects some

Results are stored in --results by section, and the page shows all sections in that file. EDGED_PEERS sets the default
of --peers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.checkout import commit
from benchmarks.options import parser_of, some_of
from benchmarks.serving.effort import PEERS, QUICK, Effort
from benchmarks.serving.page import document
from benchmarks.serving.peers.server import set_up
from benchmarks.serving.sections import SECTIONS


def main() -> None:
    """Measure the selected sections and write the page."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the servers are stopped, too
    if options.setup_peers is not None:
        set_up(options.setup_peers)
        return
    effort = dataclasses.replace(QUICK if options.quick else Effort(), peers=options.peers, compare=options.compare)
    if options.minutes is not None:
        effort = dataclasses.replace(effort, minutes=options.minutes)
    results: dict[str, Any] = json.loads(options.results.read_text()) if options.results.exists() else {}
    if options.machine:
        results["machine"] = options.machine
    for name in options.only:
        print(f"{name} ...", flush=True)
        start, load, state = time.time(), os.getloadavg()[0], commit()
        rows = SECTIONS[name](effort)
        when = time.strftime("%Y-%m-%d", time.gmtime(start))
        results[name] = {
            "rows": rows,
            "when": when,
            "seconds": round(time.time() - start),
            "load_before": round(load, 1),
            "load_after": round(os.getloadavg()[0], 1),
            "commit": state,
            "quick": options.quick,
            "note": options.note,
        }
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(results, indent=1))
        for row in rows:
            print("   ", row.get("missing") or json.dumps(row), flush=True)
    options.page.write_text(document(results))
    print(f"results in {options.results}, page in {options.page}")


def _options() -> argparse.Namespace:
    parser = parser_of(__doc__)
    peers = os.environ.get("EDGED_PEERS")
    parser.add_argument("--setup-peers", type=Path, metavar="DIR", help="install the peers there and exit")
    parser.add_argument("--peers", type=Path, metavar="DIR", default=Path(peers) if peers else None)
    parser.add_argument(
        "--only", type=some_of(SECTIONS, "section"), default=list(SECTIONS), help=f"some of {','.join(SECTIONS)}"
    )
    parser.add_argument(
        "--compare",
        type=some_of(PEERS, "server"),
        default=PEERS,
        help=f"some of {','.join(PEERS)}, which is the default",
    )
    parser.add_argument("--results", type=Path, default=Path.home() / ".cache" / "edged-serving.json")
    parser.add_argument("--page", type=Path, default=Path("docs/serving.md"))
    parser.add_argument("--machine", default="", help="description of the machine on the page")
    parser.add_argument("--note", default="", help="sentence on the page about how these sections were measured")
    parser.add_argument("--minutes", type=float, help=f"minutes of the section endurance ({Effort().minutes})")
    parser.add_argument("--quick", action="store_true", help="measure a tenth: minutes instead of half an hour")
    return parser.parse_args()


if __name__ == "__main__":
    main()
