"""Which requests form a batch, and which thread waits for which."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.inference.batch_queue import BatchQueue, warm_sizes
from service.ipc.options import Batching

LONG_S = 60.0


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def now() -> float:
    return time.monotonic()


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(1, 8))
def test_requests_are_taken_in_order_and_no_batch_is_too_large(images: list[int], max_batch: int) -> None:
    waiting: BatchQueue[tuple[int, int]] = BatchQueue(Batching(max_batch))

    def put_all() -> None:
        for entry in enumerate(images):
            waiting.put(entry, entry[1], now())

    thread = threading.Thread(target=put_all)
    thread.start()
    taken: list[tuple[int, int]] = []
    while len(taken) < len(images):
        batch = waiting.take()
        assert len(batch) == 1 or sum(count for _, count in batch) <= max_batch
        taken += batch
    thread.join()
    assert taken == list(enumerate(images))


def test_without_a_delay_a_batch_contains_the_requests_that_wait_already() -> None:
    waiting: BatchQueue[str] = BatchQueue(Batching(4))
    waiting.put("a", 1, now())
    assert waiting.take() == ["a"]
    for name, images in (("b", 1), ("c", 2), ("d", 2)):
        waiting.put(name, images, now())
    assert waiting.take() == ["b", "c"]  # with d it would be five
    assert waiting.take() == ["d"]


def test_a_full_batch_is_taken_before_the_delay_ends(pool: ThreadPoolExecutor) -> None:
    waiting: BatchQueue[str] = BatchQueue(Batching(2, LONG_S))
    waiting.put("a", 1, now())
    taken = pool.submit(waiting.take)
    waiting.put("b", 1, now())
    assert taken.result(LONG_S / 2) == ["a", "b"]


def test_the_delay_counts_from_the_arrival_of_the_first() -> None:
    waiting: BatchQueue[str] = BatchQueue(Batching(8, 0.05))
    arrived = now()
    waiting.put("a", 1, arrived)
    assert waiting.take() == ["a"]
    assert now() >= arrived + 0.05
    waiting = BatchQueue(Batching(8, LONG_S))
    waiting.put("b", 1, now() - LONG_S)  # it waited while another batch was computed
    assert waiting.take() == ["b"]


def test_at_most_one_batch_is_read_ahead(pool: ThreadPoolExecutor) -> None:
    waiting: BatchQueue[str] = BatchQueue(Batching(2))
    waiting.put("a", 5, now())
    second = pool.submit(waiting.put, "b", 1, now())
    with pytest.raises(TimeoutError):
        second.result(0.05)
    assert waiting.take() == ["a"]
    second.result(LONG_S)
    assert waiting.take() == ["b"]


def test_the_end_of_the_stream_wakes_both_sides(pool: ThreadPoolExecutor) -> None:
    waiting: BatchQueue[str] = BatchQueue(Batching(1))
    taken = pool.submit(waiting.take)
    waiting.close()
    assert taken.result(LONG_S) == []
    waiting.put("a", 1, now())
    waiting.put("b", 1, now())  # does not wait: nobody will take it
    assert waiting.take() == []


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1]), (3, [1, 2, 3]), (12, [1, 2, 3, 4, 5, 6, 7, 8, 12]), (32, [*range(1, 9), 32])]
)
def test_small_batches_and_the_largest_are_warmed_up(most: int, sizes: list[int]) -> None:
    assert warm_sizes(most) == sizes
