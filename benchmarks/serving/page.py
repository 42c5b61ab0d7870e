"""The page docs/serving.md, written from the results of benchmarks.serving."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.markdown import Goal, goal, goals_section, table

COMMAND = "python -m benchmarks.serving --peers DIR"
WORST_MS, SWAP_RATIO, QUANTIZING_RATIO, BUSY_RATIO, RECOVERY_S = 100, 1.5, 1.3, 2.0, 2.0
MEMORY_SHARE = 1.05
MIB = 1 << 20

_OVERHEAD_RATIOS = {"triton": 1.0, "uvicorn": 1.1}
_PAYLOADS = {"fp32": "FP32 tensor", "uint8": "UINT8 pixels", "jpeg": "JPEG file"}

_TRANSPORTS = {"http": "HTTP", "grpc": "gRPC"}

Rows = list[dict[str, Any]]
Way = tuple[str, str, bool]  # server, transport, and whether it prepares images


def document(results: dict[str, Any]) -> str:
    """Return the page.

    Args:
        results: Rows by section, as benchmarks.serving stores them.
    """
    machine = results.get("machine")
    parts = [f"# Serving\n\n`{COMMAND}`" + (f" on {machine}." if machine else "."), _INTRODUCTION.strip()]
    present = [name for name in _PARTS if name in results]
    measured = {name: [row for row in results[name]["rows"] if "missing" not in row] for name in present}
    goals = [entry for name in present for entry in _GOALS[name](measured[name])]
    if goals:
        parts.append(goals_section(goals))
    for name in present:
        title, describe = _PARTS[name]
        section = results[name]
        quick = " --quick" if section.get("quick") else ""
        busy = f"load average before it: {section['load_before']:.1f}"
        command = f"`{COMMAND}{quick} --only {name}`, {section['when']}, {section['seconds']} s; {busy}."
        missing = [f"- {row['missing']}" for row in section["rows"] if "missing" in row]
        parts += [f"## {title}\n\n{command}", describe(measured[name]), *filter(None, ["\n".join(missing)])]
    return "\n\n".join(parts) + "\n"


def _reload(rows: Rows) -> str:
    header = (
        "server",
        "reloads",
        "requests",
        "failed",
        "p50 / p99 steady, ms",
        "p99 / worst in reloads, ms",
        "one reload, s",
        "memory, MiB",
    )
    lines = [
        (
            *(row["server"], row["reloads"], row["requests"], row["failed"]),
            f"{row['steady']['p50']:.1f} / {row['steady']['p99']:.1f}",
            f"{row['swapping']['p99']:.1f} / {row['swapping']['worst']:.1f}",
            f"{row['reload_s']:.2f}",
            f"{row['memory_before'] / MIB:.0f} -> {row['memory_after'] / MIB:.0f}",
        )
        for row in rows
    ]
    return _RELOAD.strip() + "\n\n" + table(header, lines)


def _swaps(rows: Rows) -> str:
    (row,) = rows
    lines = [
        ("swaps, of which freshly dropped checkpoints", f"{row['swaps']}, {row['drops']}, in {row['seconds']} s"),
        ("requests, of which during swaps", f"{row['requests']}, {row['during']}, {row['rate']:g} a second"),
        ("failed", row["failed"]),
        ("responses of mixed or retired generations", len(row["of_two"]) + len(row["went_back"])),
        ("p50 / p99 steady, ms", f"{row['steady']['p50']:.1f} / {row['steady']['p99']:.1f}"),
        ("p50 / p99 / worst during swaps, ms", " / ".join(f"{row['swapping'][key]:.1f}" for key in _KEYS)),
    ]
    return _SWAPS.strip() + "\n\n" + table(("", ""), lines)


def _contention(rows: Rows) -> str:
    header = ("", "p50 / p99 idle, ms", "p50 / p99 / worst while quantizing, ms", "p99, times")
    lines = [
        (
            row["variant"],
            f"{row['idle']['p50']:.1f} / {row['idle']['p99']:.1f}",
            " / ".join(f"{row['quantizing'][key]:.1f}" for key in _KEYS),
            f"{row['quantizing']['p99'] / row['idle']['p99']:.2f}",
        )
        for row in rows
        if "quantizing" in row
    ]
    return _CONTENTION.strip() + "\n\n" + table(header, lines) + "\n\n" + _durations(rows)


def _durations(rows: Rows) -> str:
    timed = {(row["variant"], row["rate"]): row for row in rows if "took_s" in row}
    header = ("", "requests a second", "the worker's time, s", "times", "held back, s", "p99, ms")
    lines = []
    for (variant, rate), row in timed.items():
        times = row["took_s"] / timed[variant, 0.0]["took_s"]
        p99 = "" if row["p99"] is None else f"{row['p99']:.1f}"
        lines.append((variant, f"{rate:g}", f"{row['took_s']:.1f}", f"{times:.2f}", f"{row['held_back_s']:.1f}", p99))
    return _DURATIONS.strip() + "\n\n" + table(header, lines)


def _overhead(rows: Rows) -> str:
    parts = [_OVERHEAD.strip()]
    for payload in dict.fromkeys(row["payload"] for row in rows):
        one, several = (
            {way_of(row): row for row in rows if row["payload"] == payload and (row["at_once"] == 1) == alone}
            for alone in (True, False)
        )
        at_once = next(iter(several.values()))["at_once"]
        header = ["server"]
        for count in ("1", at_once):
            header += [f"p50 / p99, {count} at a time, ms", "edged's, times"]
        header.append("client, ms")
        lines = []
        for way, row in one.items():
            cells: list[str] = []
            for measured in (one, several):
                cells.append(" / ".join(f"{measured[way]['closed'][key]:.2f}" for key in _KEYS[:2]))
                cells.append(" / ".join(f"{ratio:.2f}" for ratio in ratios(measured, way)))
            lines.append((_way_title(way), *cells, f"{row['client_ms']:.2f}"))
        parts += [f"### {_PAYLOADS[payload]}", table(header, lines)]
    return "\n\n".join(parts)


def way_of(row: dict[str, Any]) -> Way:
    """Return what distinguishes the rows of one payload: server, transport, and whether it prepares images."""
    return row["server"], row["transport"], row["prepares"]


def ratios(measured: dict[Way, dict[str, Any]], way: Way) -> tuple[float, float]:
    """Return p50 and p99 of edged relative to another server that is asked the same way.

    Args:
        measured: Rows of one payload and one number of requests at a time.
        way: The other server.
    """
    _, transport, prepares = way
    ours, theirs = measured["edged", transport, prepares]["closed"], measured[way]["closed"]
    return ours["p50"] / theirs["p50"], ours["p99"] / theirs["p99"]


def _way_title(way: Way) -> str:
    server, transport, prepares = way
    return server + (", gRPC" if transport == "grpc" else "") + (" preparing the image" if prepares else "")


def _memory(rows: Rows) -> str:
    header = ("", "after 5 swaps, MiB", "after the last, MiB", "swaps", "check")
    lines = [
        (row["variant"], *(f"{row[key] / MIB:.1f}" for key in ("few", "many")), row["swaps"], _verdict(not row["grew"]))
        for row in rows
    ]
    return _MEMORY.strip() + "\n\n" + table(header, lines)


def _kill(rows: Rows) -> str:
    header = (
        "kill",
        "recovery, s",
        "one swap, s",
        "failed: in flight",
        "rejected meanwhile",
        "failed later",
    )
    lines = [
        (number, *(row[key] for key in ("recovered_s", "swap_s", "in_flight", "refused", "failed_later")))
        for number, row in enumerate(rows, start=1)
    ]
    return _KILL.strip() + "\n\n" + table(header, lines)


def _endurance(rows: Rows) -> str:
    header = (
        *("", "minutes", "highest rate, 1/s", "rate: wanted, sent, 1/s", "responses", "failed", "p50 / p99, ms"),
        "memory early, late, most, MiB",
    )
    lines = [
        (
            *(_TRANSPORTS[row["transport"]], row["minutes"], f"{row['highest']:.0f}"),
            f"{row['wanted']:.0f}, {row['rate']:.0f}",
            *(row["answered"], row["failed"]),
            f"{row['p50']:.1f} / {row['p99']:.1f}",
            ", ".join(f"{row[key] / MIB:.1f}" for key in ("early", "late", "most")),
        )
        for row in rows
    ]
    return _ENDURANCE.strip() + "\n\n" + table(header, lines)


def _reload_goals(rows: Rows) -> list[Goal]:
    row = next(row for row in rows if row["server"] == "edged")
    worst, ratio = row["swapping"]["worst"], row["memory_after"] / row["memory_before"]
    slower = row["swapping"]["p99"] / row["steady"]["p99"]
    return [
        goal("reload: no request fails", str(row["failed"]), row["failed"] == 0),
        goal(f"reload: worst latency at most {WORST_MS} ms", f"{worst:.0f} ms", worst <= WORST_MS),
        goal(f"reload: p99 at most {SWAP_RATIO:g} times steady", f"{slower:.2f} times", slower <= SWAP_RATIO),
        goal("reload: memory back to within 5 %", f"{100 * (ratio - 1):+.1f} %", ratio <= MEMORY_SHARE),
    ]


def _swaps_goals(rows: Rows) -> list[Goal]:
    (row,) = rows
    wrong = len(row["of_two"]) + len(row["went_back"])
    what = f"{row['swaps']} swaps, {row['requests']} requests"
    slower = row["swapping"]["p99"] / row["steady"]["p99"]
    return [
        goal(f"{what}: none fails", str(row["failed"]), row["failed"] == 0),
        goal(f"{what}: each response of one generation, never of a retired one", f"{wrong} others", wrong == 0),
        goal(f"{what}: p99 at most {SWAP_RATIO:g} times steady", f"{slower:.2f} times", slower <= SWAP_RATIO),
    ]


def _contention_goals(rows: Rows) -> list[Goal]:
    ratio = rows[0]["quantizing"]["p99"] / rows[0]["idle"]["p99"]
    what = f"p99 while quantizing at most {QUANTIZING_RATIO:g} times idle"
    took = {(row["variant"], row["rate"] > 0): row["took_s"] for row in rows if "took_s" in row}
    calm, busy = took[rows[0]["variant"], False], took[rows[0]["variant"], True]
    before = took["all cores for the worker", False]
    return [
        goal(what, f"{ratio:.2f} times", ratio <= QUANTIZING_RATIO),
        goal(
            f"quantizing with requests takes at most {BUSY_RATIO:g} times as long",
            f"{busy / calm:.2f} times",
            busy <= BUSY_RATIO * calm,
        ),
        goal(
            "quantizing without requests takes as long as with all cores, to 5 %",
            f"{calm / before:.2f} times",
            calm <= 1.05 * before,
        ),
    ]


def _overhead_goals(rows: Rows) -> list[Goal]:
    goals = []
    for payload in dict.fromkeys(row["payload"] for row in rows):
        own = [row for row in rows if row["payload"] == payload]
        for way in dict.fromkeys(way_of(row) for row in own):
            most = _OVERHEAD_RATIOS.get(way[0])
            if most is None:
                continue
            found, texts = [], []
            for at_once in dict.fromkeys(row["at_once"] for row in own):
                p50, p99 = ratios({way_of(row): row for row in own if row["at_once"] == at_once}, way)
                found += [p50, p99]
                texts.append(f"{p50:.2f} / {p99:.2f} times, {at_once} at a time")
            what = f"overhead, {_PAYLOADS[payload]}: p50 / p99 at most {most:g} times {_way_title(way)}"
            goals.append(goal(what, "; ".join(texts), max(found) <= most))
    return goals


def _memory_goals(rows: Rows) -> list[Goal]:
    ours, leaking = rows
    what = f"memory after {ours['swaps']} swaps at most 5 % above that after 5"
    found = f"{100 * (ours['many'] / ours['few'] - 1):+.1f} %"
    caught = "it does" if leaking["grew"] else "it does not"
    return [
        goal(what, found, not ours["grew"]),
        goal("a leaking daemon fails that check", caught, leaking["grew"]),
    ]


def _kill_goals(rows: Rows) -> list[Goal]:
    longest = max(row["recovered_s"] - row["swap_s"] for row in rows)
    others = sum(row["refused"] + row["failed_later"] for row in rows)
    return [
        goal(
            f"kill -9: recovery within {RECOVERY_S:g} s and a load",
            f"a load and {longest:.2f} s",
            longest <= RECOVERY_S,
        ),
        goal("kill -9: only requests in flight fail", f"{others} others", others == 0),
    ]


def _endurance_goals(rows: Rows) -> list[Goal]:
    goals = []
    for row in rows:
        what = f"{row['minutes']} minutes of perf_analyzer over {_TRANSPORTS[row['transport']]}"
        growth = f"{100 * (row['late'] / row['early'] - 1):+.1f} %"
        goals.append(goal(f"{what}: nothing fails", f"{row['failed']} of {row['answered']}", row["failed"] == 0))
        goals.append(goal(f"{what}: memory grows by at most 5 %", growth, not row["grew"]))
    return goals


def _verdict(passed: bool) -> str:
    return "passes" if passed else "fails"


_KEYS = ("p50", "p99", "worst")
_INTRODUCTION = """
Load is open: requests are due at a steady rate over 16 keep-alive connections, and latency counts from when a request
was due, so a stall delays all requests that are due meanwhile. Client, servers and worker share the machine's cores.
The network is a CIFAR ResNet-20 at 32 pixels, with FP32 tensors as bytes in requests and responses if the server
supports that. Other work on the machine affects the results: compare within a table.
"""
_RELOAD = """
Reloads at 50 requests a second. edged goes to the previous generation and back (`edged rollback`); Triton (Python
backend) and MLServer compute the same artifacts with the same engine, through their repository API. Memory is that of
all processes of the server, shared pages counted once, after a first reload and after the last. Ten reloads of edged
coincide with some 70 requests, so their p99 is close to the worst.
"""
_SWAPS = """
edged alone, with at most a swap per second. Some swaps are to freshly dropped checkpoints, for which a worker computes
while requests are served. All requests are equal and all generations differ, so the check finds outputs that do not
belong to the generation that a response names, and responses of a generation after its successor has responded, over
any connection (`benchmarks/serving/checks.py`).
"""
_CONTENTION = """
A ResNet-50 is quantized by the daemon's worker at 160 pixels while another model serves 50 requests a second.
By default the worker is kept off one core from the first request until some seconds of silence. A number as
`worker.threads` fixes its cores: "all cores" was the default before. The last rows undo more of edged's scheduling, by
`worker.nice: 0` and by OpenMP's default settings in all children.
"""
_DURATIONS = """
The time of the same worker in all its stages, with fewer images: median of runs in turn. `times` compares it with the
same settings without requests, and the p99 is that of all the stages.
"""
_OVERHEAD = """
What a server adds to a request: the networks return zeros without computing. An image of 224x224 pixels is sent as a
prepared FP32 tensor (602 kB), as UINT8 pixels (151 kB) and as a JPEG file of 500x375 pixels (50 kB). All servers run at
once and take turns. "edged's, times" is edged's p50 and p99 divided by those of the row.

