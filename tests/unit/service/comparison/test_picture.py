from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from edged.progress import SilentListener
from service.comparison.picture import draw
from service.comparison.runner import compare, measurements
from tests.support.comparisons import BASE, Recorder, row

SVG = "{http://www.w3.org/2000/svg}"


def places(picture: str) -> dict[tuple[str, str], tuple[float, float]]:
    """Return the place of each point by its name and color."""
    elements = list(ElementTree.fromstring(picture))  # noqa: S314 - our own
    return {
        (after.text or "", point.get("fill") or ""): (float(point.get("cx") or 0), float(point.get("cy") or 0))
        for point, after in itertools.pairwise(elements)
        if point.tag == f"{SVG}circle"
    }


def by_color(picture: str) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the place of each point by its name, by color."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for (name, color), place in places(picture).items():
        found.setdefault(color, {})[name] = place
    return found


def test_more_accurate_is_higher_slower_is_further_right_and_bits_have_panels():
    jobs = list(measurements(BASE, ["rtn", "adaround", "balanced", "fast", "best"], [4, 2]))
    points = places(draw(compare(jobs, None, SilentListener(), Recorder("nothing"))))
    colors = {name: color for name, color in points if name.endswith("bits")}
    four, two = colors["4 bits"], colors["2 bits"]
    assert four != two
    assert points["balanced", four][1] < points["adaround", four][1] < points["fast", four][1]
    assert points["balanced", four][0] < points["adaround", four][0]
    assert points["fast", four][1] < points["2 bits", two][1] < points["balanced", two][1]


def test_a_method_that_loses_far_more_than_others_is_at_the_edge_with_its_score():
    rows = [row(BASE)]
    for method, top1 in (("balanced", 80.9), ("obq", 80.5), ("rtn", 21.2), ("fast", 80.8)):
        rows.append({**row(BASE), "method": method, "bits": 2, "score": {"top1": top1}})
    ((color, points),) = by_color(draw({"rows": rows})).items()
    assert color
    assert points["rtn 21.20"][1] == max(y for _, y in points.values())
    assert points["obq"][1] - points["fast"][1] > 20  # of three tenths of a point


def test_names_of_points_at_one_place_are_side_by_side_or_a_line_apart():
    rows = [row(BASE)]
    for number in range(5):
        rows.append({**row(BASE), "method": f"m{number}", "bits": 4, "seconds": 3.0, "score": {"top1": 80.5}})
    labels = [
        (text.get("text-anchor"), float(text.get("y") or 0))
        for text in ElementTree.fromstring(draw({"rows": rows})).iter(f"{SVG}text")  # noqa: S314 - our own
        if re.fullmatch(r"m\d", text.text or "")
    ]
    assert len(labels) == 5
    for (side, y), (other_side, other_y) in itertools.combinations(labels, 2):
        assert side != other_side or abs(y - other_y) >= 12


def test_failed_methods_are_left_out():
    jobs = list(measurements(BASE, ["rtn", "obq"], [4]))
    picture = draw(compare(jobs, None, SilentListener(), Recorder("obq")))
    assert "obq" not in picture
    assert "rtn" in picture


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 100)), max_size=6), st.floats(0, 100))
def test_every_point_is_within_the_picture(measured: list[tuple[float, float]], full: float):
    rows = [row(BASE)]
    rows[0]["score"]["top1"] = full
    for seconds, top1 in measured:
        rows.append({**row(BASE), "method": "rtn", "bits": 4, "seconds": seconds, "score": {"top1": top1}})
    picture = draw({"rows": rows})
    width, height = map(float, re.search(r'viewBox="0 0 (\d+) (\d+)"', picture).groups())  # type: ignore[union-attr]
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places(picture).values())
