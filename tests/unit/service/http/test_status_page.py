import re

import pytest

from service.daemon.samples import Sample
from service.http.status_page import DOCUMENTATION, Rights, render
from service.reporting.candidates import candidates
from tests.support import reports
from tests.support.html_text import Text
from tests.support.repository import ROOT

LOCAL = Rights(actions=True, local=True)
TOKEN = Rights(actions=True, local=False)
NONE = Rights(actions=False, local=False)
EVIL = "\"'><script>alert(1)</script>&{x}"


def overview(name="m", text="plain", live=True):
    listed = candidates({"candidates": reports.candidates(text)})
    layers = [{"name": text, "bits": 4, "relative_loss": 0.002}, {"name": "fc", "bits": 8, "relative_loss": 0.001}]
    facts = {"bits": 4, "runtime": "torch", "architecture": text, "file_name": text, "agreement": 95.0,
             "weights": f"averaged, key {text!r}", "reading": f"assumed: {text}",
             "figures": [("top-1", "86.25 % (full precision 87.00 %, drop +0.75)"), ("agreement", f"95.0 % of {text}")],
             "sha256": "ab" * 32, "made_at": "2026-01-01T00:00:00+00:00", "artifact_bytes": 5 << 20,
             "precision": "integer", "layers_in_float": [text],
             "candidates": [each._asdict() for each in listed]}  # fmt: skip
    model = {
        "name": name,
        "ready": live,
        "generation": 7 if live else None,
        "problem": None if live else text,
        "restarts": 0,
        "rss_bytes": 3 << 20,
        "held": 1,
        "pinned": False,
        "paused": True,
        "probation": True,
        "live": facts if live else None,
        "layers": layers if live else [],
        "rollback": {"generation": 6, "file_name": text} if live else None,
        "samples": [Sample(10.0 * i, 52, 3 * (i == 4), 0.01, 0.02, 1 << 20) for i in range(5)] if live else [],
    }
    update = {
        "id": 3,
        "model": name,
        "file_name": text,
        "state": "REJECTED",
        "sha256": "cd" * 32,
        "dropped_at": "2026-01-01T00:00:00.000Z",
        "generation": None,
        "code": "gate",
        "reason": text,
        "stages": {"settle": 1.0, "verify": 0.5},
        "progress": {"stage": text, "done": 1},
    }
    running = {**update, "id": 4, "state": "LOADED", "progress": {"stage": text, "done": 35, "total": 50}}
    row = {
        "update": 4,
        "model": name,
        "file": text,
        "state": "LOADED",
        "since": 0.0,
        "position": 0,
        "waiting_for": None,
    }
    device = {"disk_free_bytes": 3 << 30, "disk_total_bytes": 8 << 30, "zone": text, "temperature_c": 52.4,
              "temperature_limit_c": 99.0}  # fmt: skip
    return {
        "ready": live,
        "started_at": "2026-01-01T00:00:00.000Z",
        "version": "9.8.7",
        "host": text,
        "device": device,
        "drop_dir": text,
        "address": text,
        "models": [model],
        "updates": [update],
        "open": [running],
        "queue": [row, {**row, "update": 5, "state": "QUEUED", "position": 1, "waiting_for": text}],
        "unclaimed": [{"path": text, "kind": "file", "reason": text, "since": 0.0}],
    }


def test_everything_at_a_glance():
    page = render(overview(), LOCAL)
    shown = Text(page).spaced
    for expected in (
        "ready",
        "serving",
        "paused",
        "on probation",
        "Runtime torch, integer",
        "Weights averaged, key 'plain'",
        "Reading assumed: plain",
        "Layers in float plain",
        "onnxruntime integer, 1 in float 4.53 ms 95.00 % 86.25 % (drop +0.75) 12.0 MiB serves",
        "Top-1 86.25 % full precision 87.00 %, drop +0.75",
        "Agreement 95.0 % of plain",
        "5.2 /s",
        "0.3 /s 3 in the last hour",
        "3.0 MiB",
        "Roll back to generation 6",
        "1.50 s",
        "gate: plain",
        "Host plain",
        "9.8.7",
        "3.0 GiB of 8.0 GiB",
        "52 °C",
        "2026-01-01 00:00:00 UTC",
        "35/50",
    ):
        assert expected in shown, expected
    assert "pinned" not in shown
    assert page.count('<rect class="bar"') == 2
    assert "at most 20." in page  # ms; the description of the chart of latency
    assert "260, of which 3 failed" in page


def test_a_file_that_was_kept_can_be_retried():
    posts = [tag.get("data-post") for tag in buttons(render(overview(), LOCAL))]
    assert "/edged/v1/updates/3/retry" in posts
    live = overview()
    live["updates"][0]["state"] = "COMMITTED"
    assert "/edged/v1/updates/3/retry" not in render(live, LOCAL)


