from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.serving.closed_load import Client, Sent
from benchmarks.serving.load import Answer
from benchmarks.serving.overhead import AT_ONCE, Way, measure

LATENCIES = {"edged": 0.002, "triton": 0.001}


@dataclass
class Recorded:
    """Answers after a given time, and writes down whose turn it was."""

    name: str
    turns: list[tuple[str, int]] = field(default_factory=list)

    def send(self, requests: int) -> Sent:
        first = self.name not in [name for name, _ in self.turns]
        self.turns.append((self.name, requests))
        late = 1.0 if first else LATENCIES[self.name]  # the first request of a server, which is a warm-up
        status = 200 if self.name == "edged" else 503
        return Sent([Answer(0, 0.0, 0.0, late, status, b"")] * requests, 0.0005 * requests)

    def close(self) -> None:
        pass


def ways(turns: list[tuple[str, int]]) -> list[Way]:
    def clients(name: str) -> dict[int, Client]:
        return {1: Recorded(name, turns), AT_ONCE: Recorded(name, turns)}

    return [Way("jpeg", name, "http", False, clients(name)) for name in LATENCIES]


def test_servers_take_turns_request_by_request_and_the_first_ones_do_not_count() -> None:
    turns: list[tuple[str, int]] = []
    rows = measure(ways(turns), at_once=1, requests=50)
    assert [(row["server"], row["requests"], row["failed"]) for row in rows] == [("edged", 50, 0), ("triton", 50, 50)]
    assert [row["closed"]["worst"] for row in rows] == [2.0, 1.0]
    assert [row["client_ms"] for row in rows] == [0.5, 0.5]
    pairs = [{turns[index][0], turns[index + 1][0]} for index in range(0, len(turns), 2)]
    assert pairs == [set(LATENCIES)] * len(pairs)
    assert {name for name, _ in turns[::2]} == set(LATENCIES)  # each is the first one now and then


def test_several_requests_at_a_time_are_sent_in_blocks() -> None:
    turns: list[tuple[str, int]] = []
    rows = measure(ways(turns), at_once=AT_ONCE, requests=10 * 8 * AT_ONCE)
    assert {requests for _, requests in turns} == {8 * AT_ONCE}
    assert [row["requests"] for row in rows] == [10 * 8 * AT_ONCE] * 2
    assert [row["closed"]["worst"] for row in rows] == [2.0, 1.0]
