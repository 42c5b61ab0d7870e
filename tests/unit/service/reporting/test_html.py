from hypothesis import given
from hypothesis import strategies as st

from service.reporting.html import Html, fill, join
from tests.support.html_text import Text


@given(st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"])))
def test_text_is_escaped_in_elements_and_attributes(text):
    seen = Text(fill('<b title="{a}">{a}</b>', a=text))
    assert seen.tags == [("b", {"title": text})]
    assert seen.text == text


def test_html_is_not_escaped_and_none_is_a_dash():
    assert fill("<p>{a}{b}{c}</p>", a=Html("<i>x</i>"), b=None, c=0.5) == "<p><i>x</i>-0.5</p>"
    assert join([fill("{a}", a="<"), Html("<br>")]) == "&lt;\n<br>"
