import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.reporting.charts import bars, ceiling, curves, lines, spans


def numbers(pattern, markup):
    return [float(found) for found in re.findall(pattern, markup)]


def test_bars_are_as_high_as_their_values():
    chart = bars([("conv1", 0.5), ("<fc>", 2.0), ("dead", 0.0)], "Loss")
    heights = numbers(r'<rect class="bar" [^>]*height="([\d.]+)"', chart)
    assert [height / max(heights) for height in heights] == [0.25, 1.0, 0.0]
    assert "<title>conv1: 0.5</title>" in chart
    assert 'data-name="&lt;fc&gt;" data-value="2"' in chart
    assert 'aria-label="Loss"' in chart


def named(chart):
    return re.findall(r">([^<]+)</text></g>", chart)


def test_every_bar_is_named_where_there_is_room():
    names = [f"layer{i}.conv" for i in range(100)]
    assert named(bars([(name, 1.0) for name in names], "Loss")) == names
    # The end tells layers apart.
    assert named(bars([("features.layer4.1.downsample.0", 1.0)], "Loss")) == ["…layer4.1.downsample.0"]


def test_the_highest_of_many_bars_are_named_and_no_two_names_touch():
    values = [(f"l{i}", float(i * 37 % 401)) for i in range(400)]  # all different
    found = [int(name[1:]) for name in named(bars(values, "Loss"))]
    step = (1200 - 64) / 400
    assert min(after - before for before, after in itertools.pairwise(found)) * step >= 11
    assert max(range(400), key=lambda i: values[i][1]) in found
    assert len(found) > 50


@pytest.mark.parametrize(
    ("most", "base", "expected"),
    [(0, 10, 0), (0.0027, 10, 0.003), (1.0, 10, 1), (7, 10, 8), (99, 10, 100), (190 * 2**20, 1024, 200 * 2**20)],
)
def test_an_axis_ends_at_a_round_number(most, base, expected):
    assert ceiling(most, base) == pytest.approx(expected)


@given(most=st.floats(1e-300, 1e300), base=st.sampled_from([10.0, 1024.0]))
def test_no_value_is_above_the_axis(most, base):
    assert most * (1 - 1e-6) <= ceiling(most, base) <= 10 * most


def test_lines_break_at_missing_values():
    points = [(-600.0, 1.0), (-590.0, 2.0), (-580.0, None), (-300.0, 1.0), (0.0, 2.0)]
    chart = lines([("p99", points)], 600.0, "{:.0f} s".format, "Latency")
    (path,) = re.findall(r'class="line p99" d="([^"]*)"', chart)
    assert re.findall(r"[ML]", path) == ["M", "L", "M", "M"]
    xs = numbers(r"[ML]([\d.]+) ", path)
    assert xs == sorted(xs)
    assert (xs[0], xs[-1]) == (64.0, 340.0)
    assert ">10 min ago<" in chart
    assert ">2 s<" in chart


def test_a_chart_without_values_is_empty():
    assert 'd=""' in lines([("p50", [])], 600.0, str, "Latency")
    assert "<rect" not in bars([], "Loss")


def test_spans_are_drawn_to_scale():
    chart = spans([("<load>", 0.0, 1.0), ("solve", 1.0, 3.0), ("swap", 4.0, 0.0)], "Stages")
    lefts, widths = (numbers(rf'class="bar"[^>]* {side}="([\d.]+)"', chart) for side in ("x", "width"))
    assert widths == [53.5, 160.5, 1.5]  # a stage without duration stays visible
    assert lefts == [64.0, 117.5, 278.0]
    assert "&lt;load&gt;: 1.00 s" in chart
    assert numbers(r'viewBox="0 0 340 ([\d.]+)"', chart) == [49]
    assert spans([], "Stages").count("<rect") == 0


def test_bands_are_behind_the_line_and_named_if_there_is_room():
    bands = [("a", -100.0, -75.0), ("calibrate", -75.0, -74.0), ("quantize", -74.0, 50.0)]
    chart = lines([("memory", [(-100.0, 1.0), (0.0, 2.0)])], 100.0, str, "Memory", ("0 s", "100 s"), 100.0, bands)
    assert numbers(r'class="band \w+" x="([\d.]+)"', chart) == [64.0, 133.0, 135.8]
    assert numbers(r'class="band[^>]*width="([\d.]+)"', chart) == [69.0, 2.8, 204.2]  # none leaves the chart
    assert re.findall(r">(\w*)</text>", chart)[-3:] == ["a", "", "quantize"]
    assert chart.index('class="band') < chart.index('class="line')
    assert ">100 s<" in chart


def dots(chart, name):
    found = re.findall(rf'<circle class="dot {name}" cx="([\d.]+)" cy="([\d.]+)" r="[\d.]+"><title>([^<]*)', chart)
    return [(float(x), float(y), text) for x, y, text in found]


def test_curves_have_a_dot_at_each_mark_and_logarithmic_heights():
    first = ("a", [("<last>", 300.0, 0.01), ("one", 100.0, 1.0), ("two", 200.0, 0.1), ("exact", 250.0, 0.0)])
    chart = curves([first, ("b", [("other", 300.0, 0.1)]), ("c", [])], ("{:.0f} B".format, "{:g}".format), "Errors")
    (one, two, last), (other,) = dots(chart, "a"), dots(chart, "b")
    assert [text for *_, text in (one, two, last)] == ["one: 100 B, 1", "two: 200 B, 0.1", "&lt;last&gt;: 300 B, 0.01"]
    assert two[0] - one[0] == pytest.approx(last[0] - two[0])
    assert two[1] - one[1] == pytest.approx(last[1] - two[1])
    assert two[1] > one[1]  # downwards
    assert other[:2] == (last[0], two[1])
    (path,) = re.findall(r'class="line a" points="([^"]*)"', chart)
    assert path == " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in (one, two, last))
    axes = re.findall(r'class="tick[^>]*>([^<]*)<', chart)
    assert axes == ["0.01", "0.1", "1", "100 B", "300 B"]


def test_a_single_mark_is_a_curve():
    chart = curves([("a", [("only", 5.0, 1.0)])], (str, str), "Errors")
    assert [text for *_, text in dots(chart, "a")] == ["only: 5.0, 1.0"]
