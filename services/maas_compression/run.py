"""The step `compress`: the recipe, applied to the source, and the report on what it changed."""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

from google.protobuf.json_format import MessageToDict

from maas.registry.v1 import version_pb2
from maas_compression.advice.advise import advise
from maas_compression.advice.message import advice_to_proto
from maas_compression.limits import LimitsNotMet, NoGain
from maas_compression.materials import open_materials
from maas_compression.measuring.examination import Examiner
from maas_compression.measuring.report import report_of
from maas_compression.measuring.sensitivity import measure_sensitivity
from maas_compression.measuring.sensitivity_report import sensitivity_to_proto, summary
from maas_compression.recipe import Recipe, technique_name, technique_text
from maas_compression.searching.messages import found_to_proto, verdict
from maas_compression.searching.search import Judgement, Place, Search, search_limits
from maas_compression.searching.trials import Record
from maas_compression.spec import (
    RESULT_FOLDER,
    SOURCE_FOLDER,
    AdviceWork,
    CompressionSpec,
    RecipeWork,
    SearchWork,
    SensitivityWork,
    recipe_text,
)
from maas_compression.techniques import apply_technique
from maas_compression.techniques.graphs import GraphUnusable, float_graph
from maas_compression.techniques.int8 import layer_names
from maas_engine.engine import choose_servable
from maas_jobs.job import JsonObject
from maas_jobs.step import Reporter, StepRequest, run_step
from maas_package.package import Package, read_package

_MEASURE = 0.4
"""Where measuring begins, as a share of this step."""
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
        case SensitivityWork(bits):
            return _measure_layers(spec, bits, request, report)


def _compress_by_recipe(spec: CompressionSpec, recipe: Recipe, request: StepRequest, report: Reporter) -> JsonObject:
    """Apply the recipe, measure source and result in turn, judge both on the same rows."""
    source = read_package(request.folder / SOURCE_FOLDER)
    examiner = Examiner(request, spec, source)
    result = apply_recipe(source, recipe, request.folder / RESULT_FOLDER, request.folder, report)
    findings = examiner.examine(result, report, _MEASURE)
    examiner.check_gate(findings)
    message = report_of(findings)
    return {
        **request.previous,
        "recipe": recipe_text(recipe),
        "report": MessageToDict(message, preserving_proto_field_name=True),
    }


def _search(spec: CompressionSpec, work: SearchWork, request: StepRequest, report: Reporter) -> JsonObject:
    """Look for the best recipe; there is a version of the answer only when it keeps to all limits."""
    source = read_package(request.folder / SOURCE_FOLDER)
    limits = search_limits(spec.limits)
    examiner = Examiner(request, replace(spec, limits=limits), source)
    reports: dict[int, version_pb2.CompressionReport] = {}

    def judge(record: Record, folder: Path) -> Judgement:
        target = request.folder / RESULT_FOLDER
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
        findings = examiner.examine(read_package(target), report, _MEASURE)
        reports[record.number] = report_of(findings)
        try:
            examiner.check_gate(findings)
        except (LimitsNotMet, NoGain) as refusal:
            return Judgement(limits.failures(findings.figures), refusal.message)
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


def _advise(spec: CompressionSpec, allow_training: bool, request: StepRequest, report: Reporter) -> JsonObject:
    """Say which recipes suit the source; the result is a message and no version."""
    scratch = request.folder / "advice"
    shutil.rmtree(scratch, ignore_errors=True)
    source = read_package(request.folder / SOURCE_FOLDER)
    materials = open_materials(
        request.folder,
        source.manifest,
        scratch,
        threads=len(os.sched_getaffinity(0)),
        log=report.log,
        progress=report.progress,
    )
    findings = advise(source, spec.limits, materials, allow_training=allow_training)
    message = advice_to_proto(findings)
    report.log(message.summary)
    return {**request.previous, "advised": MessageToDict(message, preserving_proto_field_name=True)}


def _measure_layers(spec: CompressionSpec, bits: int, request: StepRequest, report: Reporter) -> JsonObject:
    """Say what each layer loses; the result is a message and no version."""
    begin = time.monotonic()
    source = read_package(request.folder / SOURCE_FOLDER)
    materials = open_materials(
        request.folder,
        source.manifest,
        request.folder / "sensitivity",
        threads=len(os.sched_getaffinity(0)),
        log=report.log,
        progress=report.progress,
    )
    model = float_graph(source)
    layers = layer_names(model)
    if not layers:
        raise GraphUnusable("the graph has no layers with weights that could be integers")
    found = measure_sensitivity(source, model, layers, materials, bits, spec.limits.max_quality_loss)
    report.log(summary(found))
    message = sensitivity_to_proto(found, time.monotonic() - begin)
    return {**request.previous, "sensitivity": MessageToDict(message, preserving_proto_field_name=True)}


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
        materials = open_materials(
            job_folder,
            source.manifest,
            scratch,
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


if __name__ == "__main__":
    run_step(compress)
