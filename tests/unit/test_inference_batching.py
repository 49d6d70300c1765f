"""When waiting rows become a batch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_inference.front.batching import CostCurve, Lane, Pace, Release, Rows, Rule, release, rules_for

STEEP = ((1, 1e-3), (2, 1.1e-3), (4, 1.3e-3), (8, 1.7e-3), (16, 2.4e-3), (32, 4e-3))
FLAT = ((1, 1e-3), (2, 1.9e-3), (4, 3.8e-3), (8, 7.6e-3), (16, 15e-3), (32, 30e-3))
ONE_AHEAD = Rule(1, patient=True, ahead=True)
TWO_EAGER = Rule(2, patient=False, ahead=False)
TWO_PATIENT = Rule(2, patient=True, ahead=False)


def lanes(*batches: int, expected_end: float = 1.0) -> list[Lane]:
    made = [Lane() for _ in batches]
    for lane, count in zip(made, batches, strict=True):
        lane.batches = count
        lane.expected_end = expected_end
    return made


def release_of(rule: Rule, with_worker: list[Lane], waiting: int, now: float = 0.0) -> Release | None:
    in_flight = 10 * sum(lane.batches for lane in with_worker)
    return release(rule, with_worker, Rows(waiting, in_flight, enough=8, most=32), now)


def reason(rule: Rule, with_worker: list[Lane], waiting: int, now: float = 0.0) -> str:
    order = release_of(rule, with_worker, waiting, now)
    return order.reason if order else ""


@pytest.mark.parametrize("rule", rules_for(4))
def test_a_free_worker_is_sent_what_there_is(rule: Rule) -> None:
    assert reason(rule, lanes(0, 0, 0, 0), 1) == "idle"


def test_a_busy_lane_is_sent_one_more_batch_once_it_pays_or_is_about_to_be_needed() -> None:
    assert reason(ONE_AHEAD, lanes(1), 7) == ""
    assert reason(ONE_AHEAD, lanes(1), 8) == "enough"
    assert reason(ONE_AHEAD, lanes(1), 32) == "full"
    assert reason(ONE_AHEAD, lanes(1), 1, now=0.9999) == "handover"
    assert reason(ONE_AHEAD, lanes(2), 1000, now=9.0) == ""
    assert reason(Rule(1, patient=True, ahead=False), lanes(1), 1000, now=9.0) == ""


def test_a_free_lane_beside_a_busy_one_gets_what_there_is_or_what_pays() -> None:
    assert release_of(TWO_EAGER, lanes(1, 0), 1) == Release(1, "lane")
    assert reason(TWO_PATIENT, lanes(1, 0), 7) == ""
    assert release_of(TWO_PATIENT, lanes(0, 1), 8) == Release(0, "enough")


def test_a_fair_share_of_few_rows_need_not_wait_for_enough() -> None:
    assert release(TWO_PATIENT, lanes(1, 0), Rows(2, 3, enough=8, most=32), 0.0) is None
    assert release(TWO_PATIENT, lanes(1, 0), Rows(3, 3, enough=8, most=32), 0.0) == Release(1, "lane")


def test_the_lane_that_ends_first_is_sent_ahead() -> None:
    both = lanes(1, 1)
    both[0].expected_end, both[1].expected_end = 2.0, 1.0
    assert release_of(Rule(2, patient=True, ahead=True), both, 8) == Release(1, "enough")


def test_a_lane_that_the_rule_does_not_use_is_left_alone() -> None:
    assert reason(Rule(1, patient=True, ahead=False), lanes(1, 0), 1000) == ""


def test_larger_batches_are_waited_for_where_they_cost_less_a_row() -> None:
    assert CostCurve(STEEP, 32).enough_rows == 32
    assert CostCurve(STEEP, 16).enough_rows == 16
    assert CostCurve(FLAT, 32).enough_rows == 2
    assert CostCurve((), 32).enough_rows == 1


def test_costs_lie_on_the_lines_between_what_was_measured() -> None:
    curve = CostCurve(((2, 2e-3), (4, 6e-3)), 32)
    assert [curve.seconds(rows) for rows in (1, 2, 3, 4, 8)] == pytest.approx([2e-3, 2e-3, 4e-3, 6e-3, 12e-3])
    assert CostCurve((), 32).seconds(8) == 0


def test_an_engine_that_got_slower_is_expected_to_be_slow() -> None:
    curve = CostCurve(STEEP, 32)
    for _ in range(100):
        curve.computed(8, 3 * 1.7e-3)
    assert curve.seconds(32) == pytest.approx(3 * 4e-3, rel=0.01)


def test_the_pace_is_measured_only_while_there_is_always_something_to_do() -> None:
    pace = Pace()
    pace.answered(10, now=1.0, is_busy=True)
    assert pace.seconds_per_row == 0.0
    pace.answered(10, now=1.1, is_busy=False)
    assert pace.seconds_per_row == pytest.approx(0.01)
    pace.answered(10, now=9.0, is_busy=True)
    assert pace.seconds_per_row == pytest.approx(0.01)


@given(
    st.sampled_from(rules_for(4)),
    st.lists(st.integers(0, 2), min_size=4, max_size=4),
    st.integers(1, 2000),
    st.floats(0, 10),
)
def test_a_free_worker_never_waits_and_no_lane_ever_holds_more_than_two(
    rule: Rule, batches: list[int], rows: int, now: float
) -> None:
    with_worker = lanes(*batches)
    order = release_of(rule, with_worker, rows, now)
    if not any(batches):
        assert order is not None
    if order is not None:
        assert with_worker[order.lane].batches < 2
        assert order.lane < rule.lanes or order.reason == "idle"
