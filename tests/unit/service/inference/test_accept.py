"""The choice between JSON and a picture."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.inference.accept import picture_of
from service.ipc.messages import RequestError


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", None),
        ("*/*", None),
        ("application/json", None),
        ("text/html", None),
        ("text/html,application/xhtml+xml,application/xml;q=0.9", None),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8", None),
        ("image/jpeg", "JPEG"),
        ("image/png", "PNG"),
        ("IMAGE/PNG", "PNG"),
        ("image/*", "JPEG"),
        ("image/png, image/jpeg", "JPEG"),
        ("image/png, image/jpeg;q=0.9", "PNG"),
        ("image/png;level=1;q=0.5, application/json;q=0.4", "PNG"),
        ("image/jpeg;q=0.5, application/json", None),
        ("image/jpeg, application/json", None),
        ("image/jpeg, */*;q=0.8", "JPEG"),
        ("image/webp, */*;q=0.8", None),
        ("image/avif,image/webp,image/apng,image/*;q=0.8,*/*;q=0.5", "JPEG"),
        ("image/*, image/jpeg;q=0", "PNG"),
        ("image/jpeg;q=nonsense, */*;q=0.1", None),
        ("image/jpeg;q=nan, */*;q=0.1", None),
        ("image/jpeg;q=2, */*;q=0.1", None),
        (",;, image/png", "PNG"),
    ],
)
def test_a_picture_is_what_the_client_prefers_to_json(accept: str, expected: str | None) -> None:
    picture = picture_of(accept, draws=True)
    assert (None if picture is None else picture.format) == expected


def test_json_may_take_the_place_of_a_picture_unless_only_images_are_accepted() -> None:
    for accept, required in (("image/png", True), ("image/png, */*;q=0.1", False), ("image/*, */*;q=0", True)):
        picture = picture_of(accept, draws=True)
        assert picture is not None
        assert picture.required == required


@pytest.mark.parametrize("accept", ["image/webp", "image/webp, image/gif;q=0.5", "image/jpeg;q=0, image/webp"])
def test_pictures_of_other_types_are_not_acceptable(accept: str) -> None:
    with pytest.raises(RequestError, match="choose image/jpeg, image/png or application/json") as caught:
        picture_of(accept, draws=True)
    assert caught.value.status == 406


def test_a_classifier_draws_nothing() -> None:
    for accept in ("image/jpeg, application/json;q=0.1", "image/*, */*;q=0.1", "", "text/plain"):
        assert picture_of(accept, draws=False) is None
    with pytest.raises(
        RequestError, match="Accept has value 'image/jpeg'; a classifier's answer has no boxes"
    ) as caught:
        picture_of("image/jpeg", draws=False)
    assert caught.value.status == 406


@given(st.text(st.sampled_from("imagejpson/*,;=q.01 \t"), max_size=60), st.booleans())
def test_any_header_is_read_or_refused(accept: str, draws: bool) -> None:
    with contextlib.suppress(RequestError):
        picture = picture_of(accept, draws=draws)
        assert picture is None or (draws and picture.format in ("JPEG", "PNG"))
