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
    present = [name for name in _PARTS if name in results]
    measured = {name: [row for row in results[name]["rows"] if "missing" not in row] for name in present}
    goals = [entry for name in present for entry in _GOALS[name](measured[name])]
    parts = [f"# Serving\n\n`{COMMAND}`" + (f" on {machine}." if machine else "."), _INTRODUCTION.strip()]
    if goals:
        missed = sum(verdict != "met" for *_, verdict in goals)
        parts += [goals_section(goals), f"{len(goals) - missed} of {len(goals)} goals are met."]
    if len({results[name].get("commit") for name in present}) > 1:
        parts.append(_STATES.strip())
    for name in present:
        title, describe = _PARTS[name]
        section = results[name]
        missing = [f"- {row['missing']}" for row in section["rows"] if "missing" in row]
        described = [describe(measured[name])] if measured[name] else []
        parts += [f"## {title}\n\n{_origin(name, section)}", *described, *filter(None, ["\n".join(missing)])]
    return "\n\n".join(parts) + "\n"


def _origin(name: str, section: dict[str, Any]) -> str:
    """Return when and how a section was measured."""
    command = f"`{COMMAND}{' --quick' if section.get('quick') else ''} --only {name}`"
    state = f" at {section['commit']}" if section.get("commit") else ""
    load = f"load average {section['load_before']:.1f} before it"
    if "load_after" in section:
        load += f" and {section['load_after']:.1f} after it"
    note = f" {section['note']}" if section.get("note") else ""
    return f"{command}, {section['when']}{state}, {section['seconds']} s, {load}.{note}"


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
        ("memory after 5 swaps, after all, MiB", f"{row['memory_few'] / MIB:.1f}, {row['memory_many'] / MIB:.1f}"),
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
How edged serves under load, swaps and other work, compared with other servers. One program runs the servers, sends the
requests and checks the responses.

Unless a section says otherwise, requests are sent at a fixed rate over 16 keep-alive connections, and the latency of a
request counts from the time at which it was due: if a server stalls, all requests that become due in the meantime are
late. The model is a ResNet-20 for CIFAR images of 32x32 pixels, and tensors are sent as bytes. Client, servers and
worker share the cores of the machine, as does whatever else runs on it, which the load averages show. So compare
figures within a table, not between tables.
"""
_STATES = """
The sections were not measured at the same state of the code. Each names its commit: what changed later is not in it.
"""
_RELOAD = """
Each server reloads its model several times at 50 requests a second. edged changes to the previous generation and back
(`edged rollback`). Triton, with its Python backend, and MLServer load the same artifacts through their repository APIs
and compute them with the same engine. Memory is that of all processes of a server, with shared pages counted once,
after the first reload and after the last. Only some 70 requests coincide with the reloads of edged, so its p99 is close
to the worst latency.
"""
_SWAPS = """
edged alone, with at most one swap a second. For some of the swaps a new checkpoint is dropped, so a worker quantizes it
while requests are served. All requests are equal and the generations have different weights. So the program finds
responses whose outputs are not those of the generation that they name, and responses of a generation after its
successor has responded, over any connection (`benchmarks/serving/checks.py`).
"""
_CONTENTION = """
The worker quantizes a ResNet-50 at 160 pixels while another model serves 50 requests a second. By default the worker
leaves one core free from the first request until no request has come for some seconds. A number as `worker.threads`
fixes how many cores it uses; "all cores" was the default before. "not niced" and "default waiting" also undo edged's
scheduling: `worker.nice: 0`, and OpenMP's default settings in all children.
"""
_DURATIONS = """
How long the same worker takes for all its stages, with fewer images: the median of runs that alternate. `times` is
relative to the same settings without requests, and the p99 covers all stages.
"""
_OVERHEAD = """
What a server adds to a request: the networks return zeros without computing. An image of 224x224 pixels is sent as a
prepared FP32 tensor (602 kB), as UINT8 pixels (151 kB) and as a JPEG file of 500x375 pixels (50 kB). All servers run at
once and take turns. "edged's, times" is edged's p50 and p99 divided by those of the row.

In most rows no server prepares images, so that these rows compare how servers receive a body, pass it on and answer:
edged is altered to return zeros where it would decode or normalize, Triton's Python backend returns zeros at once, and
uvicorn reads the body and returns 40 bytes. edged still copies FP32 tensors and checks them for NaN. Where a row says
so, the server prepares the image: edged as it is, and Triton's Python backend with the same functions, which decode,
scale and normalize. uvicorn answers in the process that reads the body. edged and Triton pass it on to the process that
computes the model, and its answer back, which is most of the time that they take for a small body.

MLServer and LitServe do not read tensors as bytes, so they get base64 in JSON. HTTP requests come from one thread that
sends bytes prepared beforehand, gRPC requests from tritonclient. The last column is the CPU time of the client for one
request when one is sent at a time. It is part of all latencies.
"""
_MEMORY = """
Memory of all processes at rest, without pages of files and with shared pages counted once. The second daemon is altered
to leak 1 MiB in the supervisor with each swap, to show that the check finds a leak (`benchmarks/serving/altered`).
"""
_KILL = """
The serving process is killed with `kill -9` at 50 requests a second. Recovery is the time until the first response to a
request that was sent after the kill.
"""
_ENDURANCE = """
The client is NVIDIA's perf_analyzer with 16 connections. It sends a prepared FP32 tensor, UINT8 pixels and a JPEG file
in turns. First it finds the highest rate with 16 requests in flight, then it sends 80 % of that, in runs of a minute.
Its latencies count from when a request was sent: the p50 is the median of the runs, the p99 that of the worst run.
Memory is that of all processes without pages of files, sampled every 2 s: the median between 10 and 30 % of the time,
the median of the last fifth, and the highest value. Failures are counted by the daemon's own metrics; perf_analyzer
stops at the first one.
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
