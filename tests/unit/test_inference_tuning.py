"""Finding the best rule of batching while serving, on a machine that is simulated."""

import random
from collections import Counter
from collections.abc import Callable

import pytest

from maas_inference.front.batching import Rule, rules_for
from maas_inference.front.tuning import Tuner

RULES = rules_for(2)


def steady(_: object) -> float:
    return 1.0


def equal(_: Rule) -> float:
    return 3000.0


def serve(
    tuner: Tuner,
    callers: int,
    rate: Callable[[Rule], float],
    *,
    batches: int,
    noise: float = 0.1,
    speed: Callable[[float], float] = steady,
    begin: float = 0.0,
) -> Counter[Rule]:
    """Answer `batches` batches of a closed loop of callers; return how often each rule was used."""
    generator = random.Random(7)
    rows = max(1, callers // 2)
    now = begin
    used: Counter[Rule] = Counter()
    for _ in range(batches):
        rule, epoch = tuner.rule, tuner.epoch
        used[rule] += 1
        per_second = rate(rule) * speed(now) * generator.lognormvariate(0.0, noise)
        now += rows / per_second
        tuner.answered(epoch, rows, rows * callers / per_second, now)
    return used


@pytest.mark.parametrize("best", RULES)
def test_the_best_rule_is_found_whichever_it_is(best: Rule) -> None:
    tuner = Tuner(RULES)
    serve(tuner, 64, lambda rule: 3000.0 if rule == best else 2400.0, batches=20_000)
    used = serve(tuner, 64, lambda rule: 3000.0 if rule == best else 2400.0, batches=10_000, begin=1e6)
    assert used[best] > 0.8 * used.total()


def test_each_load_has_its_own_rule() -> None:
    tuner = Tuner(RULES)
    few, many = RULES[1], RULES[3]
    for turn in range(6):
        serve(tuner, 4, lambda rule: 900.0 if rule == few else 700.0, batches=8000, begin=turn * 1e6)
        serve(tuner, 64, lambda rule: 3000.0 if rule == many else 2400.0, batches=8000, begin=turn * 1e6 + 5e5)
    at_four = serve(tuner, 4, lambda rule: 900.0 if rule == few else 700.0, batches=4000, begin=9e6)
    at_many = serve(tuner, 64, lambda rule: 3000.0 if rule == many else 2400.0, batches=4000, begin=1e7)
    assert at_four.most_common(1)[0][0] == few
    assert at_many.most_common(1)[0][0] == many


def test_a_machine_that_changes_its_speed_misleads_nobody() -> None:
    tuner = Tuner(RULES)
    best = RULES[2]

    def rate(rule: Rule) -> float:
        return 3000.0 if rule == best else 2600.0

    def speed(now: float) -> float:
        return 0.5 if int(now / 3.0) % 2 else 1.0

    serve(tuner, 64, rate, batches=40_000, speed=speed)
    used = serve(tuner, 64, rate, batches=10_000, speed=speed, begin=1e6)
    assert used[best] > 0.8 * used.total()


def test_rules_that_are_equal_cost_nothing_to_speak_of() -> None:
    tuner = Tuner(RULES)
    serve(tuner, 64, lambda rule: 2000.0 if rule == RULES[4] else 3000.0, batches=10_000)
    used = serve(tuner, 64, lambda rule: 2000.0 if rule == RULES[4] else 3000.0, batches=20_000, begin=1e6)
    assert used[RULES[4]] < 0.03 * used.total()


def test_for_a_caller_alone_nothing_is_tried() -> None:
    used = serve(Tuner(RULES), 1, equal, batches=5000)
    assert list(used) == [RULES[0]]


def test_what_was_sent_under_another_rule_says_nothing_of_this_one() -> None:
    tuner = Tuner(RULES)
    serve(tuner, 64, equal, batches=3000)
    assert tuner.epoch > 1
    rule = tuner.rule
    for number in range(1000):
        tuner.answered(tuner.epoch - 1, 32, 1.0, 1e6 + number)
    assert tuner.rule == rule


def test_a_pause_ends_an_epoch_without_a_judgement() -> None:
    tuner = Tuner(RULES)
    for number in range(2000):
        tuner.answered(tuner.epoch, 32, 32 * 0.02, number * 10.0)
    assert tuner.rule == RULES[0]
