"""The search: asks a sampler for recipes, runs each as a trial in a process of its own, and always ends with an answer.

It goes on after the death of any process: what it knows lies in files, and a finished trial is not run again.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from maas_compression.limits import LimitCheck, Limits
from maas_compression.recipe import Recipe
from maas_compression.searching.folders import SearchFolders, TrialRequest
from maas_compression.searching.prefixes import Prefixes
from maas_compression.searching.ranking import keeps_limits, order
from maas_compression.searching.sampler import Proposal, Sampler
from maas_compression.searching.space import Model, Space
from maas_compression.searching.trials import Figures, Outcome, Record, TrialState
from maas_compression.searching.workers import Worker, start_worker
from maas_compression.spec import SearchWork
from maas_package.manifest import Manifest
from maas_runtime.failures import Failure, InvalidInput

DEFAULT_QUALITY_LOSS = 0.01
"""What may be lost where nothing is said: without any limit the fastest model would be one that knows nothing."""

_POLL_SECONDS = 0.05
_SPENT_EVERY_SECONDS = 2.0
_LEAST_TRIAL_SECONDS = 60.0
_KEPT_PACKAGES = 8
_MOST_JUDGED = 5
_JUDGING_SHARE = 0.25
"""At most this share of the time budget is kept for judging the answer."""
_LOST_AT_MOST = 2


class SourceNotMeasurable(InvalidInput):
    """The source itself cannot be measured, so no recipe can be compared with it."""

    reason = "SOURCE_NOT_MEASURABLE"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the split `test` said of a package: `failures` is empty when it may be published."""

    failures: tuple[LimitCheck, ...]
    refusal: str
    """Why it may not be published, in a sentence; empty when it may."""


Judge = Callable[[Record, Path], Judgement]
"""Judges the package of a trial, which lies in a folder of the judge's own."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The best that keeps to all limits, or else the best that was seen. `record` is None when nothing was made."""

    record: Record | None
    judgement: Judgement | None
    judged: int

    @property
    def meets_limits(self) -> bool:
        """Whether it may be published."""
        return self.judgement is not None and not self.judgement.refusal


