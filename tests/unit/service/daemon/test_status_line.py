from types import SimpleNamespace
from typing import Any

from service.daemon.status_line import status_line


def service(live: int | None = None, wanted: int | None = None, problem: str | None = None) -> Any:
    return SimpleNamespace(live=live and SimpleNamespace(number=live), wanted=wanted or live, problem=problem)


def queue(active: int | None = None, waiting: int = 0, deferred: bool = False) -> Any:
    update = active and SimpleNamespace(id=active, file_name="best.pt")
    return SimpleNamespace(active=update, waiting=waiting + bool(active), deferred=deferred)


def test_the_line_names_what_is_served_and_what_is_worked_on() -> None:
    servers = {"cam": service(live=3), "new": service()}
    queues = {"cam": queue(active=7, waiting=1), "new": queue()}
    progress = {7: {"stage": "quantize", "done": 12, "total": 21}}
    first = "serving cam generation 3; new has nothing to serve yet"
    expected = f"{first}; update 7 of cam (best.pt): quantize 12/21; 1 more waits"
    assert status_line(None, servers, queues, progress, True) == expected
    starved = {7: {"stage": "start", "done": 0, "total": None, "waits_for": "a core"}}
    assert status_line(None, servers, queues, starved, True) == expected.replace(
        "quantize 12/21", "start, waits for a core"
    )


def test_the_line_names_problems() -> None:
    services = {"cam": service(wanted=3, problem="has lost its process")}
    line = status_line(None, services, {"cam": queue(active=7, deferred=True)}, {}, False)
    assert (
        line == "cam has lost its process; update 7 of cam (best.pt): deferred, it is tried again;"
        " the drop folder is not watched"
    )


def test_the_line_begins_with_the_phase() -> None:
    services = {"cam": service(wanted=3)}
    assert status_line("starting", services, {}, {}, False) == "starting; cam generation 3 is being loaded"
    assert status_line("stopping", {"cam": service(live=3)}, {}, {}, True) == "stopping; serving cam generation 3"
    progress = {7: {"stage": "load", "done": 0, "total": None}}
    line = status_line(None, {}, {"cam": queue(active=7), "b": queue(active=8, waiting=2)}, progress, True)
    assert line == "update 7 of cam (best.pt): load; update 8 of b (best.pt): on its way; 2 more wait"
