from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.evaluation.standard_errors import sample_of_groups, sample_of_hits, standard_error


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=70))
def test_the_error_of_a_share_and_of_a_difference_is_that_of_the_mean(images: list[tuple[bool, bool]]):
    mine, theirs = np.array(images, dtype=np.float64).T
    first, second = (json.loads(json.dumps(sample_of_hits([pair[i] for pair in images]))) for i in (0, 1))
    root = math.sqrt(len(images))
    assert standard_error(first) == pytest.approx(100 * mine.std(ddof=1) / root, abs=1e-5)
    assert standard_error(first, second) == pytest.approx(100 * (mine - theirs).std(ddof=1) / root, abs=1e-5)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_the_jackknife_of_a_mean_is_its_standard_error(values: list[float]):
    data = np.array(values)
    without = [float(np.delete(data, i).mean()) for i in range(len(data))]
    expected = data.std(ddof=1) / math.sqrt(len(data))
    assert standard_error(sample_of_groups(without)) == pytest.approx(expected, abs=1e-9)
    assert standard_error(sample_of_groups(without), sample_of_groups(without)) == 0


def test_one_image_has_no_error():
    assert math.isnan(standard_error(sample_of_hits([True])))


def test_samples_of_different_images_are_refused():
    for other in (sample_of_hits([True] * 3), sample_of_groups([1.0, 2.0])):
        with pytest.raises(ValueError, match="different images"):
            standard_error(sample_of_hits([True, False]), other)