By default no server prepares images, so that rows compare how bodies are received, passed on and answered: edged is
altered to return zeros where it would decode or normalize, Triton's Python backend returns zeros at once, and uvicorn
reads the body and returns 40 bytes. edged still copies FP32 tensors and checks them for NaN. Where a row says so, the
server prepares the image: edged as it is, and Triton's Python backend with the same functions, which decode, scale and
normalize.

MLServer and LitServe do not read bytes and get base64 in JSON. HTTP requests come from one thread of a client that
prepares its bytes beforehand, gRPC requests from tritonclient. The last column is the CPU time of the client for one
request when one is sent at a time; it is part of all latencies.
"""
_MEMORY = """
Memory of all processes at rest without pages of files, shared pages counted once. The leaking daemon leaks 1 MiB in the
supervisor for each swap; `benchmarks/serving/altered` makes this change, the daemon has no switch for it.
"""
_KILL = """
`kill -9` of the serving process at 50 requests a second. Recovery is the first response to a request sent after it.
"""
_ENDURANCE = """
NVIDIA's perf_analyzer as client: 16 connections, a prepared FP32 tensor, UINT8 pixels and a JPEG file in turns. First
it finds the highest rate with 16 requests in flight, then it sends 80 % of that. Its latencies count from when a
request was sent. Memory is that of all processes without pages of files, sampled every 2 s: the median between 10 and
30 % of the time, that of the last fifth, and the highest value. Status codes are counted by the daemon's metrics.
"""
_PARTS: dict[str, tuple[str, Callable[[Rows], str]]] = {
    "reload": ("Reloads compared with other servers", _reload),
    "swaps": ("Swaps under load", _swaps),
    "contention": ("While quantizing", _contention),
    "overhead": ("Overhead of a request", _overhead),
    "memory": ("Memory", _memory),
    "kill": ("A killed generation", _kill),
    "endurance": ("Minutes of load from another client", _endurance),
}
_GOALS: dict[str, Callable[[Rows], list[Goal]]] = {
    "reload": _reload_goals,
    "swaps": _swaps_goals,
    "contention": _contention_goals,
    "overhead": _overhead_goals,
    "memory": _memory_goals,
    "kill": _kill_goals,
    "endurance": _endurance_goals,
}
