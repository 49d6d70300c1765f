"""Advice on one version: facts, trials, an order. About a minute, on the host that compresses."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from maas_compression.advice.candidates import Candidate, Exclusion, Situation, WordUse, candidates, exclusions
from maas_compression.advice.host_facts import HostFacts, look_at_host
from maas_compression.advice.model_facts import EMBEDDINGS, ModelFacts, look_at_model
from maas_compression.advice.product_speed import ProductSpeed, measure_product
from maas_compression.advice.ranking import Recommendation, rank
from maas_compression.advice.trials import THREADS, Bench, Trial
from maas_compression.limits import Limits
from maas_compression.materials import Materials
from maas_compression.spec import recipe_text
from maas_compression.techniques.graphs import float_graph
from maas_engine.engine import choose_servable, first_line
from maas_engine.predictor import Predictor, open_predictor
from maas_jobs.labelled_rows import LabelledSplit
from maas_package.package import Package
from maas_runtime.failures import Failure

logger = logging.getLogger(__name__)

TRIAL_SECONDS = 60.0
"""After so long no further trial is begun."""

_MOST_WORD_TEXTS = 20_000
_ENCODED_TEXTS = 256
_PRODUCTS = 2
_PRODUCT_ROWS = (1, 256)
"""One word, and words of a batch."""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that the advice rests on."""

    source_bytes: int
    situation: Situation
    speeds: tuple[ProductSpeed, ...]
    recommendations: tuple[Recommendation, ...]
    exclusions: tuple[Exclusion, ...]


def advise(
    source: Package,
    limits: Limits,
    materials: Materials,
    *,
    allow_training: bool,
    clock: Clock = time.monotonic,
) -> Findings:
    """Look at the model and this host, try what may suit, and rank it. Raises what the source's engine raises."""
    predictor = open_predictor(source, choose_servable(source), THREADS)
    try:
        materials.progress(0.0, "look")
        situation = _situation(source, predictor, materials, allow_training=allow_training)
        speeds = tuple(_product_speeds(situation.model, situation.host))
        bench = Bench(source, predictor, materials.validation or materials.train)
        trials, failed = _try_all(bench, candidates(situation), materials, clock)
    finally:
        predictor.close()
    recommendations, without_gain = rank(trials, bench.source_bytes, limits)
    return Findings(
        source_bytes=bench.source_bytes,
        situation=situation,
        speeds=speeds,
        recommendations=tuple(recommendations),
        exclusions=(*failed, *without_gain, *exclusions(situation)),
    )


def _situation(source: Package, predictor: Predictor, materials: Materials, *, allow_training: bool) -> Situation:
    model = look_at_model(float_graph(source))
    architecture = source.manifest.architecture
    texts = materials.train or materials.validation
    return Situation(
        model=model,
        host=look_at_host(),
        architecture=architecture.name if architecture else "",
        classifies=bool(source.manifest.labels),
        words=_word_use(predictor, texts) if texts and model.parts[EMBEDDINGS].parameters else None,
        has_training_data=materials.train is not None,
        allow_training=allow_training,
    )


def _word_use(predictor: Predictor, texts: LabelledSplit) -> WordUse | None:
    vocabulary = predictor.preparer.vocabulary_size
    if not vocabulary:
        return None
    used: set[int] = set()
    count = 0
    for part in texts.parts():
        texts_of_part = part.texts[: _MOST_WORD_TEXTS - count]
        for begin in range(0, len(texts_of_part), _ENCODED_TEXTS):
            (ids,) = predictor.preparer.prepare_texts(texts_of_part[begin : begin + _ENCODED_TEXTS]).values()
            used.update(np.unique(ids).tolist())
        count += len(texts_of_part)
    return WordUse(vocabulary, len(used), count)


def _product_speeds(model: ModelFacts, host: HostFacts) -> Iterator[ProductSpeed]:
    for product in model.products[:_PRODUCTS]:
        for rows in _PRODUCT_ROWS:
            yield measure_product(product, rows, threads=THREADS, with_bf16=host.multiplies_bf16)


def _try_all(
    bench: Bench, wanted: list[Candidate], materials: Materials, clock: Clock
) -> tuple[list[Trial], list[Exclusion]]:
    trials: list[Trial] = []
    failed: list[Exclusion] = []
    end = clock() + TRIAL_SECONDS
    for index, candidate in enumerate(wanted):
        name = " + ".join(recipe_text(candidate.recipe))
        if clock() > end:
            failed.append(Exclusion(name, "not tried: the minute for trials was over"))
            continue
        materials.progress((index + 1) / (len(wanted) + 1), name)
        scratch = materials.scratch / str(index)
        try:
            trials.append(bench.try_candidate(candidate, scratch / "packages", replace(materials, scratch=scratch)))
        except Failure as failure:
            failed.append(Exclusion(name, failure.message))
        # Libraries fail in ways of their own on graphs from anywhere; the other trials are worth their advice.
        except Exception as error:
            logger.exception("trial failed", extra={"recipe": name})
            failed.append(Exclusion(name, f"its trial failed: {first_line(error)}"))
        else:
            materials.log(_line(name, trials[-1], bench.source_bytes))
    return trials, failed


def _line(name: str, trial: Trial, source_bytes: int) -> str:
    answers = "not trained" if trial.answers is None else f"{trial.answers.agreement:.2%} same answers"
    return (
        f"{name}: {source_bytes / trial.servable_bytes:.1f} times smaller, one row {trial.latency_gain:.1f} times "
        f"faster, {trial.throughput_gain:.1f} times as many rows a second, {answers}"
    )
