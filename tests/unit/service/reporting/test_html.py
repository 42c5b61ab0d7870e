from hypothesis import given
from hypothesis import strategies as st

from service.reporting.html import Html, definitions, fill, join, moment, with_moments
from tests.support.html_text import Text


@given(st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"])))
def test_text_is_escaped_in_elements_and_attributes(text):
    seen = Text(fill('<b title="{a}">{a}</b>', a=text))
    assert seen.tags == [("b", {"title": text})]
    assert seen.text == text


def test_html_is_not_escaped_and_none_is_a_dash():
    assert fill("<p>{a}{b}{c}</p>", a=Html("<i>x</i>"), b=None, c=0.5) == "<p><i>x</i>-0.5</p>"
    assert join([fill("{a}", a="<"), Html("<br>")]) == "&lt;\n<br>"


def test_times_are_in_utc_with_the_machine_readable_time_next_to_them():
    time = '<time datetime="2026-01-02T03:04:05.678Z">2026-01-02 03:04:05 UTC</time>'
    assert moment("2026-01-02T03:04:05.678Z") == time
    assert with_moments("a < b at 2026-01-02T03:04:05.678Z.") == f"a &lt; b at {time}."
    assert moment("yesterday") == '<time datetime="yesterday">yesterday</time>'


def test_unknown_values_are_left_out_of_definitions():
    assert definitions([("<a>", 0), ("b", None)]) == "<div><dt>&lt;a&gt;</dt><dd>0</dd></div>"