@dataclass(frozen=True, slots=True)
class Found:
    """All that a search came to."""

    source: Figures
    records: tuple[Record, ...]
    answer: Answer
    seconds: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where a search works, and what it may take there."""

    job_folder: Path
    memory_bytes: int
    """Of all trials that run at once."""
    cores: int


class Search:
    """One search, from its beginning or from where a killed one stood."""

    def __init__(
        self,
        work: SearchWork,
        limits: Limits,
        manifest: Manifest,
        place: Place,
        log: Callable[[str], None],
        progress: Callable[[float, str, Mapping[str, float]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._work = work
        self._limits = limits
        self._space = Space(Model.of(manifest), work.allow_training)
        self._place = place
        self._log = log
        self._progress = progress
        self._clock = clock
        self._folders = SearchFolders(place.job_folder)
        self._count = work.workers or max(1, place.cores)
        self._began = clock() - self._folders.spent_seconds()
        self._next_note = 0.0
        self._running: dict[Worker, Recipe] = {}

    def run(self, judge: Judge) -> Found:
        """Search until the time, the trials or the recipes are used up, and judge the best."""
        try:
            self._take_lost()
            source = self._measure_source()
            self._try_recipes(source)
        finally:
            for worker in self._running:
                worker.end("the search ended")
        answer = self._answer(source.outcome.figures, judge)
        return Found(source.outcome.figures, self._tried(), answer, self._spent())

    def _take_lost(self) -> None:
        """A recipe that was lost with a killed process is tried once more; it may have been what killed it."""
        for lost in self._folders.lost():
            if lost.times >= _LOST_AT_MOST:
                reason = f"its process was killed {lost.times} times"
                self._folders.write_outcome(lost.number, Outcome(TrialState.FAILED, reason=reason), 0.0)

    def _measure_source(self) -> Record:
        """Return the record of the source, which every trial is compared with; alone, so that its speed is right."""
        for record in self._folders.records():
            if not record.recipe and record.outcome.state is TrialState.MEASURED:
                return record
        self._note("source")
        self._start((), {}, None, self._work.time_budget_seconds)
        while not (ended := self._harvest()):
            time.sleep(_POLL_SECONDS)
        if ended[0].outcome.state is not TrialState.MEASURED:
            raise SourceNotMeasurable(f"the source itself cannot be measured: {ended[0].outcome.reason}")
        self._log(f"source: {figures_text(ended[0].outcome.figures)}")
        return ended[0]

    def _try_recipes(self, source: Record) -> None:
        figures = source.outcome.figures
        end = self._work.time_budget_seconds - min(_JUDGING_SHARE * self._work.time_budget_seconds, 3 * source.seconds)
        sampler = Sampler(self._space, self._limits, figures, self._tried(), self._work.seed)
        tried, is_exhausted = len(self._tried()), False
        while self._spent() < end:
            while not is_exhausted and len(self._running) < self._count and tried < self._work.most_trials:
                proposal = sampler.next()
                if proposal is None:
                    is_exhausted = not self._running
                    break
                tried += 1
                self._start_trial(proposal, figures, end)
            self._note(f"trial {tried} of {self._work.most_trials}")
            for record in self._harvest():
                sampler.learn(record)
                self._tell(record, figures)
                is_exhausted = False
            if not self._running and (is_exhausted or tried >= self._work.most_trials):
                return
            time.sleep(_POLL_SECONDS)
        for worker in list(self._running):
            worker.end("the search had no time left")
            record = self._finish(worker, TrialState.STOPPED)
            self._tell(record, figures)

    def _start_trial(self, proposal: Proposal, source: Figures, end: float) -> None:
        share = 2 if self._work.allow_training else 4
        seconds = max(_LEAST_TRIAL_SECONDS, self._work.time_budget_seconds / share)
        self._start(proposal.recipe, dict(proposal.choices), source, min(seconds, end - self._spent() + 1.0))

    def _start(self, recipe: Recipe, choices: dict[str, object], source: Figures | None, seconds: float) -> None:
        number = self._folders.next_number()
        threads = max(1, self._place.cores // self._count)
        self._folders.begin(number, TrialRequest(recipe, choices, self._limits, threads, source))
        worker = start_worker(
            self._place.job_folder,
            number,
            self._folders.output(number),
            seconds=seconds,
            memory_bytes=self._place.memory_bytes // self._count,
            clock=self._clock,
        )
        self._running[worker] = recipe

    def _harvest(self) -> list[Record]:
        """Return the trials that have ended since the last call."""
        now = self._clock()
        return [self._finish(worker, TrialState.FAILED) for worker in list(self._running) if worker.is_over(now)]

    def _finish(self, worker: Worker, state: TrialState) -> Record:
        del self._running[worker]
        if self._folders.record(worker.number) is None:
            outcome = Outcome(state, reason=worker.why_it_died())
            self._folders.write_outcome(worker.number, outcome, self._clock() - worker.began)
        record = self._folders.record(worker.number)
        assert record is not None
        return record

    def _tell(self, record: Record, source: Figures) -> None:
        """Say how a trial did, and forget what is not needed any more."""
        best = self._ranked(source)
        is_best = bool(best) and best[0].number == record.number and keeps_limits(record, self._limits)
        ended = {
            TrialState.MEASURED: "best so far" if is_best else "keeps to the limits",
            TrialState.STOPPED: f"stopped: {record.outcome.reason}",
            TrialState.FAILED: f"failed: {record.outcome.reason}",
        }[record.outcome.state]
        recipe = ", ".join(record.recipe)
        self._log(f"trial {record.number}: {recipe}: {figures_text(record.outcome.figures)}{ended}")
        self._folders.remove_packages_but(
            {one.number for one in best[:_KEPT_PACKAGES]} | {worker.number for worker in self._running}
        )
        Prefixes(self._folders.prefixes).remove_all_but(self._running.values())

    def _note(self, phase: str) -> None:
        """Keep the time that was spent, and show how far the search is."""
        now = self._clock()
        if now < self._next_note:
            return
        self._next_note = now + _SPENT_EVERY_SECONDS
        self._folders.write_spent_seconds(self._spent())
        records = self._folders.records()
        tried = len([record for record in records if record.recipe])
        share = max(self._spent() / self._work.time_budget_seconds, tried / self._work.most_trials)
        self._progress(min(1.0, share), phase, self._best_so_far(records))

    def _best_so_far(self, records: list[Record]) -> dict[str, float]:
        if not records or records[0].outcome.figures.p50_seconds is None:
            return {}
        ranked = self._ranked(records[0].outcome.figures)
        if not ranked or not keeps_limits(ranked[0], self._limits):
            return {}
        figures = ranked[0].outcome.figures
        assert figures.p50_seconds is not None
        assert figures.rows_per_second is not None
        assert figures.quality_loss is not None
        return {
            "best_trial": ranked[0].number,
            "best_size_bytes": figures.size_bytes,
            "best_p50_ms": figures.p50_seconds * 1000,
            "best_throughput_rows": figures.rows_per_second,
            "best_quality_loss": figures.quality_loss,
        }

    def _answer(self, source: Figures, judge: Judge) -> Answer:
        """Judge the best on the split that nothing was chosen by, the next where it fails there, and so on."""
        ranked = [record for record in self._ranked(source) if self._folders.package(record.number).is_dir()]
        candidates = [record for record in ranked if keeps_limits(record, self._limits)][:_MOST_JUDGED] or ranked[:1]
        judged: list[tuple[Record, Judgement]] = []
        for record in candidates:
            if judged and self._spent() > self._work.time_budget_seconds:
                break
            self._progress(1.0, "judge", {})
            try:
                judgement = judge(record, self._folders.package(record.number))
            except Failure as failure:
                judgement = Judgement((), f"{failure.reason}: {failure.message}")
            judged.append((record, judgement))
            if not judgement.refusal:
                return Answer(record, judgement, len(judged))
            self._log(f"trial {record.number} is not the answer: {judgement.refusal}")
        if not judged:
            return Answer(None, None, 0)
        record, judgement = min(judged, key=lambda pair: sum(check.excess for check in pair[1].failures))
        return Answer(record, judgement, len(judged))

    def _tried(self) -> tuple[Record, ...]:
        return tuple(record for record in self._folders.records() if record.recipe)

    def _ranked(self, source: Figures) -> list[Record]:
        return order(self._tried(), self._limits, self._work.objective, source)

    def _spent(self) -> float:
        return self._clock() - self._began


def search_limits(limits: Limits) -> Limits:
    """Return the limits that a search keeps to when so much was stated."""
    return limits if limits.max_quality_loss is not None else replace(limits, max_quality_loss=DEFAULT_QUALITY_LOSS)


def figures_text(figures: Figures) -> str:
    """Return what was measured, as people read it, with a colon at its end; nothing when nothing was."""
    parts = []
    if figures.size_bytes:
        parts.append(f"{figures.size_bytes / 1e6:.2f} MB")
    if figures.p50_seconds is not None:
        parts.append(f"{figures.p50_seconds * 1000:.2f} ms")
    if figures.rows_per_second is not None:
        parts.append(f"{figures.rows_per_second:,.0f} rows/s")
    if figures.quality is not None:
        parts.append(f"quality {figures.quality:.4f}")
    return ", ".join(parts) + ": " if parts else ""
