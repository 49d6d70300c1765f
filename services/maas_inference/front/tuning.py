"""Which rule of batching is best, found out while serving.

A rule is judged over an epoch: answered requests n, and the sum s of their times from arrival to answer, within a span
t. The score is n² / (t s), throughput over mean time: Kleinrock's power ("Power and deterministic rules of thumb for
probabilistic problems in computer communications", ICC 1979). With a fixed number of callers it grows with
throughput, with a fixed rate of arrivals it grows as the waiting shrinks. A machine that others use too changes its
speed all the time, so a rule is never compared with what another one reached at another time: each trial stands
between two epochs of the rule in use, and only its ratio to those two counts.

Which rule is best depends on the load, so each load has its own. The load is s / t, by Little's law the mean number of
requests in the queue and with the worker, in powers of four.
"""

from collections.abc import Generator, Sequence
from math import log, sqrt
from typing import Final, NamedTuple

from maas_inference.front.batching import Rule

_EPOCH_SECONDS: Final = 0.1
_EPOCH_BATCHES: Final = 16
_LONG_EPOCH_SECONDS: Final = 1.0
"""An epoch ends after so many seconds even with fewer batches, but not with fewer than a quarter."""
_PAUSE_SECONDS: Final = 4.0
"""An epoch of more seconds had a pause in it and says nothing."""
_ALONE: Final = 2.0
"""With fewer requests at once rules hardly differ, and none is tried."""
_PAUSES: Final = (1, 8)
"""Epochs of the rule in use between two trials: while rules are new, and once each was tried _ENOUGH_TRIALS times."""
_ENOUGH_TRIALS: Final = 3
_BETTER: Final = 0.02
"""A rule takes over when its ratio's logarithm is above this by its standard error."""
_USUAL_VARIANCE: Final = 0.12**2
"""Of one trial; counts as two trials beside those that were seen, since a variance of few is a guess."""
_HOPELESS: Final = -0.1
"""A rule that is worse by so much is tried in one of _HOPELESS_TURNS turns only."""
_HOPELESS_TURNS: Final = 8
_MEMORY_TRIALS: Final = 12.0
"""Older trials fade as if there were never more than so many."""


class _Epoch(NamedTuple):
    """What an epoch showed: the logarithm of its score, and the load, 0 for a caller alone."""

    score: float
    load: int


class _Trials:
    """How a rule did against the one in use: mean and variance of the ratio's logarithm."""

    def __init__(self) -> None:
        self.count = 0.0
        self.mean = 0.0
        self.variance = 0.0

    def add(self, value: float) -> None:
        """Take note of one trial."""
        self.count = min(self.count + 1.0, _MEMORY_TRIALS)
        step = value - self.mean
        self.mean += step / self.count
        self.variance += (step * (value - self.mean) - self.variance) / self.count

    @property
    def is_better(self) -> bool:
        """Whether the rule is better than the one in use, and not by chance."""
        variance = (self.variance * self.count + _USUAL_VARIANCE * 2) / (self.count + 2)
        return self.count >= 2 and self.mean - sqrt(variance / self.count) > _BETTER


class _Load:
    """What is known at one load."""

    def __init__(self, rule: Rule, rules: Sequence[Rule]) -> None:
        self.rule = rule
        """The rule in use."""
        self._trials = {other: _Trials() for other in rules if other != rule}
        self._turn = 0

    @property
    def pause(self) -> int:
        """How many epochs of the rule in use come before the next trial."""
        return _PAUSES[all(trials.count >= _ENOUGH_TRIALS for trials in self._trials.values())]

    def next_challenger(self) -> Rule:
        """Return the rule to try next."""
        rules = list(self._trials)
        while True:
            self._turn += 1
            rule = rules[self._turn % len(rules)]
            is_hopeless = self._trials[rule].count >= _ENOUGH_TRIALS and self._trials[rule].mean < _HOPELESS
            if not is_hopeless or self._turn // len(rules) % _HOPELESS_TURNS == 0:
                return rule

    def judge(self, challenger: Rule, value: float) -> None:
        """Take note of a trial; the challenger takes over when it is better."""
        trials = self._trials[challenger]
        trials.add(value)
        if trials.is_better:
            del self._trials[challenger]
            # What was learned against the old rule holds against the new one, less certainly.
            for others in self._trials.values():
                others.mean -= trials.mean
                others.count = min(others.count, 1.0)
            self._trials[self.rule] = _Trials()
            self.rule = challenger


class Tuner:
    """Says which rule to use. Times are in seconds of any one clock."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._loads: dict[int, _Load] = {}
        self._course = self._run()
        self.rule = next(self._course)
        self.epoch = 0
        """Stamp of the batches that are sent now: those of an earlier epoch say nothing of this one's rule."""
        self._begun: float | None = None
        self._requests = self._batches = 0
        self._seconds = 0.0

    def answered(self, epoch: int, requests: int, seconds: float, now: float) -> None:
        """Take note of a batch sent in `epoch`: its requests, and the sum of their times from arrival to answer."""
        if epoch != self.epoch or len(self._rules) == 1:
            return
        if self._begun is None:
            self._begun = now
            return
        self._requests += requests
        self._seconds += seconds
        self._batches += 1
        span = now - self._begun
        enough = _EPOCH_BATCHES if span < _LONG_EPOCH_SECONDS else _EPOCH_BATCHES / 4
        if span >= _EPOCH_SECONDS and self._batches >= enough:
            if span < _PAUSE_SECONDS and self._seconds > 0.0 and self._requests:
                self.rule = self._course.send(self._finished(span))
            self._start_epoch()

    def _finished(self, span: float) -> _Epoch:
        callers = self._seconds / span
        load = 0 if callers < _ALONE else 1 + int(log(callers / _ALONE, 4))
        return _Epoch(log(self._requests**2 / (span * self._seconds)), load)

    def _start_epoch(self) -> None:
        self.epoch += 1
        self._begun = None
        self._requests = self._batches = 0
        self._seconds = 0.0

    def _run(self) -> Generator[Rule, _Epoch, None]:
        """Yield the rule of each epoch; what it showed is sent in."""
        last = yield self._rules[0]
        while True:
            level = last.load
            load = self._at(level)
            for _ in range(load.pause):
                last = yield load.rule
                if last.load != level or not level:
                    break
            else:
                before = last
                challenger = load.next_challenger()
                trial = yield challenger
                last = yield load.rule
                if last.load == level:
                    load.judge(challenger, trial.score - (before.score + last.score) / 2)

    def _at(self, level: int) -> _Load:
        """Return what is known at a load; to begin with, the rule that is in use at the nearest known load."""
        if level not in self._loads:
            nearest = min(self._loads, key=lambda known: abs(known - level), default=None)
            self._loads[level] = _Load(self._rules[0] if nearest is None else self._loads[nearest].rule, self._rules)
        return self._loads[level]
