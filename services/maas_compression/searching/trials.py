"""What a trial is: a recipe, what was measured of it, and how it ended."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, Self

from maas_compression import limits
from maas_jobs.job import JsonObject

Choices = Mapping[str, Any]
"""What a sampler chose: parameter names and their values."""


class TrialState(Enum):
    """How a trial ended; protos/maas/compression/v1/search.proto says what each means."""

    MEASURED = "MEASURED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of one package. What is None was not measured."""

    size_bytes: int = 0
    metric: str = ""
    quality: float | None = None
    quality_loss: float | None = None
    rows: int = 0
    """Rows that the quality was found on."""
    p50_seconds: float | None = None
    p99_seconds: float | None = None
    rows_per_second: float | None = None
    peak_memory_bytes: int | None = None
    engine: str = ""

    @property
    def limited(self) -> limits.Figures:
        """What limits speak of."""
        return limits.Figures(
            size_bytes=self.size_bytes or None,
            p50_seconds=self.p50_seconds,
            p99_seconds=self.p99_seconds,
            rows_per_second=self.rows_per_second,
            memory_bytes=self.peak_memory_bytes,
            quality_loss=self.quality_loss,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial ended, in the words of its own process."""

    state: TrialState
    figures: Figures = field(default_factory=Figures)
    reason: str = ""

    def to_json(self) -> JsonObject:
        """Return the form that is stored."""
        return {"state": self.state.value, "figures": asdict(self.figures), "reason": self.reason}

    @classmethod
    def from_json(cls, value: JsonObject) -> Self:
        """Read what `to_json` made."""
        return cls(TrialState(value["state"]), Figures(**value["figures"]), value["reason"])


@dataclass(frozen=True, slots=True)
class Record:
    """A trial that has ended. Number 0 is the source itself, with an empty recipe."""

    number: int
    recipe: tuple[str, ...]
    choices: Choices
    outcome: Outcome
    seconds: float

    def to_json(self) -> JsonObject:
        """Return the form that is stored."""
        return {
            "number": self.number,
            "recipe": list(self.recipe),
            "choices": dict(self.choices),
            "outcome": self.outcome.to_json(),
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, value: JsonObject) -> Self:
        """Read what `to_json` made."""
        return cls(
            value["number"],
            tuple(value["recipe"]),
            value["choices"],
            Outcome.from_json(value["outcome"]),
            value["seconds"],
        )
