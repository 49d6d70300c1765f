"""Where a search keeps what it knows: files that are whole or not there at all, and outlive every process.

They are the only record: Optuna's study is made anew from them, so the two cannot disagree after a kill.
"""

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from maas_compression.limits import Limits
from maas_compression.recipe import Recipe, parse_recipe
from maas_compression.searching.trials import Choices, Figures, Outcome, Record
from maas_compression.spec import recipe_text
from maas_jobs.job import JsonObject


@dataclass(frozen=True, slots=True)
class TrialRequest:
    """What a trial's process is asked to do. Without `recipe` and `source` it is to measure the source itself."""

    recipe: Recipe
    choices: Choices
    limits: Limits
    threads: int
    source: Figures | None


@dataclass(frozen=True, slots=True)
class Lost:
    """A trial that had begun when a process was killed, and how often its recipe was lost so, this time included."""

    number: int
    request: TrialRequest
    times: int


class SearchFolders:
    """The folder `search` in a job's folder."""

    def __init__(self, job_folder: Path) -> None:
        self._folder = job_folder / "search"
        self._trials = self._folder / "trials"
        self.prefixes = self._folder / "prefixes"
        self.answers = self._folder / "answers"

    def package(self, number: int) -> Path:
        """Return where a trial leaves its package."""
        return self._trial(number) / "package"

    def output(self, number: int) -> Path:
        """Return where goes what a trial's process prints."""
        return self._trial(number) / "output.txt"

    @contextmanager
    def speed_turn(self) -> Iterator[None]:
        """Wait until no other trial measures speed, and keep the others waiting meanwhile."""
        with (self._folder / "speed.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def begin(self, number: int, request: TrialRequest) -> None:
        """Make a trial's folder, with what it is asked."""
        _write_json(
            self._trial(number) / "request.json",
            {
                "recipe": recipe_text(request.recipe),
                "choices": dict(request.choices),
                "limits": request.limits.to_json(),
                "threads": request.threads,
                "source": None if request.source is None else asdict(request.source),
            },
        )

    def read_request(self, number: int) -> TrialRequest:
        """Read what `begin` wrote."""
        value = _read_json(self._trial(number) / "request.json")
        return TrialRequest(
            recipe=parse_recipe(value["recipe"]),
            choices=value["choices"],
            limits=Limits.from_json(value["limits"]),
            threads=value["threads"],
            source=None if value["source"] is None else Figures(**value["source"]),
        )

    def write_outcome(self, number: int, outcome: Outcome, seconds: float) -> None:
        """Leave how a trial ended; from here on it is finished, and is not run again."""
        request = self.read_request(number)
        record = Record(number, tuple(recipe_text(request.recipe)), request.choices, outcome, seconds)
        _write_json(self._trial(number) / "record.json", record.to_json())

    def record(self, number: int) -> Record | None:
        """Return a trial that has ended, or None."""
        path = self._trial(number) / "record.json"
        return Record.from_json(_read_json(path)) if path.is_file() else None

    def records(self) -> list[Record]:
        """Return all trials that have ended, by number."""
        return [record for number in self._numbers() if (record := self.record(number)) is not None]

    def lost(self) -> list[Lost]:
        """Return the trials that had begun and have no record, by number. Only when no trial is running."""
        found = []
        times = Counter[tuple[str, ...]]()
        for number in self._numbers():
            if self.record(number) is None:
                request = self.read_request(number)
                lines = tuple(recipe_text(request.recipe))
                times[lines] += 1
                found.append(Lost(number, request, times[lines]))
        return found

    def next_number(self) -> int:
        """Return a number that no trial had."""
        return max(self._numbers(), default=-1) + 1

    def remove_packages_but(self, numbers: set[int]) -> None:
        """Remove the packages of the other trials."""
        for number in self._numbers():
            if number not in numbers:
                shutil.rmtree(self.package(number), ignore_errors=True)

    def spent_seconds(self) -> float:
        """Return how long the search worked before this process."""
        path = self._folder / "spent.json"
        return float(_read_json(path)["seconds"]) if path.is_file() else 0.0

    def write_spent_seconds(self, seconds: float) -> None:
        """Keep how long the search has worked."""
        _write_json(self._folder / "spent.json", {"seconds": seconds})

    def _numbers(self) -> list[int]:
        return sorted(int(path.parent.name) for path in self._trials.glob("*/request.json"))

    def _trial(self, number: int) -> Path:
        return self._trials / f"{number:04}"


def _write_json(path: Path, value: JsonObject) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(value), encoding="utf-8")
    scratch.replace(path)


def _read_json(path: Path) -> JsonObject:
    value: JsonObject = json.loads(path.read_text(encoding="utf-8"))
    return value
