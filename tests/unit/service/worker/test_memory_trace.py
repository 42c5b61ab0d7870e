import itertools

from hypothesis import given
from hypothesis import strategies as st

from service.worker.memory_trace import MAX_POINTS, MemoryTrace


@given(st.lists(st.integers(1, 10**12), max_size=700), st.sampled_from([2, 4, 10]))
def test_a_trace_is_short_and_sorted_and_includes_the_peak(samples, limit):
    trace = MemoryTrace(limit)
    for second, used in enumerate(samples):
        trace.add(float(second), used)
    points = trace.points
    assert len(points) <= limit
    assert [at for at, _ in points] == sorted({at for at, _ in points})
    assert all(samples[int(at)] == used for at, used in points)  # every reported point was measured at that time
    assert max((used for _, used in points), default=0) == max(samples, default=0)


def test_few_samples_stay_as_they_are():
    trace = MemoryTrace()
    for number in range(MAX_POINTS):
        trace.add(number / 5, 1000 - number)
    assert trace.points == [(number / 5, 1000 - number) for number in range(MAX_POINTS)]


def test_points_are_spread_over_the_whole_time():
    trace = MemoryTrace(10)
    for second in range(1000):
        trace.add(float(second), 1)
    times = [at for at, _ in trace.points]
    assert len(times) >= 5
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) <= 256
