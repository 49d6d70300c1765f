"""The step `compress`: the recipe, applied to the source, and the report on what it changed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf.json_format import MessageToDict

from maas.names import DatasetVersionName
from maas.registry.v1 import version_pb2
from maas_compression.advice.advise import advise
from maas_compression.advice.message import advice_to_proto
from maas_compression.limits import Figures, LimitsNotMet, NoGain, check_gate
from maas_compression.materials import Materials
from maas_compression.measuring.comparison import THREADS, Contender, compare
from maas_compression.measuring.report import Findings, judge_findings
from maas_compression.measuring.weights import count_weights
from maas_compression.recipe import Recipe, RecipeInvalid, technique_name, technique_text
from maas_compression.searching.messages import found_to_proto, verdict
from maas_compression.searching.search import Judgement, Place, Search, search_limits
from maas_compression.searching.trials import Record
from maas_compression.spec import (
    CHOOSING_SPLIT,
    JUDGING_SPLIT,
    LEARNING_SPLIT,
    RESULT_FOLDER,
    SOURCE_FOLDER,
    AdviceWork,
    CompressionSpec,
    RecipeWork,
    SearchWork,
    recipe_text,
)
from maas_compression.techniques import apply_technique
from maas_engine.engine import choose_servable
from maas_engine.predictor import Predictor, open_predictor
from maas_engine.publish import publish_servables
from maas_engine.quality import agreement, evaluate
from maas_jobs.job import JsonObject
from maas_jobs.labelled_rows import LabelledSplit, check_labels, open_labelled_split
from maas_jobs.step import Reporter, StepRequest, run_step
from maas_jobs.transfer import split_path
from maas_package.manifest import Measurement
from maas_package.package import Package, read_package

# Where the parts of this step begin, as shares of it.
_MEASURE, _JUDGE = 0.4, 0.8
_OWN_BYTES = 512 * 2**20
"""Of the memory that a step may have, for this process beside the trials of a search."""
_LEAST_TRIALS_BYTES = 256 * 2**20


def compress(request: StepRequest, report: Reporter) -> JsonObject:
    """Do the job's work; the result has the recipe and the report of what is to be registered, if anything is."""
    spec = CompressionSpec.from_json(request.spec)
    match spec.work:
        case RecipeWork(recipe):
            return _compress_by_recipe(spec, recipe, request, report)
        case AdviceWork(allow_training):
            return _advise(spec, allow_training, request, report)
        case SearchWork() as work:
            return _search(spec, work, request, report)
    raise RecipeInvalid(f"{type(spec.work).__name__} is not built yet")


def _compress_by_recipe(spec: CompressionSpec, recipe: Recipe, request: StepRequest, report: Reporter) -> JsonObject:
    """Apply the recipe, and judge what came of it."""
    source = read_package(request.folder / SOURCE_FOLDER)
    rows = _judging_rows(source, request.folder)
    result = apply_recipe(source, recipe, request.folder / RESULT_FOLDER, request.folder, report)
    message = _judge(spec, source, result, rows, report)
    return {
        **request.previous,
        "recipe": recipe_text(recipe),
        "report": MessageToDict(message, preserving_proto_field_name=True),
    }


def _search(spec: CompressionSpec, work: SearchWork, request: StepRequest, report: Reporter) -> JsonObject:
    """Look for the best recipe; there is a version of the answer only when it keeps to all limits."""
    source = read_package(request.folder / SOURCE_FOLDER)
    rows = _judging_rows(source, request.folder)
    limits = search_limits(spec.limits)
    reports: dict[int, version_pb2.CompressionReport] = {}

    def judge(record: Record, folder: Path) -> Judgement:
        target = request.folder / RESULT_FOLDER
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
        found = _judge(spec, source, read_package(target), rows, report)
        reports[record.number] = found
        figures = _figures(found)
        try:
            check_gate(
                limits,
                figures,
                name=request.job_name,
                smaller=found.smaller,
                faster=found.faster,
                allow_no_gain=spec.allow_no_gain,
            )
        except (LimitsNotMet, NoGain) as refusal:
            return Judgement(limits.failures(figures), refusal.message)
        return Judgement((), "")

    cores = len(os.sched_getaffinity(0))
    place = Place(request.folder, max(_LEAST_TRIALS_BYTES, request.memory_bytes - _OWN_BYTES), cores)
    found = Search(work, limits, source.manifest, place, report.log, report.progress).run(judge)
    result = {
        **request.previous,
        "search": MessageToDict(found_to_proto(found, limits), preserving_proto_field_name=True),
    }
    answer = found.answer
    report.log(verdict(answer, found.records))
    if answer.record is None or not answer.meets_limits:
        return result
    message = reports[answer.record.number]
    return {
        **result,
        "recipe": list(answer.record.recipe),
        "report": MessageToDict(message, preserving_proto_field_name=True),
    }


def _judging_rows(source: Package, job_folder: Path) -> LabelledSplit:
    rows = open_labelled_split(split_path(job_folder, JUDGING_SPLIT))
    if source.manifest.labels:
        check_labels(rows, len(source.manifest.labels))
    return rows


