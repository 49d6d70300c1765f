"""The numbers about two models that answered the same rows, against scipy and against drawing rows anew."""

import numpy as np
import pytest
from scipy import stats

from maas_compression.measuring.paired import Interval, mcnemar_p, mean_interval, paired_difference


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 9), (9, 3), (20, 20), (41, 60), (900, 1000)])
def test_mcnemar_is_the_binomial_test_of_changed_answers(gained: int, lost: int) -> None:
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar_p(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_takes_more_changed_answers_than_a_float_has_powers_of_two() -> None:
    assert mcnemar_p(3000, 3300) == pytest.approx(stats.binomtest(3000, 6300).pvalue, rel=1e-9)


@pytest.mark.parametrize(("gained", "lost", "rows"), [(40, 60, 2000), (15, 15, 500), (5, 80, 1000)])
def test_the_difference_of_shares_is_close_to_what_drawing_rows_anew_shows(gained: int, lost: int, rows: int) -> None:
    changes = np.repeat([1, -1, 0], [gained, lost, rows - gained - lost])
    drawn = stats.bootstrap((changes,), np.mean, random_state=np.random.default_rng(0)).confidence_interval
    found = paired_difference(gained, lost, rows)
    assert found.value == pytest.approx(changes.mean())
    assert (found.low, found.high) == pytest.approx((drawn.low, drawn.high), abs=2.5 / rows)


@pytest.mark.parametrize("share", [(0.01, 0.01), (0.02, 0.05), (0.002, 0.0)])
def test_the_interval_holds_the_true_difference_in_95_of_100_samples_at_least(share: tuple[float, float]) -> None:
    generator = np.random.default_rng(5)
    rows = 1000
    counts = generator.multinomial(rows, [*share, 1 - sum(share)], size=4000)
    held = sum(
        found.low <= share[0] - share[1] <= found.high
        for found in (paired_difference(int(gained), int(lost), rows) for gained, lost, _ in counts)
    )
    assert held / len(counts) >= 0.935


def test_a_model_that_changed_no_answer_is_not_said_to_be_surely_equal() -> None:
    found = paired_difference(0, 0, 2000)
    assert found.value == 0.0
    assert (found.low, found.high) == pytest.approx((-0.00138, 0.00138), abs=1e-5)


@pytest.mark.parametrize(("gained", "lost"), [(5, 0), (0, 5), (0, 0)])
def test_an_interval_on_few_rows_stays_within_what_is_possible(gained: int, lost: int) -> None:
    found = paired_difference(gained, lost, 5)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert -found == Interval(-found.value, -found.high, -found.low)


def test_the_interval_of_a_mean_is_scipys_bootstrap() -> None:
    values = 1 - np.random.default_rng(1).exponential(0.02, 800)
    found = mean_interval(values, np.random.default_rng(2))
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", random_state=np.random.default_rng(3)
    ).confidence_interval
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=2e-4)
    assert found == mean_interval(values, np.random.default_rng(2)), "the same seed, the same interval"


def test_a_mean_of_equal_numbers_has_no_width() -> None:
    found = mean_interval(np.ones(7), np.random.default_rng(0))
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
