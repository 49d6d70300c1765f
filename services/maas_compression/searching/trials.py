"""What a trial is: a recipe, what was measured of it, and how it ended. Kept as files that outlive every process.

The files are the only record: Optuna's study is made anew from them, so the two cannot disagree after a kill.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Self

from maas_compression import limits
from maas_jobs.job import JsonObject

Choices = Mapping[str, Any]
"""What a sampler chose: parameter names and their values."""

_RECORD_FILE = "record.json"


class TrialState(Enum):
    """How a trial ended; protos/maas/compression/v1/search.proto says what each means."""

    MEASURED = "MEASURED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of one package. What is None was not measured."""

    size_bytes: int = 0
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


class TrialFolders:
    """The folders of a search's trials: `<folder>/<number>/`, each with its record once it has ended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def folder(self, number: int) -> Path:
        """Return where a trial works."""
        return self._folder / f"{number:04}"

    def package(self, number: int) -> Path:
        """Return where a trial leaves its package."""
        return self.folder(number) / "package"

    def write(self, record: Record) -> None:
        """Keep a trial that has ended."""
        write_json(self.folder(record.number) / _RECORD_FILE, record.to_json())

    def read(self) -> tuple[Record, ...]:
        """Return all trials that have ended, by number."""
        records = (Record.from_json(read_json(path)) for path in self._folder.glob(f"*/{_RECORD_FILE}"))
        return tuple(sorted(records, key=lambda record: record.number))


def write_json(path: Path, value: JsonObject) -> None:
    """Write a file that is there as a whole or not at all, whenever a process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(value), encoding="utf-8")
    scratch.replace(path)


def read_json(path: Path) -> JsonObject:
    """Read what `write_json` wrote."""
    value: JsonObject = json.loads(path.read_text(encoding="utf-8"))
    return value