def _judge(
    spec: CompressionSpec, source: Package, result: Package, rows: LabelledSplit, report: Reporter
) -> version_pb2.CompressionReport:
    """Measure source and result in turn, judge both on the same rows."""
    assert spec.dataset_version is not None
    # So that whoever serves the result knows how fast it is, on which engine.
    result = publish_servables(result, rows.first_texts(), report.log)
    with _contender(source) as before, _contender(result) as after:
        report.progress(_MEASURE, "measure")
        comparison = compare(before, after, rows.first_texts())
        report.progress(_JUDGE, "judge")
        findings = Findings(
            before=_measurement(before, comparison.before),
            after=_measurement(after, comparison.after),
            latency_gain=comparison.latency_gain,
            throughput_gain=comparison.throughput_gain,
            quality_before=_evaluation(before.predictor, rows, spec.dataset_version),
            quality_after=_evaluation(after.predictor, rows, spec.dataset_version),
            agreement=agreement(before.predictor, after.predictor, (part.texts for part in rows.parts())),
        )
    message = judge_findings(findings)
    report.log(message.verdict)
    report.metrics(
        {
            "servable_bytes": message.after.servable_bytes,
            "latency_p50_ms": message.after.latency_p50_ms,
            "throughput_rows": message.after.throughput_rows,
            "test_accuracy": message.quality_after.value,
            "agreement": message.agreement,
        }
    )
    return message


def _advise(spec: CompressionSpec, allow_training: bool, request: StepRequest, report: Reporter) -> JsonObject:
    """Say which recipes suit the source; the result is a message and no version."""
    scratch = request.folder / "advice"
    shutil.rmtree(scratch, ignore_errors=True)
    materials = Materials(
        scratch,
        train=_split(request.folder, LEARNING_SPLIT),
        validation=_split(request.folder, CHOOSING_SPLIT),
        threads=len(os.sched_getaffinity(0)),
        log=report.log,
        progress=report.progress,
    )
    source = read_package(request.folder / SOURCE_FOLDER)
    findings = advise(source, spec.limits, materials, allow_training=allow_training)
    message = advice_to_proto(findings)
    report.log(message.summary)
    return {**request.previous, "advised": MessageToDict(message, preserving_proto_field_name=True)}


def apply_recipe(source: Package, recipe: Recipe, target: Path, job_folder: Path, report: Reporter) -> Package:
    """Return the package in `target`; the ones between are removed.

    What a technique keeps for a run that goes on after a kill lies in the job's folder, under `scratch/`.
    """
    between = job_folder / "between"
    for left_by_a_killed_run in (target, between):
        shutil.rmtree(left_by_a_killed_run, ignore_errors=True)
    package = source
    for index, technique in enumerate(recipe):
        name = technique_name(technique)
        begin, end = (_MEASURE * step / len(recipe) for step in (index, index + 1))

        def advance(share: float, phase: str, *, begin: float = begin, end: float = end, name: str = name) -> None:
            report.progress(begin + (end - begin) * share, f"{name}: {phase}" if phase else name)

        advance(0.0, "")
        scratch = job_folder / "scratch" / f"{index}-{name}"
        scratch.mkdir(parents=True, exist_ok=True)
        materials = Materials(
            scratch,
            train=_split(job_folder, LEARNING_SPLIT),
            validation=_split(job_folder, CHOOSING_SPLIT),
            threads=len(os.sched_getaffinity(0)),
            log=report.log,
            progress=advance,
        )
        is_last = index == len(recipe) - 1
        package = apply_technique(package, technique, target if is_last else between / str(index), materials)
        size_bytes = package.servable_bytes(choose_servable(package))
        report.log(f"{technique_text(technique)}: {size_bytes:,} bytes to serve")
    shutil.rmtree(between, ignore_errors=True)
    return package


def _split(job_folder: Path, name: str) -> LabelledSplit | None:
    path = split_path(job_folder, name)
    return open_labelled_split(path) if path.is_file() else None


def _figures(message: version_pb2.CompressionReport) -> Figures:
    after = message.after
    return Figures(
        size_bytes=after.servable_bytes,
        p50_seconds=after.latency_p50_ms / 1000,
        p99_seconds=after.latency_p99_ms / 1000,
        rows_per_second=after.throughput_rows,
        memory_bytes=after.peak_memory_bytes,
        quality_loss=message.quality_before.value - message.quality_after.value,
    )


@contextmanager
def _contender(package: Package) -> Iterator[Contender]:
    servable = choose_servable(package)
    predictor = open_predictor(package, servable, THREADS)
    try:
        yield Contender(package, servable, predictor)
    finally:
        predictor.close()


def _evaluation(
    predictor: Predictor, rows: LabelledSplit, dataset_version: DatasetVersionName
) -> version_pb2.Evaluation:
    quality = evaluate(predictor, ((part.texts, part.labels) for part in rows.parts()))
    return version_pb2.Evaluation(
        metric=quality.metric,
        value=quality.value,
        low=quality.low,
        high=quality.high,
        row_count=quality.rows,
        dataset_version=str(dataset_version),
        split=JUDGING_SPLIT,
    )


def _measurement(contender: Contender, speed: Measurement) -> version_pb2.Measurement:
    package, servable = contender.package, contender.servable
    weights = count_weights(package, servable)
    threads = "1 thread" if speed.threads == 1 else f"{speed.threads} threads"
    return version_pb2.Measurement(
        servable_bytes=package.servable_bytes(servable),
        package_bytes=package.total_bytes,
        parameter_count=weights.parameters,
        nonzero_share=weights.non_zero_share,
        latency_p50_ms=speed.p50_seconds * 1000,
        latency_p99_ms=speed.p99_seconds * 1000,
        throughput_rows=speed.rows_per_second,
        peak_memory_bytes=speed.peak_memory_bytes,
        engine=servable.engine,
        hardware=f"{speed.hardware}, {threads}",
    )


if __name__ == "__main__":
    run_step(compress)