def test_curl_is_an_alternative_to_the_script():
    line = "curl -F image=@photo.jpg{} plain/v2/models/m/infer"
    assert line.format("") in Text(render(overview(), LOCAL)).text
    needs_token = Rights(actions=False, local=False, inference_token=True)
    assert line.format(" -H 'Authorization: Bearer TOKEN'") in Text(render(overview(), needs_token)).text


def test_large_figures_have_no_exponent():
    busy = overview()
    busy["models"][0]["samples"] = [Sample(10.0 * i, 12_345, 0, 0.9, 1.0, 1 << 20) for i in range(5)]
    shown = Text(render(busy, LOCAL)).spaced
    for expected in ("Requests 1234 /s", "Latency p99 1000 ms", "1500 /s", "500 ms"):
        assert expected in shown, expected
    assert "e+0" not in shown


def test_a_device_near_its_limit_says_so():
    hot = overview()
    hot["device"]["temperature_c"] = 97.0
    assert "97 °C, near its limit" in Text(render(hot, LOCAL)).text


def test_what_a_device_cannot_read_is_left_out():
    bare = overview() | {"device": dict.fromkeys(overview()["device"])}
    shown = Text(render(bare, LOCAL)).text
    assert "Disk free" not in shown
    assert "Temperature" not in shown


def test_a_whole_digest_can_be_copied():
    copied = [tag["data-copy"] for tag in buttons(render(overview(), LOCAL)) if "data-copy" in tag]
    assert copied == ["ab" * 32, "cd" * 32]


def buttons(page):
    return [attributes for tag, attributes in Text(page).tags if tag == "button"]


@pytest.mark.parametrize(
    ("changes", "why"), [({"pinned": True}, "pinned"), ({"rollback": None}, "no generation before")]
)
def test_a_rollback_that_is_not_possible_is_disabled(changes, why):
    seen = overview()
    seen["models"][0] |= changes
    page = render(seen, LOCAL)
    assert why in Text(page).text
    assert [tag["aria-label"] for tag in buttons(page) if "disabled" in tag] == ["Roll back m"]
    assert "/rollback" not in page


def test_the_documentation_is_that_of_the_project():
    assert f'Documentation = "{DOCUMENTATION}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("live", [True, False])
def test_nothing_from_outside_becomes_markup(live):
    seen = Text(render(overview(text=EVIL, live=live), TOKEN))
    assert [attributes for tag, attributes in seen.tags if tag == "script"] == [
        {"type": "module", "src": "/static/status.js"}
    ]
    assert EVIL in seen.text
    plain = Text(render(overview(live=live), TOKEN))
    assert [tag for tag, _ in seen.tags] == [tag for tag, _ in plain.tags]


def test_the_policy_of_the_page_allows_all_that_is_in_it():
    page = render(overview(), TOKEN).replace(f'href="{DOCUMENTATION}"', "")
    for forbidden in (" style=", "<style", "javascript:", "onclick", "http://", "https://"):
        assert forbidden not in page


@pytest.mark.parametrize(
    ("rights", "token", "actions"),
    [
        (LOCAL, None, True),
        (TOKEN, "for actions, see serve.token_file", True),
        (NONE, None, False),
        (Rights(False, False, inference_token=True), "for inference, see serve.inference_token_file", False),
    ],
)
def test_what_a_viewer_may_do_is_shown(rights, token, actions):
    page = render(overview(), rights)
    assert page.count('id="token"') == (token is not None)
    assert token is None or token in Text(page).text
    assert bool([tag for tag in buttons(page) if "data-post" in tag]) == actions
    assert ("Actions need serve.token_file" in page) == (not actions)


def test_every_label_names_something_that_is_there():
    page = render(overview(), TOKEN)
    identities = re.findall(r' id="([^"]+)"', page)
    assert len(identities) == len(set(identities))
    assert set(re.findall(r'aria-labelledby="([^"]+)"', page)) <= set(identities)


def test_what_is_wrong_with_the_state_folder_is_shown():
    page = render(overview() | {"state_problems": ["state_dir <x> is gone", "journal.db was damaged"]}, NONE)
    shown = Text(page).text
    assert "State folder" in shown
    assert "state_dir <x> is gone" in shown
    assert "journal.db was damaged" in shown
    assert "State folder" not in Text(render(overview() | {"state_problems": []}, NONE)).text


def test_a_device_where_nothing_happened_yet():
    fresh = overview(live=False) | {"updates": [], "open": [], "queue": [], "unclaimed": [], "drop_dir": "/var/drop"}
    shown = Text(render(fresh, NONE)).text
    for expected in ("not ready", "not serving", "Nothing is live", "/var/drop/m/", "no updates yet", "Nothing runs"):
        assert expected in shown
