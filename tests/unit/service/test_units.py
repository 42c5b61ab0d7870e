import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import UsageError
from service.units import format_bytes, format_seconds, iso_time, parse_bytes, printable


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (1, 1),
        ("1048576", 1 << 20),
        ("800MiB", 800 << 20),
        ("1.5 GiB", 3 << 29),
        ("2gb", 2_000_000_000),
        (" 7 B ", 7),
        ("0.5KiB", 512),
    ],
)
def test_sizes_are_read(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("wrong", ["", "MiB", "12 parsecs", "-1", "1e9", "1,5GiB", "0", 0, -5, True, 1.5, None, [1]])
def test_what_is_no_size_is_refused_by_its_value(wrong):
    with pytest.raises(UsageError, match="size has value"):
        parse_bytes(wrong)


@given(st.integers(1, 1 << 60))
def test_a_size_for_people_is_read_back_to_within_its_digits(count):
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.05)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.254, "0.25 s"), (12.34, "12.3 s"), (75, "1 min 15 s"), (3700, "1 h 1 min")]
)
def test_durations_for_people(seconds, text):
    assert format_seconds(seconds) == text


def test_times_are_utc():
    assert iso_time(0.5) == "1970-01-01T00:00:00.500Z"


@given(st.binary(min_size=1, max_size=20))
def test_any_file_name_becomes_printable_text(raw):
    text = printable(raw.decode("utf-8", "surrogateescape"))
    assert text.isprintable()
    text.encode()  # no lone surrogate is left


def test_ordinary_names_stay_as_they_are():
    assert printable("модель-é 1.pth") == "модель-é 1.pth"
    assert printable("a\nb\x1b[2J") == "a\\nb\\x1b[2J"
