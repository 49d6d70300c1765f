"""What a step says on its standard output."""

import io

import pytest

from maas_jobs.job import MAX_LOG_CHARACTERS, JobError
from maas_jobs.reports import Done, Failed, Log, Metrics, Progress, Report, decode_report, encode_report
from maas_jobs.step import Reporter


@pytest.mark.parametrize(
    "report",
    [
        Progress(0.5, "train"),
        Metrics({"loss": 0.25}),
        Log("one\ntwo"),
        Done({"version": "models/m/versions/1"}),
        Failed(JobError("NOT_FOUND", "MODEL_NOT_FOUND", "no model")),
    ],
)
def test_a_report_is_one_line_and_comes_back_the_same(report: Report) -> None:
    line = encode_report(report)
    assert "\n" not in line
    assert decode_report(line) == report


@pytest.mark.parametrize("line", ["hello", "{", "[]", "3", '{"progress": "half"}', '{"metrics": {"loss": []}}', "null"])
def test_whatever_is_not_a_report_is_a_line_of_the_log(line: str) -> None:
    assert decode_report(line) == Log(line)


def test_log_lines_are_cut() -> None:
    assert decode_report(encode_report(Log("x" * 5000))) == Log("x" * MAX_LOG_CHARACTERS)


def test_progress_is_passed_on_a_few_times_a_second_but_a_new_phase_at_once() -> None:
    now = 0.0
    stream = io.StringIO()
    reporter = Reporter(stream, clock=lambda: now)
    reporter.progress(0.1, "train")
    reporter.progress(0.2, "train")
    reporter.progress(0.3, "export")
    now = 1.0
    reporter.progress(0.4, "export")
    reports = [decode_report(line) for line in stream.getvalue().splitlines()]
    assert reports == [Progress(0.1, "train"), Progress(0.3, "export"), Progress(0.4, "export")]
