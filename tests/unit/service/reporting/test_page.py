import base64
import hashlib
import re

import pytest

from service.reporting.data import without_pictures
from service.reporting.facts import facts
from service.reporting.page import policy, render
from tests.support.html_text import Text
from tests.support.reports import PICTURE, data_of, detections

EVIL = "\"'><script>alert(1)</script>&{x}"


def tags(page, name):
    """Return the attributes of every tag of that name."""
    return [attributes for tag, attributes in Text(page).tags if tag == name]


@pytest.mark.parametrize("predictions", [data_of(EVIL)["predictions"], detections(EVIL)], ids=["classes", "boxes"])
def test_external_text_is_escaped(predictions):
    tame, wild = (render(data_of(text, predictions=predictions)) for text in ("plain", EVIL))
    shape = [[(tag, sorted(attributes)) for tag, attributes in Text(page).tags] for page in (tame, wild)]
    assert shape[0] == shape[1]
    assert "<script" not in wild
    assert EVIL in Text(wild).text


@pytest.mark.parametrize("predictions", [data_of()["predictions"], detections()], ids=["classes", "boxes"])
def test_the_page_is_self_contained(predictions):
    page = render(data_of(predictions=predictions))
    assert not tags(page, "script")
    sources = [
        value for _, attributes in Text(page).tags for name, value in attributes.items() if name in ("src", "href")
    ]
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert not [attributes for _, attributes in Text(page).tags if "style" in attributes]


def test_a_page_without_pictures_says_how_to_see_them():
    hint = "as `edged report` does"
    assert hint not in Text(render(data_of())).text
    assert hint in Text(render(without_pictures(data_of()))).text


def test_the_candidates_are_a_table():
    shown = Text(render(data_of())).spaced
    assert "Candidates to serve Engine Numbers Time of an image Agreement Accuracy Memory Verdict" in shown
    assert "onnxruntime integer, 1 in float 4.53 ms 95.00 % 86.25 % (drop +0.75) 12.0 MiB serves" in shown
    bare = data_of()
    del bare["report"]["totals"]["candidates"]
    assert "Candidates to serve" not in Text(render(bare)).text


def test_the_policy_allows_only_the_style_of_the_page():
    page = render(data_of())
    style = re.search(r"<style>(.*)</style>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert (
        policy()
        == f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    (meta,) = [tag for tag in tags(page, "meta") if tag.get("http-equiv")]
    assert meta["content"] == policy()


def test_every_chart_has_a_description():
    labels = [tag["aria-label"] for tag in tags(render(data_of()), "svg") if "aria-label" in tag]
    assert labels == [
        "2 stages; the longest is quantize, 4.00 s",
        "Memory of the worker over 5.00 s: at most 300.0 MiB",
        "Loss of 2 layers; the highest is 0.002, of plain",
        "Bits of 2 layers: 4, 8",
    ]


def test_bits_for_each_layer_are_drawn_by_what_they_cost():
    data = data_of()
    known = {
        "uniform": [{"bits": 2, "bytes": 900, "error": 0.5}, {"bits": 3, "bytes": 1200, "error": 0.125}],
        "chosen": [{"bytes": 900, "error": 0.25}, {"bytes": 1200, "error": 0.0625}],
    }
    data["report"]["chosen_bits"] = {"bytes": 1000, "error": 0.2, "frontier": known, "layers": []}
    page = render(data)
    label = "Error of the outputs by bytes of the weights; this artifact takes 1000 B at 0.2"
    assert label in [tag["aria-label"] for tag in tags(page, "svg") if "aria-label" in tag]
    assert [tag["class"] for tag in tags(page, "circle")] == ["dot uniform"] * 2 + ["dot auto"] * 2 + ["dot artifact"]
    assert "<title>3 bits in all layers: 1.2 KiB, 0.125</title>" in page


def test_memory_is_divided_into_stages():
    page = render(data_of())
    bands = re.findall(r'<rect class="band \w+" x="([\d.]+)" .*?width="([\d.]+)".*?<title>(\w+)</title>', page)
    # The worker started 1 s after the drop and was sampled for 5 s; quantize started at 3 s and took 4 s: from 2 s on.
    assert bands == [("174.4", "165.6", "quantize")]


def test_unknown_facts_are_left_out():
    nothing = {"report": None, "manifest": None, "predictions": None, "course": None, "timeline": []}
    update = {**data_of()["update"], "state": "REJECTED", "code": "checkpoint", "reason": "empty", "stages": {},
              "generation": None, "sha256": None, "events": []}  # fmt: skip
    page = render(data_of(**nothing, update=update))
    assert "checkpoint: empty" in page
    assert not tags(page, "svg")
    assert facts(data_of(**nothing, update=update)) == [("Checkpoint", "1.0 MiB")]


def test_every_known_fact_is_listed():
    assert dict(facts(data_of())) == {
        "Generation": "3",
        "Architecture": "plain",
        "Bits": "4",
        "Method": "fastobq",
        "Served by": "onnxruntime, integer, 1 in float",
        "Layers in float": "plain",
        "Agreement": "95.00 % of 20 held-out images",
        "Calibration": "64 images",
        "Checkpoint": "1.0 MiB",
        "Artifact": "1000 B, 6.5 times smaller",
        "Device": "plain",
        "Peak memory of the worker": "300.0 MiB, 310.0 MiB planned, 1.0 GiB allowed",
        "Time of all stages": "5.00 s",
        "SHA-256": "ab" * 32,
    }


def test_how_long_the_worker_was_held_back():
    course = {**data_of()["course"], "held_back_s": 12.34}
    assert dict(facts(data_of(course=course)))["Worker held back for requests"] == "12.3 s"
    assert "Worker held back for requests" not in dict(facts(data_of(course={**course, "held_back_s": 0.0})))


def test_a_killed_worker_has_the_peak_of_its_trace():
    known = dict(facts(data_of(report=None)))
    assert known["Peak memory of the worker"] == "300.0 MiB, 1.0 GiB allowed"


def test_a_note_names_the_earlier_update_that_made_the_files():
    assert "those of update" not in render(data_of())
    course = {**data_of()["course"], "update": 5}
    assert "layers, memory and predictions are those of update 5." in render(data_of(course=course))


def test_boxes_are_drawn_to_scale():
    page = render(data_of(predictions=detections()))
    boxes = [tag for tag in tags(page, "rect") if tag["class"] == "box"]
    assert len(boxes) == 3
    # 200 pixels are drawn 320 wide.
    assert {(box["x"], box["y"], box["width"], box["height"]) for box in boxes} == {("32.0", "16.0", "160.0", "80.0")}
    assert len(tags(page, "image")) == 1  # stored once
    assert [tag["href"] for tag in tags(page, "use")] == ["#picture-0"] * 2
    assert tags(page, "image")[0]["href"] == PICTURE


def test_a_tall_picture_is_scaled_down_and_centered():
    tall = detections()
    tall["images"][0] |= {"width": 100, "height": 200}
    views = [tag["viewbox"] for tag in tags(render(data_of(predictions=tall)), "svg") if tag.get("role") == "img"]
    assert views[-1] == "-92.5 0 320 270.0"


def test_a_picture_that_the_worker_did_not_make_is_not_shown():
    for source in ("http://example.org/x.png", "data:image/svg+xml;base64,AAAA", None):
        predictions = data_of()["predictions"]
        predictions["images"][0]["picture"] = source
        assert not tags(render(data_of(predictions=predictions)), "img")
