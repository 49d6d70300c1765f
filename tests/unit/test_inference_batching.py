"""When waiting rows become a batch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_inference.front.batching import BatchingPolicy

STEEP = ((1, 1e-3), (2, 1.1e-3), (4, 1.3e-3), (8, 1.7e-3), (16, 2.4e-3), (32, 4e-3))
FLAT = ((1, 1e-3), (2, 1.9e-3), (4, 3.8e-3), (8, 7.6e-3), (16, 15e-3), (32, 30e-3))


def test_a_free_worker_is_sent_what_there_is() -> None:
    assert BatchingPolicy(32, STEEP).release(1, in_flight=0, expected_end=9.0, now=0.0) == "idle"


def test_never_more_than_two_batches_are_with_a_worker() -> None:
    assert not BatchingPolicy(32, STEEP).release(1000, in_flight=2, expected_end=0.0, now=9.0)


def test_small_batches_wait_where_larger_ones_cost_less_a_row_and_go_where_they_do_not() -> None:
    assert BatchingPolicy(32, STEEP).enough_rows == 32
    assert BatchingPolicy(32, FLAT).enough_rows == 2
    assert not BatchingPolicy(32, STEEP).release(8, in_flight=1, expected_end=1.0, now=0.0)
    assert BatchingPolicy(32, FLAT).release(8, in_flight=1, expected_end=1.0, now=0.0) == "enough"


def test_a_full_batch_and_one_that_is_about_to_be_needed_go() -> None:
    policy = BatchingPolicy(16, STEEP)
    assert policy.release(16, in_flight=1, expected_end=1.0, now=0.0) == "full"
    assert policy.release(2, in_flight=1, expected_end=1.0, now=0.9999) == "handover"


def test_without_a_curve_nothing_waits() -> None:
    policy = BatchingPolicy(32, ())
    assert policy.release(1, in_flight=1, expected_end=1.0, now=0.0) == "enough"
    assert policy.cost_seconds(8) == 0


def test_costs_lie_on_the_lines_between_what_was_measured() -> None:
    policy = BatchingPolicy(32, ((2, 2e-3), (4, 6e-3)))
    assert [policy.cost_seconds(rows) for rows in (1, 2, 3, 4, 8)] == pytest.approx([2e-3, 2e-3, 4e-3, 6e-3, 12e-3])


def test_an_engine_that_got_slower_is_expected_to_be_slow() -> None:
    policy = BatchingPolicy(32, STEEP)
    for _ in range(100):
        policy.computed(8, 3 * 1.7e-3)
    assert policy.cost_seconds(32) == pytest.approx(3 * 4e-3, rel=0.01)


@given(st.integers(1, 2000), st.integers(0, 3), st.floats(0, 10), st.floats(0, 10))
def test_a_free_worker_never_waits_and_a_full_one_never_gets_more(
    rows: int, in_flight: int, expected_end: float, now: float
) -> None:
    released = BatchingPolicy(32, STEEP).release(rows, in_flight, expected_end, now)
    assert bool(released) == (in_flight == 0 or (in_flight == 1 and (rows >= 32 or now >= expected_end - 300e-6)))
