"""What a result has to keep to, and the gate that lets only such results through. Imports nothing that computes."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Self

from maas_runtime.failures import NotAllowedNow


class LimitsNotMet(NotAllowedNow):
    """The result breaks a limit that was stated, so it is not published."""

    reason = "LIMITS_NOT_MET"


class NoGain(NotAllowedNow):
    """The result is neither smaller nor faster than its source, so it is not published."""

    reason = "NO_GAIN"


@dataclass(frozen=True, slots=True)
class Limits:
    """What was asked for; None is no limit.

    Sizes and memory are in bytes, times are of one row alone, rows a second are in batches of 32, all on the host that
    compresses, with one thread. `max_quality_loss` is a difference of qualities: 0.01 is one point of accuracy. The
    loss that was seen is compared with it, not the end of its interval: on 2,000 rows that is a point away for a model
    that changes one answer in twenty, so a bound on it would refuse what is as good as its source.
    """

    max_size_bytes: int | None = None
    max_p50_seconds: float | None = None
    max_p99_seconds: float | None = None
    min_throughput_rows: float | None = None
    max_memory_bytes: int | None = None
    max_quality_loss: float | None = None

    def check(self, figures: "Figures") -> tuple["LimitCheck", ...]:
        """Return each stated limit beside what was found; what was not measured is not checked."""
        return tuple(
            LimitCheck(name, float(limit), float(found))
            for name, figure in _FIGURE_OF_LIMIT.items()
            if (limit := getattr(self, name)) is not None and (found := getattr(figures, figure)) is not None
        )

    def failures(self, figures: "Figures") -> tuple["LimitCheck", ...]:
        """Return the stated limits that what was found breaks."""
        return tuple(check for check in self.check(figures) if not check.is_met)

    def to_json(self) -> dict[str, Any]:
        """Return the form that is stored."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Read what `to_json` made."""
        return cls(**value)


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Figures:
    """What was found of a result; None where it was not measured (a search drops hopeless trials before that)."""

    size_bytes: int | None = None
    p50_seconds: float | None = None
    p99_seconds: float | None = None
    rows_per_second: float | None = None
    memory_bytes: int | None = None
    quality_loss: float | None = None


_FIGURE_OF_LIMIT = {
    "max_size_bytes": "size_bytes",
    "max_p50_seconds": "p50_seconds",
    "max_p99_seconds": "p99_seconds",
    "min_throughput_rows": "rows_per_second",
    "max_memory_bytes": "memory_bytes",
    "max_quality_loss": "quality_loss",
}


@dataclass(frozen=True, slots=True)
class LimitCheck:
    """One limit and what was found; `limit` is the name of a field of Limits."""

    limit: str
    wanted: float
    found: float

    @property
    def is_met(self) -> bool:
        """Whether what was found keeps to it. NaN does not."""
        return self.found >= self.wanted if self._is_least else self.found <= self.wanted

    @property
    def excess(self) -> float:
        """By how much it is broken, 0 when it is not: 0.5 is half as much again as was allowed, 1 is half of the least.

        Of a quality, the difference itself, since the limit may be 0. Infinite when nothing sensible was found.
        """
        if self.is_met:
            return 0.0
        if self.limit == "max_quality_loss":
            excess = self.found - self.wanted
        elif self._is_least:
            excess = self.wanted / self.found - 1 if self.found > 0 else math.inf
        else:
            excess = self.found / self.wanted - 1
        return math.inf if math.isnan(excess) else excess

    @property
    def sentence(self) -> str:
        """What was found, and what was asked for, in units that people read."""
        what, text = _WORDS[self.limit]
        bound = "at least" if self._is_least else "at most"
        return f"{what} is {text(self.found)}, {bound} {text(self.wanted)} was asked for{self._excess_text()}"

    def _excess_text(self) -> str:
        if self.is_met:
            return ""
        if self.limit == "max_quality_loss":
            return f" ({_points(self.excess)} too much)"
        return f" ({self.excess + 1:.2f} times too {'little' if self._is_least else 'much'})"

    @property
    def _is_least(self) -> bool:
        return self.limit.startswith("min_")


def _bytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:,.2f} MB" if size_bytes >= 1e5 else f"{size_bytes:,.0f} bytes"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.2f} ms"


def _rows(rows: float) -> str:
    return f"{rows:,.0f} rows/s"


def _points(share: float) -> str:
    return f"{share * 100:.2f} points"


_WORDS: dict[str, tuple[str, Callable[[float], str]]] = {
    "max_size_bytes": ("the served file", _bytes),
    "max_p50_seconds": ("the median time of one row", _milliseconds),
    "max_p99_seconds": ("the 99th percentile of the time of one row", _milliseconds),
    "min_throughput_rows": ("throughput in batches", _rows),
    "max_memory_bytes": ("peak memory", _bytes),
    "max_quality_loss": ("loss of quality", _points),
}


def check_gate(
    limits: Limits, figures: Figures, *, name: str, smaller: bool, faster: bool, allow_no_gain: bool
) -> None:
    """Let only a result through that keeps to the limits and is worth having; `name` is the job's.

    Raises LimitsNotMet, with each broken limit and by how much, or NoGain.
    """
    broken = limits.failures(figures)
    if broken:
        sentences = "; ".join(check.sentence for check in broken)
        raise LimitsNotMet(f"nothing is published, since {sentences}", name=name)
    if not (smaller or faster or allow_no_gain):
        raise NoGain(
            "nothing is published, since the result is neither smaller nor faster than its source; allow that to "
            "publish it all the same, or add a technique",
            name=name,
        )
