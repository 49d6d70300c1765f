"""The search's parts: what is proposed, what is better, and what recipes share. No processes."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from search_job import make_job_folder

from maas_compression.limits import NO_LIMITS, Limits
from maas_compression.materials import Materials
from maas_compression.recipe import Clip, Distill, FixedPoint, Int8, Recipe, Technique, check_recipe
from maas_compression.searching.prefixes import Prefixes
from maas_compression.searching.ranking import keeps_limits, order, pareto_front
from maas_compression.searching.sampler import Sampler
from maas_compression.searching.space import Model, Space
from maas_compression.searching.trials import Figures, Outcome, Record, TrialState
from maas_compression.spec import recipe_text
from maas_package.package import Package, read_package

LSTM = Model(True, True, True, "lstm-text-classifier")
BERT = Model(True, True, True, "bert-text-classifier", layers=6, channels=1536)
ENCODER = Model(True, True, False, "bert-sentence-encoder", layers=6, channels=1536)
GRAPH = Model(False, False, False)
SOURCE = Figures(1000, "accuracy", 0.8, 0.0, 100, 0.010, 0.020, 100.0)


def record(number: int, *recipe: str, state: TrialState = TrialState.MEASURED, **figures: float) -> Record:
    return Record(number, recipe or (f"recipe{number}",), {}, Outcome(state, replace(SOURCE, **figures)), 1.0)


def ranked(records: Sequence[Record], limits: Limits, objective: str) -> list[int]:
    return [one.number for one in order(records, limits, objective, SOURCE)]


def test_those_that_keep_to_the_limits_come_first_and_then_the_objective_decides() -> None:
    records = [
        record(1, size_bytes=300, p50_seconds=0.004),
        record(2, size_bytes=200, p50_seconds=0.005, quality_loss=0.009),
        record(3, size_bytes=100, p50_seconds=0.001, quality_loss=0.2),
        record(4, size_bytes=250, state=TrialState.STOPPED),
    ]
    limits = Limits(max_quality_loss=0.01)
    assert ranked(records, limits, "fastest")[:2] == [1, 2]
    assert ranked(records, limits, "smallest")[:2] == [2, 1]
    assert ranked(records, limits, "best_quality")[:2] == [1, 2]
    assert ranked(records, NO_LIMITS, "fastest")[0] == 3
    assert not keeps_limits(records[3], limits), "what was not measured as a whole keeps to nothing"


def test_the_fastest_is_what_the_limits_speak_of() -> None:
    records = [record(1, p50_seconds=0.002, rows_per_second=120), record(2, p50_seconds=0.008, rows_per_second=500)]
    assert ranked(records, Limits(max_p50_seconds=0.009), "fastest") == [1, 2]
    assert ranked(records, Limits(min_throughput_rows=110), "fastest") == [2, 1]


def test_where_nothing_keeps_to_the_limits_the_nearest_comes_first() -> None:
    records = [record(1, size_bytes=900), record(2, size_bytes=600), record(3, size_bytes=550, quality_loss=0.5)]
    assert ranked(records, Limits(max_size_bytes=500, max_quality_loss=0.01), "fastest")[0] == 2


def test_the_front_has_what_no_other_beats() -> None:
    records = [
        record(1, size_bytes=300),
        record(2, size_bytes=200, quality_loss=0.02),
        record(3, size_bytes=300, quality_loss=0.01),
        record(4, size_bytes=1, state=TrialState.STOPPED, p50_seconds=None),
    ]
    assert pareto_front(records) == {1, 2}


@pytest.mark.parametrize("model", [LSTM, BERT, ENCODER, GRAPH])
@pytest.mark.parametrize("allow_training", [False, True])
def test_every_proposal_can_be_applied_and_is_made_once(model: Model, allow_training: bool) -> None:
    space = Space(model, allow_training and model.has_trainable_form)
    sampler = Sampler(space, NO_LIMITS, SOURCE, [], seed=1)
    seen = set()
    for number in range(1, 61):
        proposal = sampler.next()
        if proposal is None:
            break
        check_recipe(proposal.recipe, has_trainable_form=model.has_trainable_form)
        assert proposal.lines not in seen
        seen.add(proposal.lines)
        sampler.learn(Record(number, proposal.lines, proposal.choices, Outcome(TrialState.MEASURED, SOURCE), 1.0))
    assert len(seen) > 20
    trains = any(line.startswith(("distill", "qat")) or "recovery_epochs" in line for lines in seen for line in lines)
    assert trains == (allow_training and model.has_trainable_form)


def test_a_sampler_that_goes_on_proposes_nothing_that_was_tried() -> None:
    space = Space(LSTM, allow_training=False)
    first = Sampler(space, NO_LIMITS, SOURCE, [], seed=1)
    records = []
    for number in range(1, 26):
        proposal = first.next()
        assert proposal is not None
        records.append(
            Record(number, proposal.lines, proposal.choices, Outcome(TrialState.MEASURED, SOURCE), seconds=1.0)
        )
        first.learn(records[-1])
    second = Sampler(space, NO_LIMITS, SOURCE, records, seed=1)
    tried = {one.recipe for one in records}
    for _ in range(10):
        proposal = second.next()
        assert proposal is not None
        assert proposal.lines not in tried


def test_a_technique_that_fails_again_and_again_is_left_alone() -> None:
    sampler = Sampler(Space(LSTM, allow_training=False), NO_LIMITS, SOURCE, [], seed=1)
    failures = 0
    for number in range(1, 41):
        proposal = sampler.next()
        if proposal is None:
            break
        has_vocabulary = any(line.startswith("vocabulary") for line in proposal.lines)
        failures += has_vocabulary
        state = TrialState.FAILED if has_vocabulary else TrialState.MEASURED
        sampler.learn(Record(number, proposal.lines, proposal.choices, Outcome(state, SOURCE), 1.0))
    assert failures == 3


class Workshop:
    """Applies techniques by copying the package, and counts."""

    def __init__(self) -> None:
        self.applied: list[str] = []

    def apply(self, source: Package, technique: Technique, folder: Path, materials: Materials) -> Package:
        self.applied += recipe_text((technique,))
        assert materials.scratch.is_dir()
        shutil.copytree(source.folder, folder)
        return read_package(folder)


def test_recipes_share_what_they_begin_with(tmp_path: Path) -> None:
    source = read_package(make_job_folder(tmp_path) / "source")
    prefixes, shop, materials = Prefixes(tmp_path / "prefixes"), Workshop(), Materials(tmp_path)
    recipes: list[Recipe] = [
        (Distill(), FixedPoint(), Int8()),
        (Distill(), Int8()),
        (Distill(), FixedPoint(), Int8(mode="static")),
        (Distill(),),
    ]
    for number, recipe in enumerate(recipes):
        prefixes.make(source, recipe, tmp_path / str(number), materials, shop.apply)
        assert read_package(tmp_path / str(number)).manifest == source.manifest
    assert shop.applied == ["distill", "fixed_point", "int8", "int8", "int8(mode=static)"]


def test_a_beginning_that_was_not_finished_is_made_anew(tmp_path: Path) -> None:
    source = read_package(make_job_folder(tmp_path) / "source")
    prefixes, shop, materials = Prefixes(tmp_path / "prefixes"), Workshop(), Materials(tmp_path)
    prefixes.make(source, (Clip(), Int8()), tmp_path / "first", materials, shop.apply)
    for mark in (tmp_path / "prefixes").glob("*.seconds"):
        mark.unlink()  # as if the process had been killed before its last act
    prefixes.make(source, (Clip(), FixedPoint()), tmp_path / "second", materials, shop.apply)
    assert shop.applied == ["clip", "int8", "clip", "fixed_point"]


def test_only_a_few_quickly_made_beginnings_are_kept(tmp_path: Path) -> None:
    source = read_package(make_job_folder(tmp_path) / "source")
    prefixes, shop, materials = Prefixes(tmp_path / "prefixes"), Workshop(), Materials(tmp_path)
    for bits in range(1, 9):
        prefixes.make(source, (FixedPoint(bits), Int8()), tmp_path / str(bits), materials, shop.apply)
    prefixes.remove_all_but([(FixedPoint(1), Int8())])
    kept = [path for path in (tmp_path / "prefixes").iterdir() if (path / "manifest.json").is_file()]
    assert len(kept) == 5
