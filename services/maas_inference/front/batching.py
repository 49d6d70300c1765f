"""When waiting rows become a batch.

A worker has lanes: batches of different lanes are computed side by side. While the worker is free, what waits goes at
once: alone in the queue, a request loses no time. While it computes, more may be sent: to another lane, or to the same
one, to be ready when its batch is done. Whether that pays depends on what else the processor has to do, which no
measurement at warm-up can tell; so there are several rules, and tuning.py finds out which one is best here and now.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

_OVERHEAD_SECONDS: Final = 100e-6
"""What a batch costs around the engine, in the front and in the worker, however many rows it has."""
_ENOUGH: Final = 1.1
"""Rows that cost at most so many times what the cheapest cost are not worth waiting to make cheaper."""
_HANDOVER_SECONDS: Final = 300e-6
"""How long before a batch's expected end the next one is sent."""
_LEARNING_SHARE: Final = 0.1
_MOST_SLOWDOWN: Final = 20.0


@dataclass(frozen=True, slots=True)
class Rule:
    """What is sent to a worker that is busy.

    `lanes`: how many batches are computed side by side. `patient`: a further lane is sent only as many rows as pay, or
    as are its fair share of all rows that wait or are with the worker. `ahead`: a second batch is sent to a busy lane,
    once it has as many rows as pay, or when the first is about to end.
    """

    lanes: int
    patient: bool
    ahead: bool


class Release(NamedTuple):
    """A batch is to be sent to `lane`. `reason`: `idle`, `lane`, `full`, `enough`, `handover` or `delay`."""

    lane: int
    reason: str


class Lane:
    """What is with one lane of a worker."""

    __slots__ = ("batches", "expected_end")

    def __init__(self) -> None:
        self.batches = 0
        self.expected_end = 0.0
        """When the batch that was sent last is expected to be computed."""


def rules_for(lanes: int) -> tuple[Rule, ...]:
    """Return the rules that are worth trying with a worker of so many lanes; the first one is the one to begin with."""
    one = (Rule(1, patient=True, ahead=True), Rule(1, patient=True, ahead=False))
    if lanes == 1:
        return one
    return (
        Rule(lanes, patient=True, ahead=False),
        Rule(lanes, patient=False, ahead=False),
        Rule(lanes, patient=True, ahead=True),
        *one,
    )


class CostCurve:
    """What a batch costs, from the worker's measurements, (rows, seconds) by ascending rows, and from what is seen."""

    def __init__(self, points: Sequence[tuple[int, float]], max_rows: int) -> None:
        self.enough_rows = _enough_rows(points, max_rows)
        """Larger batches cost next to nothing less a row."""
        self._points = points
        self._slowdown = 1.0

    def computed(self, rows: int, seconds: float) -> None:
        """Learn from a batch how much slower the engine is than at warm-up, as when others use the processor too."""
        measured = self._measured_seconds(rows)
        if measured > 0.0:
            self._slowdown += _LEARNING_SHARE * (min(seconds / measured, _MOST_SLOWDOWN) - self._slowdown)

    def seconds(self, rows: int) -> float:
        """Return how long the engine is expected to take for a batch; 0 without a curve."""
        return self._slowdown * self._measured_seconds(rows)

    def _measured_seconds(self, rows: int) -> float:
        points = self._points
        if not points:
            return 0.0
        before_rows, before_seconds = points[0]
        for next_rows, next_seconds in points:
            if rows <= next_rows:
                if next_rows == before_rows:
                    return next_seconds
                share = (rows - before_rows) / (next_rows - before_rows)
                return before_seconds + share * (next_seconds - before_seconds)
            before_rows, before_seconds = next_rows, next_seconds
        return before_seconds * rows / before_rows


class Pace:
    """How long a row takes when the worker has always something to do: measured from answer to answer."""

    def __init__(self) -> None:
        self.seconds_per_row = 0.0
        """0 while nothing is known."""
        self._busy_since: float | None = None

    def answered(self, rows: int, now: float, *, is_busy: bool) -> None:
        """Take note of a batch. `is_busy`: whether the worker has more to do."""
        if self._busy_since is not None:
            seconds = (now - self._busy_since) / rows
            share = _LEARNING_SHARE if self.seconds_per_row else 1.0
            self.seconds_per_row += share * (seconds - self.seconds_per_row)
        self._busy_since = now if is_busy else None


class Rows(NamedTuple):
    """How many rows there are, and what a batch of them may be."""

    waiting: int
    in_flight: int
    """With the worker."""
    enough: int
    """So many pay."""
    most: int
    """A batch has no more."""


def release(rule: Rule, lanes: Sequence[Lane], rows: Rows, now: float) -> Release | None:
    """Return where waiting rows are to be sent now, and why; None when they wait."""
    if not rows.in_flight:
        return Release(0, "idle")
    open_lanes = range(rule.lanes)
    free = next((index for index in open_lanes if not lanes[index].batches), None)
    if free is not None:
        if rows.waiting >= rows.enough:
            return Release(free, "full" if rows.waiting >= rows.most else "enough")
        is_fair_share = rows.waiting * rule.lanes >= rows.waiting + rows.in_flight
        return Release(free, "lane") if is_fair_share or not rule.patient else None
    if not rule.ahead:
        return None
    soonest = min(open_lanes, key=lambda index: (lanes[index].batches, lanes[index].expected_end))
    if lanes[soonest].batches > 1:
        return None
    if rows.waiting >= rows.enough:
        return Release(soonest, "full" if rows.waiting >= rows.most else "enough")
    return Release(soonest, "handover") if now >= lanes[soonest].expected_end - _HANDOVER_SECONDS else None


def _enough_rows(points: Sequence[tuple[int, float]], max_rows: int) -> int:
    """Return the smallest measured number of rows that cost about as little each as the cheapest."""
    costs = {rows: (seconds + _OVERHEAD_SECONDS) / rows for rows, seconds in points if rows <= max_rows}
    if not costs:
        return 1
    cheapest = min(costs.values())
    return min(rows for rows, cost in costs.items() if cost <= _ENOUGH * cheapest)
