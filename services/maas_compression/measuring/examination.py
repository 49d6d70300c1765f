"""A result beside its source: published for the engines that can run it, measured, judged, and let through or not."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from maas.registry.v1 import version_pb2
from maas_compression.limits import check_gate
from maas_compression.measuring.comparison import THREADS, Contender, compare
from maas_compression.measuring.judging import Judge, open_rows
from maas_compression.measuring.report import Findings, report_of
from maas_compression.measuring.weights import count_weights
from maas_compression.spec import JUDGING_SPLIT, CompressionSpec
from maas_engine.engine import choose_servable
from maas_engine.predictor import open_predictor
from maas_engine.publish import publish_servables
from maas_jobs.step import Reporter, StepRequest
from maas_jobs.transfer import split_path
from maas_package.manifest import Measurement
from maas_package.package import Package

ANSWERS_FOLDER = "answers"
"""Where in a job's folder the source's answers are kept."""


class Examiner:
    """Examines results of one job's source on the split that judges.

    The source is asked first, so that one which cannot be compared with is found out before any work.
    """

    def __init__(self, request: StepRequest, spec: CompressionSpec, source: Package) -> None:
        """Raises what the rows raise, RowsDoNotFit, LabelsInvalid or SourceAnswersInvalid."""
        self._begin = time.monotonic()
        self._request = request
        self._spec = spec
        self._source = source
        path = None if spec.dataset_version is None else split_path(request.folder, JUDGING_SPLIT)
        self._rows = open_rows(source.manifest, path)
        self._judge = Judge(source, choose_servable(source), self._rows, request.folder / ANSWERS_FOLDER)
        self._judge.ask_source()

    @property
    def texts(self) -> tuple[str, ...]:
        """Texts to measure with; none where made-up inputs do."""
        return () if self._rows is None else self._rows.first_texts()

    def examine(self, result: Package, report: Reporter, begin: float) -> Findings:
        """Return what the result is beside its source; `begin`: the share of the step that is done.

        Its manifest then says how fast each of its servables is here.
        """
        report.progress(begin, "measure")
        result = publish_servables(result, self.texts, report.log)
        with _contender(self._source) as before, _contender(result) as after:
            comparison = compare(before, after, self.texts)
            report.progress((begin + 1) / 2, "judge")
            findings = Findings(
                before=_measurement(before, comparison.before),
                after=_measurement(after, comparison.after),
                latency_gain=comparison.latency_gain,
                throughput_gain=comparison.throughput_gain,
                judgement=self._judge.judge(after.predictor),
                dataset_version=self._spec.dataset_version,
                split=JUDGING_SPLIT if self._rows is not None else "",
                limits=self._spec.limits,
                work_seconds=time.monotonic() - self._begin,
            )
        message = report_of(findings)
        report.log(message.verdict)
        report.metrics(
            {
                "servable_bytes": message.after.servable_bytes,
                "latency_p50_ms": message.after.latency_p50_ms,
                "throughput_rows": message.after.throughput_rows,
                f"test_{findings.judgement.metric}": message.quality_after.value,
                "agreement": message.agreement,
            }
        )
        return findings

    def check_gate(self, findings: Findings) -> None:
        """Let only what keeps to the job's limits, and is worth having, through. Raises LimitsNotMet or NoGain."""
        check_gate(
            findings.limits,
            findings.figures,
            name=self._request.job_name,
            smaller=findings.smaller,
            faster=findings.faster,
            allow_no_gain=self._spec.allow_no_gain,
        )


@contextmanager
def _contender(package: Package) -> Iterator[Contender]:
    servable = choose_servable(package)
    predictor = open_predictor(package, servable, THREADS)
    try:
        yield Contender(package, servable, predictor)
    finally:
        predictor.close()


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
