"""Updates as JSON."""

from __future__ import annotations

import pytest

from service.journal.states import State
from service.journal.update import Update, UpdateReport


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"agreement": 99.0, "fp32": {"top1": 76.1}},
        {"agreement": 99.0, "swap": {"policy": "resource"}, "shadow": {"images": 3}, "rollback": {"policy": "auto"}},
        {"agreement": 99.0, "of another version": [1, 2], "swap": {"policy": "resource"}},
    ],
)
def test_a_report_reads_what_it_writes(data: dict[str, object]) -> None:
    assert UpdateReport.from_dict(data).to_dict() == data
    assert list(UpdateReport.from_dict(data).to_dict()) == list(data)


def test_a_report_keeps_its_parts_apart() -> None:
    report = UpdateReport.from_dict({"bits": 4, "swap": {"policy": "availability"}})
    assert report == UpdateReport({"bits": 4}, swap={"policy": "availability"})


def test_an_update_is_plain_json() -> None:
    report = UpdateReport({"bits": 4}, rollback={"policy": "auto"})
    update = Update(1, "m", State.LIVE, "a.pt", 5, None, None, 2, 1, None, None, 0.0, 1.0, {"load": 0.5}, report)
    plain = update.to_dict()
    assert plain["state"] == "LIVE"
    assert plain["report"] == {"bits": 4, "rollback": {"policy": "auto"}}
    assert plain["dropped_at"] == "1970-01-01T00:00:00.000Z"
