import re

from service.reporting.charts import bars, lines, spans


def numbers(pattern, markup):
    return [float(found) for found in re.findall(pattern, markup)]


def test_bars_are_as_high_as_their_values():
    chart = bars([("conv1", 0.5), ("<fc>", 2.0), ("dead", 0.0)], "Loss")
    heights = numbers(r'<rect [^>]*height="([\d.]+)"', chart)
    assert [height / max(heights) for height in heights] == [0.25, 1.0, 0.0]
    assert "<title>conv1: 0.5</title>" in chart
    assert "&lt;fc&gt;: 2" in chart
    assert '<svg role="img" aria-label="Loss"' in chart


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
