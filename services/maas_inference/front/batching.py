"""When waiting rows become a batch."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What a version's batches may be."""

    max_rows: int
    max_in_flight: int = 2


class BatchingPolicy:
    """Decides, from the worker's cost curve and what is in flight, whether to send now or to wait for more rows."""

    def __init__(self, limits: BatchLimits, cost_curve: Sequence[tuple[int, float]]) -> None:
        self._limits = limits
        self._curve = cost_curve

    @property
    def max_rows(self) -> int:
        """Rows of a full batch."""
        return self._limits.max_rows

    def release(self, waiting_rows: int, in_flight: int) -> str:
        """Return why a batch is to be sent now: `idle`, `full` or `overlap`; empty when it is not."""
        if in_flight == 0:
            return "idle"
        if in_flight >= self._limits.max_in_flight:
            return ""
        return "full" if waiting_rows >= self._limits.max_rows else "overlap"
