"""Advice as a message, in words."""

from collections.abc import Iterator, Sequence

from maas.compression.v1 import advice_pb2 as messages
from maas_compression.advice.advise import Findings
from maas_compression.advice.model_facts import CONVOLUTIONS, EMBEDDINGS, MATRICES, OTHER, RECURRENT
from maas_compression.advice.product_speed import ProductSpeed
from maas_compression.advice.ranking import Recommendation
from maas_compression.advice.trials import Answers
from maas_compression.recipe import technique_to_proto
from maas_compression.spec import recipe_text

_PARTS = {
    EMBEDDINGS: "word vectors and other tables",
    MATRICES: "matrices",
    RECURRENT: "recurrent matrices",
    CONVOLUTIONS: "convolutions",
    OTHER: "the rest",
}


def advice_to_proto(findings: Findings) -> messages.Advice:
    """Return the advice with its sentences."""
    return messages.Advice(
        summary=_summary(findings),
        recipes=[_recipe(one, findings.source_bytes) for one in findings.recommendations],
        excluded=[
            messages.ExcludedTechnique(technique=one.technique, reason=one.reason) for one in findings.exclusions
        ],
        findings=[
            messages.Finding(subject=subject, name=name, value=value) for subject, name, value in _facts(findings)
        ],
        source_bytes=findings.source_bytes,
    )


def _summary(findings: Findings) -> str:
    if not findings.recommendations:
        return "Nothing that was tried makes this version smaller or faster on this host; the list says why."
    best = findings.recommendations[0]
    name = " then ".join(recipe_text(best.trial.candidate.recipe))
    won = (
        f"{findings.source_bytes / best.trial.servable_bytes:.1f} times smaller, one row {best.trial.latency_gain:.1f} "
        f"times faster, {best.trial.throughput_gain:.1f} times as many rows a second"
    )
    if best.unmet:
        hint = "" if findings.situation.allow_training else " Techniques that train may: --allow-training."
        return f"No recipe that was tried keeps to the limits. The nearest is {name}: {'; '.join(best.unmet)}.{hint}"
    return f"Choose {name}: {won}, {_quality_text(best)}."


def _quality_text(best: Recommendation) -> str:
    answers = best.trial.answers
    if answers is None:
        return "if its training keeps the quality, which only training can tell"
    if answers.metric == "cosine":
        return f"vectors with a mean cosine of {answers.agreement:.4f} to the source's"
    change = "" if answers.metric == "agreement" else f", accuracy {0.0 - 100 * answers.loss:+.1f} points"
    return f"{answers.agreement:.1%} of {answers.rows:,} answers the same{change}"


def _recipe(one: Recommendation, source_bytes: int) -> messages.AdvisedRecipe:
    trial = one.trial
    recipe = trial.candidate.recipe
    return messages.AdvisedRecipe(
        techniques=map(technique_to_proto, recipe),
        lines=recipe_text(recipe),
        reason=trial.candidate.reason,
        servable_bytes=trial.servable_bytes,
        size_gain=source_bytes / trial.servable_bytes,
        latency_p50_ms=trial.after.p50_seconds * 1e3,
        latency_gain=trial.latency_gain,
        throughput_rows=trial.after.rows_per_second,
        throughput_gain=trial.throughput_gain,
        quality=None if trial.answers is None else _quality(trial.answers),
        risk=one.risk.value,
        unmet_limits=one.unmet,
        engine=trial.engine,
    )


def _quality(answers: Answers) -> messages.SampledQuality:
    return messages.SampledQuality(
        metric=answers.metric,
        agreement=answers.agreement,
        loss=answers.loss,
        margin=answers.margin,
        row_count=answers.rows,
    )


def _facts(findings: Findings) -> Iterator[tuple[str, str, str]]:
    situation = findings.situation
    model, host = situation.model, situation.host
    yield "model", "served file", f"{findings.source_bytes / 1e6:.2f} MB, {model.parameters:,} weights"
    for kind, part in model.parts.items():
        if part.parameters and (kind != OTHER or model.share(kind) >= 0.01):
            yield "model", _PARTS[kind], f"{model.share(kind):.1%} of the weights, in {part.tensors} tensors"
    spread = model.spread
    if spread is not None:
        yield (
            "model",
            "rounding error of matrices",
            f"{spread.int8_error:.2%} with 8 bits, {spread.int4_error:.1%} with 4",
        )
        yield "model", "inputs with outlying weights", f"{spread.outlier_channels:.1%} of the matrices' inputs"
        yield (
            "model",
            "weights beyond ±sqrt(6 / fan_in)",
            f"{spread.beyond_fan_in:.1%}; the largest is {spread.largest:.3g}",
        )
        yield "model", "weights that hold 95 % of the energy", f"{spread.low_rank_weights:.0%}, as thin matrices"
    if situation.words is not None:
        words = situation.words
        yield "data", "words in use", f"{words.used:,} of {words.vocabulary:,}, in {words.texts:,} texts"
    yield "host", "processor", f"{host.hardware}; {', '.join(host.extensions) or 'no vector extensions that are known'}"
    yield from _speeds(findings.speeds)


def _speeds(speeds: Sequence[ProductSpeed]) -> Iterator[tuple[str, str, str]]:
    for speed in speeds:
        product = speed.product
        bf16 = "" if speed.bf16_gain is None else f", bfloat16 {speed.bf16_gain:.1f} times"
        yield (
            "host",
            f"[{speed.rows}, {product.inputs}] x [{product.inputs}, {product.outputs}]",
            f"{speed.float_seconds * 1e6:,.0f} us; as 8-bit integers {speed.int8_gain:.1f} times as fast{bf16}",
        )
