import pytest

from service.http.queue_panel import queue_panel, unclaimed_panel
from tests.support.html_text import Text


def row(update, **changes):
    given = {
        "model": "shelf",
        "file": "best.pt",
        "state": "QUEUED",
        "since": 40.0,
        "position": 1,
        "waiting_for": "update 1",
    }
    return {"update": update, **given, **changes}


def opened(update, **changes):
    given = {"model": "shelf", "file_name": "best.pt", "state": "CALIBRATED", "dropped_at": "1970-01-01T00:00:40.000Z"}
    return {
        "id": update,
        **given,
        "stages": {"settle": 0.1, "claim": 0.1, "calibrate": 3.0},
        "progress": None,
    } | changes


def shown(markup):
    return Text(markup).spaced


def test_the_running_update_has_its_stage_and_its_layers():
    overview = {
        "queue": [row(1, state="CALIBRATED", position=0, waiting_for=None), row(2)],
        "open": [opened(1, progress={"stage": "layers", "done": 35, "total": 50})],
        "drop_dir": "/drop",
    }
    panel = queue_panel(overview, clock=lambda: 100.0)
    assert "update 1 of shelf : best.pt since 1970-01-01 00:00:40 UTC , 1 min 0 s" in shown(panel)
    assert "layers 35/50" in shown(panel)
    tags = Text(panel).tags
    assert [tag for name, tag in tags if name == "progress"] == [
        {"value": "35", "max": "50", "aria-label": "layers of update 1"}
    ]
    assert panel.count('aria-current="step">quantize</li>') == 1
    assert [tag["class"] for name, tag in tags if name == "li"].count("done") == 3
    assert [tag["class"] for name, tag in tags if name == "li" and "data-key" in tag] == ["running", "waiting"]
    assert "waits for update 1" in shown(panel)
    assert "its worker" not in shown(panel)
    overview["open"][0]["progress"] = {"stage": "start", "done": 0, "total": None, "waits_for": "a core, <so far>"}
    assert "its worker waits for a core, <so far>" in shown(queue_panel(overview, clock=lambda: 100.0))


def test_a_deferred_update_says_for_what_it_waits_and_when_it_is_tried_again():
    why = "zone is <85> C; tried again at 1970-01-01T00:02:00.000Z"
    overview = {"queue": [row(1, state="DEFERRED", position=0, waiting_for=why)], "drop_dir": "/drop"}
    panel = queue_panel(overview, clock=lambda: 100.0)
    assert "waits for zone is <85> C; tried again at 1970-01-01 00:02:00 UTC" in shown(panel)
    assert '<time datetime="1970-01-01T00:02:00.000Z">' in panel  # which the script shows in local time


@pytest.mark.parametrize(("state", "can"), [("QUEUED", 1), ("CALIBRATED", 1), ("LIVE", 0), ("DROPPED", 0)])
def test_an_update_can_be_cancelled_until_it_goes_live(state, can):
    overview = {"queue": [row(7, state=state)], "drop_dir": "/drop"}
    assert queue_panel(overview, actions=True).count('data-post="/edged/v1/updates/7/cancel"') == can
    assert "data-post" not in queue_panel(overview, actions=False)


def test_an_update_that_is_not_among_the_open_ones_is_still_shown():
    assert "update 9" in shown(queue_panel({"queue": [row(9, waiting_for=None, state="LIVE")], "drop_dir": "/drop"}))


def test_without_updates_the_drop_folder_is_named():
    assert "Nothing runs or waits" in shown(queue_panel({"queue": [], "drop_dir": "/drop"}))
    assert "/drop/" in shown(queue_panel({"queue": [], "drop_dir": "/drop"}))


def test_files_that_were_not_taken_have_their_reason():
    found = [{"path": "drop/best.pt", "kind": "file", "reason": "is in no model's folder", "since": 90.0}]
    text = shown(unclaimed_panel(found, clock=lambda: 100.0))
    assert "drop/best.pt file, since 1970-01-01 00:01:30 UTC , 10.0 s is in no model's folder" in text
    assert unclaimed_panel([]) == ""
