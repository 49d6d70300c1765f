"""`python -m maas_compression.searching.trial JOB_FOLDER NUMBER PARENT_PID`: one trial, in a process of its own.

Applies a recipe and measures what came of it, the cheapest first: the size of the served file, the quality on a few
rows, the quality on all rows, and at last the speed. What cannot keep to the limits any more ends there. Leaves its
package, and as its last act its outcome.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from maas_compression.materials import open_materials
from maas_compression.measuring.judging import Judge, Judgement, open_rows
from maas_compression.searching.folders import SearchFolders, TrialRequest
from maas_compression.searching.prefixes import Prefixes
from maas_compression.searching.trials import Figures, Outcome, TrialState
from maas_compression.spec import CHOOSING_SPLIT, SOURCE_FOLDER
from maas_compression.techniques import apply_technique
from maas_engine.engine import choose_servable
from maas_engine.measure import compare_speed, measure_memory
from maas_engine.predictor import Predictor, open_predictor
from maas_engine.publish import publish_servables
from maas_jobs.step import die_with
from maas_jobs.transfer import split_path
from maas_package.package import Package, read_package
from maas_runtime.failures import Failure

THREADS = 1
"""Of an engine that is measured."""

MOST_ROWS = 2000
"""Of the split that is searched on. More rows would take the time of further trials."""
FIRST_ROWS = 256
"""By which a hopeless trial is told."""

_ROUNDS, _CALLS_PER_ROUND = 6, 30
_SPEED_SECONDS = 3.0


class _Hopeless(Exception):
    """The trial cannot keep to the limits any more."""

    def __init__(self, figures: Figures, reason: str) -> None:
        super().__init__(reason)
        self.figures = figures
        self.reason = reason


def main() -> None:
    """Do one trial."""
    job_folder, number = Path(sys.argv[1]), int(sys.argv[2])
    die_with(int(sys.argv[3]))
    folders = SearchFolders(job_folder)
    request = folders.read_request(number)
    torch.set_num_threads(request.threads)
    began = time.monotonic()
    try:
        outcome = Outcome(TrialState.MEASURED, _Trial(job_folder, number, request).run())
    except _Hopeless as hopeless:
        outcome = Outcome(TrialState.STOPPED, hopeless.figures, hopeless.reason)
    except Failure as failure:
        outcome = Outcome(TrialState.FAILED, reason=f"{failure.reason}: {failure.message}")
    folders.write_outcome(number, outcome, time.monotonic() - began)


class _Trial:
    """One trial's work, in the order in which it gets dearer."""

    def __init__(self, job_folder: Path, number: int, request: TrialRequest) -> None:
        self._job_folder = job_folder
        self._number = number
        self._request = request
        self._folders = SearchFolders(job_folder)
        self._limits = request.limits
        self._source = read_package(job_folder / SOURCE_FOLDER)
        choosing = split_path(job_folder, CHOOSING_SPLIT) if self._source.manifest.text else None
        self._rows = open_rows(self._source.manifest, choosing)
        self._texts = () if self._rows is None else self._rows.first_texts()

    def run(self) -> Figures:
        """Return everything that was measured. Raises _Hopeless, and what techniques and engines raise."""
        package = self._make_package()
        servable = choose_servable(package)
        figures = Figures(size_bytes=package.servable_bytes(servable), engine=servable.engine)
        self._refuse_broken(figures)
        with _opened(package) as predictor:
            figures = self._judge(predictor, figures)
            if self._limits.max_memory_bytes is not None:
                memory = measure_memory(package, servable, threads=THREADS)
                figures = replace(figures, peak_memory_bytes=memory.peak_bytes)
                self._refuse_broken(figures)
            return self._measure_speed(predictor, figures)

    def _make_package(self) -> Package:
        if not self._request.recipe:
            return self._source
        materials = open_materials(
            self._job_folder,
            self._source.manifest,
            self._folders.prefixes,
            threads=self._request.threads,
            log=_log,
        )
        package = Prefixes(self._folders.prefixes).make(
            self._source, self._request.recipe, self._folders.package(self._number), materials, apply_technique
        )
        if len(package.manifest.servables) > 1 or package.manifest.architecture is not None:
            package = publish_servables(package, self._texts, _log)
        return package

    def _judge(self, predictor: Predictor, figures: Figures) -> Figures:
        """Compare the answers with the source's: on a few rows, and where these leave hope on all."""
        if not self._request.recipe:
            self._rows_judge(FIRST_ROWS).ask_source()  # for the others
            return _with_quality(figures, self._rows_judge(MOST_ROWS).judge(predictor))
        judgement = self._rows_judge(FIRST_ROWS).judge(predictor)
        limit = self._limits.max_quality_loss
        if limit is not None and -judgement.difference.high > limit:
            # Also the end of the interval that is kindest to it is too much.
            raise _Hopeless(
                _with_quality(figures, judgement),
                f"loses {judgement.loss * 100:.1f} points on the first {judgement.rows} rows",
            )
        figures = _with_quality(figures, self._rows_judge(MOST_ROWS).judge(predictor))
        self._refuse_broken(figures)
        return figures

    def _rows_judge(self, most_rows: int) -> Judge:
        source, folder = self._source, self._folders.answers
        return Judge(source, choose_servable(source), self._rows, folder, most_rows=most_rows, threads=THREADS)

    def _measure_speed(self, predictor: Predictor, figures: Figures) -> Figures:
        """Measure in turn with the source, one trial at a time.

        The source was measured alone; a trial is not, so its time is the source's divided by the gain over it that
        was seen in the same run.
        """
        with self._folders.speed_turn(), _opened(self._source) as source:
            before, after = compare_speed(
                (source, predictor),
                self._texts,
                rounds=_ROUNDS,
                calls_per_round=_CALLS_PER_ROUND,
                seconds=_SPEED_SECONDS,
            )
        alone = self._request.source
        if alone is None:
            return replace(
                figures,
                p50_seconds=before.p50_seconds,
                p99_seconds=before.p99_seconds,
                rows_per_second=before.rows_per_second,
            )
        assert alone.p50_seconds is not None
        assert alone.p99_seconds is not None
        assert alone.rows_per_second is not None
        return replace(
            figures,
            p50_seconds=alone.p50_seconds * after.p50_seconds / before.p50_seconds,
            p99_seconds=alone.p99_seconds * after.p99_seconds / before.p99_seconds,
            rows_per_second=alone.rows_per_second * after.rows_per_second / before.rows_per_second,
        )

    def _refuse_broken(self, figures: Figures) -> None:
        broken = self._limits.failures(figures.limited)
        if broken and self._request.recipe:
            raise _Hopeless(figures, "; ".join(check.sentence for check in broken))


def _with_quality(figures: Figures, judgement: Judgement) -> Figures:
    return replace(
        figures,
        quality=judgement.after.value,
        quality_loss=judgement.loss,
        rows=judgement.rows,
        metric=judgement.metric,
    )


@contextmanager
def _opened(package: Package) -> Iterator[Predictor]:
    predictor = open_predictor(package, choose_servable(package), THREADS)
    try:
        yield predictor
    finally:
        predictor.close()


def _log(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
