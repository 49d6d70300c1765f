"""Which limits a result breaks, by how much, and what the gate lets through."""

import math

import pytest

from maas_compression.limits import Figures, LimitCheck, Limits, LimitsNotMet, NoGain, check_gate

EVERYTHING = Limits(
    max_size_bytes=6_000_000,
    max_p50_seconds=0.002,
    max_p99_seconds=0.004,
    min_throughput_rows=400.0,
    max_memory_bytes=200_000_000,
    max_quality_loss=0.01,
)
WITHIN = Figures(6_000_000, 0.002, 0.004, 400.0, 200_000_000, 0.01)


def test_a_figure_that_is_the_limit_keeps_to_it() -> None:
    assert EVERYTHING.failures(WITHIN) == ()
    assert len(EVERYTHING.check(WITHIN)) == 6


def test_each_broken_limit_is_named_with_what_was_found() -> None:
    broken = EVERYTHING.failures(Figures(9_000_000, 0.003, 0.005, 200.0, 300_000_000, 0.014))
    assert [check.limit for check in broken] == [
        "max_size_bytes",
        "max_p50_seconds",
        "max_p99_seconds",
        "min_throughput_rows",
        "max_memory_bytes",
        "max_quality_loss",
    ]
    assert [check.excess for check in broken] == pytest.approx([0.5, 0.5, 0.25, 1.0, 0.5, 0.004])
    assert broken[0].sentence == "the served file is 9.00 MB, at most 6.00 MB was asked for (1.50 times too much)"
    assert broken[3].sentence == (
        "throughput in batches is 200 rows/s, at least 400 rows/s was asked for (2.00 times too little)"
    )
    assert (
        broken[5].sentence == "loss of quality is 1.40 points, at most 1.00 points was asked for (0.40 points too much)"
    )


def test_what_was_not_measured_is_not_checked() -> None:
    assert EVERYTHING.failures(Figures(size_bytes=1)) == ()
    assert Limits().check(WITHIN) == ()


def test_a_quality_that_is_not_a_number_keeps_to_no_limit() -> None:
    broken = Limits(max_quality_loss=1.0).failures(Figures(quality_loss=math.nan))
    assert [check.excess for check in broken] == [math.inf]
    assert LimitCheck("min_throughput_rows", 1.0, 0.0).excess == math.inf


def test_a_better_quality_is_no_loss() -> None:
    assert Limits(max_quality_loss=0.0).failures(Figures(quality_loss=-0.02)) == ()


def test_limits_come_back_from_their_stored_form() -> None:
    assert Limits.from_json(EVERYTHING.to_json()) == EVERYTHING
    assert Limits.from_json(Limits().to_json()) == Limits()


def test_the_gate_says_all_that_is_broken() -> None:
    with pytest.raises(LimitsNotMet, match=r"served file .* 9\.00 MB.*; loss of quality is 2\.00 points") as caught:
        check_gate(
            EVERYTHING,
            Figures(size_bytes=9_000_000, quality_loss=0.02),
            name="compressionJobs/a",
            smaller=True,
            faster=True,
            allow_no_gain=True,
        )
    assert caught.value.name == "compressionJobs/a"


@pytest.mark.parametrize(("smaller", "faster"), [(True, False), (False, True), (True, True)])
def test_a_gain_of_one_kind_is_enough(smaller: bool, faster: bool) -> None:
    check_gate(Limits(), WITHIN, name="a", smaller=smaller, faster=faster, allow_no_gain=False)


def test_no_gain_is_refused_unless_it_is_allowed() -> None:
    with pytest.raises(NoGain, match="neither smaller nor faster"):
        check_gate(Limits(), WITHIN, name="a", smaller=False, faster=False, allow_no_gain=False)
    check_gate(Limits(), WITHIN, name="a", smaller=False, faster=False, allow_no_gain=True)
