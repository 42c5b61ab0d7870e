from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from service.intake.stability import Fingerprint, StabilityTracker

A, B = Path("a"), Path("b")


def looks(size, mtime_ns=0, inode=1):
    return Fingerprint(size, mtime_ns, 0, inode)


def test_a_file_is_finished_after_the_wait_and_not_before():
    tracker = StabilityTracker(2.0)
    assert [tracker.observe(A, looks(1), now) for now in (10.0, 11.9, 12.0)] == [False, False, True]


def test_every_change_begins_the_wait_anew():
    tracker = StabilityTracker(2.0)
    assert not tracker.observe(A, looks(1), 0.0)
    assert not tracker.observe(A, looks(2), 2.0)
    assert not tracker.observe(A, looks(2, mtime_ns=1), 3.9)
    assert not tracker.observe(A, looks(2, mtime_ns=1), 5.8)
    assert tracker.observe(A, looks(2, mtime_ns=1), 5.9)
    assert tracker.first_seen(A) == 0.0


def test_files_do_not_disturb_each_other():
    tracker = StabilityTracker(2.0)
    tracker.observe(A, looks(1), 0.0)
    tracker.observe(B, looks(1), 1.0)
    assert tracker.next_due([A, B]) == 2.0
    assert tracker.next_due([B]) == 3.0
    tracker.forget(A)
    assert tracker.next_due([A, B]) == 3.0


def test_what_is_gone_is_forgotten():
    tracker = StabilityTracker(2.0)
    tracker.observe(A, looks(1), 0.0)
    tracker.keep_only([B])
    assert tracker.first_seen(A) is None
    assert tracker.next_due([A]) is None
    tracker.forget(A)  # nothing to forget
    assert not tracker.observe(A, looks(1), 5.0)


def test_another_file_of_the_same_name_is_seen_for_the_first_time():
    tracker = StabilityTracker(2.0)
    tracker.observe(A, looks(1), 0.0)
    assert not tracker.observe(A, looks(1, inode=2), 5.0)
    assert tracker.first_seen(A) == 5.0


@given(
    st.floats(0.1, 10),
    st.lists(st.tuples(st.floats(0, 5), st.integers(0, 2)), min_size=1, max_size=30),
)
def test_finished_means_that_the_last_looks_of_the_whole_wait_were_the_same(settle_s, steps):
    tracker, now, seen = StabilityTracker(settle_s), 0.0, []
    for pause, size in steps:
        now += pause
        seen.append((now, size))
        unchanged_since = now
        for moment, other in reversed(seen):
            if other != size:
                break
            unchanged_since = moment
        assert tracker.observe(A, looks(size), now) == (now - unchanged_since >= settle_s)


class Waiting(RuleBasedStateMachine):
    """One file that changes, or is seen to be unfinished, against a plain model: the time of its last change."""

    def __init__(self):
        super().__init__()
        self.settle_s, self.settle_max_s = 2.0, 10.0
        self.tracker = StabilityTracker(self.settle_s, self.settle_max_s)
        self.now, self.size, self.changed_at, self.seen = 0.0, 0, 0.0, False

    @rule(seconds=st.floats(0, 6))
    def pass_time(self, seconds):
        self.now += seconds

    @rule()
    def change(self):
        self.size += 1
        self.seen = False

    @rule(unfinished=st.booleans())
    def look(self, unfinished):
        if not self.seen:
            self.changed_at, self.seen = self.now, True
        quiet = self.tracker.observe(A, looks(self.size), self.now)
        assert quiet == (self.now - self.changed_at >= self.settle_s)
        if quiet and unfinished:
            held = self.tracker.hold(A, self.now)
            assert held == (self.now - self.changed_at < self.settle_max_s)
            due = self.tracker.next_due([A])
            # Looked at again before long, and as soon as it is given up.
            assert due <= max(self.now + self.settle_s, self.changed_at + self.settle_s)
            assert due > self.now or not held
            assert due <= self.changed_at + self.settle_max_s or not held

    @rule()
    def forget(self):
        self.tracker.forget(A)
        self.seen = False


TestWaiting = Waiting.TestCase
