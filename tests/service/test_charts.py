import re

from service.charts import bars, lines


def numbers(pattern, markup):
    return [float(found) for found in re.findall(pattern, markup)]


def test_bars_are_as_high_as_their_values():
    chart = bars([("conv1", 0.5), ("<fc>", 2.0), ("dead", 0.0)], "Loss")
    heights = numbers(r'<rect [^>]*height="([\d.]+)"', chart)
    assert [height / max(heights) for height in heights] == [0.25, 1.0, 0.0]
    assert "<title>conv1: 0.5</title>" in chart
    assert "&lt;fc&gt;: 2" in chart
    assert '<svg role="img" aria-label="Loss"' in chart


def test_lines_break_where_nothing_was_measured():
    points = [(-600.0, 1.0), (-590.0, 2.0), (-580.0, None), (-300.0, 1.0), (0.0, 2.0)]
    chart = lines([("p99", points)], 600.0, "{:.0f} s".format, "Latency")
    (path,) = re.findall(r'class="line p99" d="([^"]*)"', chart)
    assert re.findall(r"[ML]", path) == ["M", "L", "M", "M"]
    xs = numbers(r"[ML]([\d.]+) ", path)
    assert xs == sorted(xs)
    assert (xs[0], xs[-1]) == (64.0, 340.0)
    assert ">10 min ago<" in chart
    assert ">2 s<" in chart


def test_nothing_to_show_is_an_empty_chart():
    assert 'd=""' in lines([("p50", [])], 600.0, str, "Latency")
    assert "<rect" not in bars([], "Loss")
