"""Chooses the next recipe: the sensible ones first, then Optuna by what was measured.

Optuna's study lives in memory and is made anew from the trials' records, which outlive every process.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maas_compression.limits import Limits
from maas_compression.recipe import Recipe, RecipeInvalid, check_recipe, technique_name
from maas_compression.searching.ranking import slowness
from maas_compression.searching.space import Space
from maas_compression.searching.trials import Choices, Figures, Record, TrialState
from maas_compression.spec import recipe_text

if TYPE_CHECKING:
    from optuna.trial import Trial

_ASKED_IN_VAIN = 100
"""After so many recipes in a row that were tried already, there is nothing left to try."""
_FAILURES_OF_A_TECHNIQUE = 3


@dataclass(frozen=True, slots=True)
class Proposal:
    """What to try next."""

    recipe: Recipe
    lines: tuple[str, ...]
    choices: Choices


class Sampler:
    """Proposes recipes that were not tried, and learns from how they did."""

    def __init__(self, space: Space, limits: Limits, source: Figures, records: Iterable[Record], seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        known = [record for record in records if record.number]
        self._space = space
        self._limits = limits
        self._source = source
        self._records = {record.recipe: record for record in known}
        self._running: dict[tuple[str, ...], Trial] = {}
        # A sampler that goes on after a kill must not propose what it proposed at first.
        sampler = optuna.samplers.TPESampler(seed=seed + len(known), n_startup_trials=10)
        self._study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler)
        for record in known:
            self._study.enqueue_trial(dict(record.choices))
            trial = self._study.ask()
            self._space.suggest(trial)
            self._tell(trial, record)
        for choices in space.first_choices():
            if tuple(recipe_text(space.recipe(choices))) not in self._records:
                self._study.enqueue_trial(dict(choices))

    def next(self) -> Proposal | None:
        """Return a recipe that was not tried and is not being tried, or None when there seems to be none left."""
        for _ in range(_ASKED_IN_VAIN):
            trial = self._study.ask()
            choices = self._space.suggest(trial)
            recipe = self._space.recipe(choices)
            lines = tuple(recipe_text(recipe))
            if lines in self._records:
                self._tell(trial, self._records[lines])
            elif lines in self._running or not self._is_worth_a_trial(recipe):
                self._refuse(trial)
            else:
                self._running[lines] = trial
                return Proposal(recipe, lines, choices)
        return None

    def learn(self, record: Record) -> None:
        """Take in how a proposal did."""
        self._records[record.recipe] = record
        self._tell(self._running.pop(record.recipe), record)

    def _tell(self, trial: "Trial", record: Record) -> None:
        if record.outcome.state is TrialState.FAILED:
            self._refuse(trial)
            return
        figures, source = record.outcome.figures, self._source
        broken = {check.limit: check.excess for check in self._limits.failures(figures.limited)}
        for limit in _stated(self._limits):
            trial.set_constraint(limit, broken.get(limit, 0.0))
        # What was stopped early was not seen to be faster than the source, nor better than nothing.
        size = figures.size_bytes / source.size_bytes
        slow = 1.0 if figures.p50_seconds is None else slowness(figures, self._limits, source)
        loss = 1.0 if figures.quality_loss is None else figures.quality_loss
        self._study.tell(trial, [size, slow, loss])

    def _refuse(self, trial: "Trial") -> None:
        from optuna.trial import TrialState as OptunaState

        self._study.tell(trial, state=OptunaState.FAIL)

    def _is_worth_a_trial(self, recipe: Recipe) -> bool:
        """A technique that failed each time, and more than twice, does not work on this model or host."""
        try:
            check_recipe(recipe, has_trainable_form=self._space.model.has_trainable_form)
        except RecipeInvalid:
            return False
        failed, worked = Counter[str](), Counter[str]()
        for record in self._records.values():
            names = {line.partition("(")[0] for line in record.recipe}
            (failed if record.outcome.state is TrialState.FAILED else worked).update(names)
        return not any(
            failed[name] >= _FAILURES_OF_A_TECHNIQUE and not worked[name] for name in map(technique_name, recipe)
        )


def _stated(limits: Limits) -> list[str]:
    return [name for name, wanted in limits.to_json().items() if wanted is not None]
