from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.routing import Match, Route

from service.http.parameters import MAX_NUMBER, ParameterError, flag, whole_number


def request(query: str) -> Request:
    return Request({"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": query.encode()})


def test_a_number_of_the_query() -> None:
    assert whole_number(request("n=7"), "n", 3) == 7
    assert whole_number(request("n=007"), "n", 3) == 7
    assert whole_number(request("m=7"), "n", 3) == 3
    assert whole_number(request(f"n={MAX_NUMBER}"), "n", 3) == MAX_NUMBER


@pytest.mark.parametrize("text", ["", "-1", "1.0", "0x1", "%D9%A3", "11", f"{MAX_NUMBER + 1}", "9" * 5000, "1%00"])
def test_what_is_no_number_in_range(text: str) -> None:
    with pytest.raises(ParameterError, match=r"^n has value '.*; choose 1 to 10$") as caught:
        whole_number(request(f"n={text}"), "n", 3, 1, 10)
    assert len(str(caught.value)) < 120


def test_a_truth_value_of_the_query() -> None:
    assert [flag(request(query), "on") for query in ("", "on=false", "on=true")] == [False, False, True]
    with pytest.raises(ParameterError, match="on has value 'yes'; choose true or false"):
        flag(request("on=yes"), "on")


@given(st.integers(0, 10**30))
def test_a_number_in_a_path_is_one_that_the_journal_can_look_up(number: int) -> None:
    route = Route("/updates/{id:whole}", lambda _: None)
    match, scope = route.matches({"type": "http", "method": "GET", "path": f"/updates/{number}", "headers": []})
    if number > MAX_NUMBER:
        assert match is Match.NONE
    else:
        assert (match, scope["path_params"]) == (Match.FULL, {"id": number})
        assert route.url_path_for(route.name, id=number) == f"/updates/{number}"
