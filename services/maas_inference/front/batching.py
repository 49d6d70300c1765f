"""When waiting rows become a batch.

Nothing waits for a timer. While the worker is free, what waits goes at once: alone in the queue, a request loses no
time. While the worker computes, a second batch is sent ahead, so that the engine need not wait for Python; but only
once it has as many rows as pay, by the cost curve that the worker measured, or when the first is about to be done.
Until then waiting is free: the engine is busy, and the rows of a larger batch cost less each.
"""

from collections.abc import Sequence
from typing import Final

MAX_IN_FLIGHT: Final = 2
"""Batches that are with a worker at once: one is computed, one is ready for when that is done."""

_OVERHEAD_SECONDS: Final = 100e-6
"""What a batch costs around the engine, in the front and in the worker, however many rows it has."""
_ENOUGH: Final = 1.1
"""Rows that cost at most so many times what the cheapest cost are not worth waiting to make cheaper."""
_HANDOVER_SECONDS: Final = 300e-6
"""How long before a batch's expected end the next one is sent."""
_LEARNING_SHARE: Final = 0.1
_MOST_SLOWDOWN: Final = 20.0


class BatchingPolicy:
    """Decides from a worker's cost curve, (rows, seconds) by ascending rows, when a batch is sent."""

    def __init__(self, max_rows: int, cost_curve: Sequence[tuple[int, float]]) -> None:
        self.max_rows = max_rows
        self.enough_rows = _enough_rows(cost_curve, max_rows)
        """A batch of so many rows is sent ahead."""
        self._curve = cost_curve
        self._slowdown = 1.0

    def computed(self, rows: int, seconds: float) -> None:
        """Learn from a batch how much slower the engine is than at warm-up, as when others use the processor too."""
        measured = self._measured_seconds(rows)
        if measured > 0.0:
            self._slowdown += _LEARNING_SHARE * (min(seconds / measured, _MOST_SLOWDOWN) - self._slowdown)

    def cost_seconds(self, rows: int) -> float:
        """Return how long the engine is expected to take for a batch; 0 without a curve."""
        return self._slowdown * self._measured_seconds(rows)

    def release(self, waiting_rows: int, in_flight: int, expected_end: float, now: float) -> str:
        """Return why a batch is to be sent now: `idle`, `full`, `enough` or `handover`; empty when it is not.

        `expected_end`: when the batch that was sent last is expected to be computed.
        """
        if in_flight == 0:
            return "idle"
        if in_flight >= MAX_IN_FLIGHT:
            return ""
        if waiting_rows >= self.max_rows:
            return "full"
        if waiting_rows >= self.enough_rows:
            return "enough"
        return "handover" if now >= expected_end - _HANDOVER_SECONDS else ""

    def _measured_seconds(self, rows: int) -> float:
        curve = self._curve
        if not curve:
            return 0.0
        before_rows, before_seconds = curve[0]
        for next_rows, next_seconds in curve:
            if rows <= next_rows:
                if next_rows == before_rows:
                    return next_seconds
                share = (rows - before_rows) / (next_rows - before_rows)
                return before_seconds + share * (next_seconds - before_seconds)
            before_rows, before_seconds = next_rows, next_seconds
        return before_seconds * rows / before_rows


def _enough_rows(curve: Sequence[tuple[int, float]], max_rows: int) -> int:
    """Return the smallest measured number of rows that cost about as little each as the cheapest."""
    costs = {rows: (seconds + _OVERHEAD_SECONDS) / rows for rows, seconds in curve if rows <= max_rows}
    if not costs:
        return 1
    cheapest = min(costs.values())
    return min(rows for rows, cost in costs.items() if cost <= _ENOUGH * cheapest)
