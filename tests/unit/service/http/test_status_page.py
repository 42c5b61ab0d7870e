import re

import pytest

from service.daemon.samples import Sample
from service.http.status_page import render
from tests.support.html_text import Text

EVIL = "\"'><script>alert(1)</script>&{x}"


def overview(name="m", text="plain", live=True):
    layers = [{"name": text, "bits": 4, "relative_loss": 0.002}, {"name": "fc", "bits": 8, "relative_loss": 0.001}]
    facts = {"bits": 4, "runtime": "torch", "architecture": text, "file_name": text, "agreement": 95.0}
    model = {
        "name": name,
        "ready": live,
        "generation": 7 if live else None,
        "problem": None if live else text,
        "restarts": 0,
        "rss_bytes": 3 << 20,
        "held": 1,
        "pinned": True,
        "paused": False,
        "probation": True,
        "live": facts if live else None,
        "layers": layers if live else [],
        "samples": [Sample(10.0 * i, 5, 0, 0.01, 0.02, 1 << 20) for i in range(5)] if live else [],
    }
    update = {
        "id": 3,
        "model": name,
        "file_name": text,
        "state": "REJECTED",
        "generation": None,
        "code": "gate",
        "reason": text,
        "stages": {"settle": 1.0, "verify": 0.5},
        "progress": {"stage": text, "done": 1},
    }
    return {"ready": live, "started_at": "2026-01-01", "drop_dir": text, "models": [model], "updates": [update]}


def test_everything_at_a_glance():
    page = render(overview(), actions=True, local=True)
    shown = Text(page).text
    for expected in (
        "ready",
        "serving",
        "pinned",
        "on probation",
        "torch",
        "95.0 %",
        "3.0 MiB",
        "1.50 s",
        "gate: plain",
    ):
        assert expected in shown
    assert "paused" not in shown
    assert page.count("<rect") == 2
    assert "at most 20." in page  # ms; the description of the chart of latency


@pytest.mark.parametrize("live", [True, False])
def test_nothing_from_outside_becomes_markup(live):
    seen = Text(render(overview(text=EVIL, live=live), actions=True, local=False))
    assert [attributes for tag, attributes in seen.tags if tag == "script"] == [
        {"src": "/static/status.js", "defer": None}
    ]
    assert EVIL in seen.text
    plain = Text(render(overview(live=live), actions=True, local=False))
    assert [tag for tag, _ in seen.tags] == [tag for tag, _ in plain.tags]


def test_the_policy_of_the_page_allows_all_that_is_in_it():
    page = render(overview(), actions=True, local=False)
    for forbidden in (" style=", "<style", "javascript:", "onclick", "http://", "https://"):
        assert forbidden not in page


@pytest.mark.parametrize(
    ("actions", "local", "token", "buttons"), [(True, True, 0, 2), (True, False, 1, 2), (False, False, 0, 0)]
)
def test_actions_are_shown_to_those_who_may_act(actions, local, token, buttons):
    page = render(overview(), actions=actions, local=local)
    assert (page.count('id="token"'), page.count("<button")) == (token, buttons)
    assert ("Actions need serve.token_file" in page) == (not actions)


def test_every_label_names_something_that_is_there():
    page = render(overview(), actions=True, local=False)
    identities = re.findall(r' id="([^"]+)"', page)
    assert len(identities) == len(set(identities))
    assert set(re.findall(r'aria-labelledby="([^"]+)"', page)) <= set(identities)


def test_a_device_where_nothing_happened_yet():
    fresh = overview(live=False) | {"updates": []}
    shown = Text(render(fresh, actions=False, local=False)).text
    for expected in ("not ready", "not serving", "nothing is live", "no updates yet"):
        assert expected in shown
