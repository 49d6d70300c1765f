"""A job that is followed to its end, and what it came to."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maas.cli.output import last_segment, say, short_version, write_json
from maas.errors import InvalidInputError

if TYPE_CHECKING:
    from maas.client import Client, Job
    from maas.compression.v1.compression_job_pb2 import CompressionJob

Plot = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Of --auto and --sensitivity: write a plot there, as PNG.")
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return once the job is stored.")]


def follow(client: "Client", job: "Job", *, no_wait: bool, as_json: bool, plot: Path | None = None) -> None:
    """Show the job until it ends, and its result; write its plot. Raises JobFailed, PlotLibraryMissing."""
    from maas.cli.progress import follow_job
    from maas.client import raise_unless_succeeded

    if no_wait:
        if as_json:
            write_json(job)
        else:
            say(f"started {job.name}; watch it: maas jobs watch {last_segment(job.name)}")
        return
    say(f"{job.name}")
    last = follow_job(client, job)
    if as_json:
        write_json(last)
    raise_unless_succeeded(last)
    if not as_json:
        _show_result(last)
    if plot is not None:
        _write_plot(last, plot)


def _show_result(job: "Job") -> None:
    from maas.training.v1.training_job_pb2 import TrainingJob

    if isinstance(job, TrainingJob):
        found = job.evaluation
        say(
            f"made {short_version(job.result_version)}: {found.metric} {found.value:.3f} "
            f"[{found.low:.3f}, {found.high:.3f}] on {found.row_count} rows of {found.split}"
        )
        return
    _show_compression(job)


def _write_plot(job: "Job", path: Path) -> None:
    from maas.cli.search_output import plot_search
    from maas.cli.sensitivity_output import plot_sensitivity
    from maas.compression.v1.compression_job_pb2 import CompressionJob

    if isinstance(job, CompressionJob) and job.WhichOneof("work") == "search":
        plot_search(job.search_report, path)
    elif isinstance(job, CompressionJob) and job.WhichOneof("work") == "sensitivity":
        plot_sensitivity(job.sensitivity_report, path)
    else:
        raise InvalidInputError(
            f"{job.name} neither searched nor measured layers, so there is nothing to plot", reason="NOTHING_TO_PLOT"
        )
    say(f"wrote {path}")


def _show_compression(job: "CompressionJob") -> None:
    from maas.cli.advice_output import write_advice
    from maas.cli.compression_reports import write_report
    from maas.cli.search_output import write_search
    from maas.cli.sensitivity_output import write_sensitivity

    match job.WhichOneof("work"):
        case "advice":
            write_advice(job)
        case "sensitivity":
            write_sensitivity(job)
        case "search":
            write_search(job.search_report)
            if job.result_version:
                say(f"made {short_version(job.result_version)} from {short_version(job.source_version)}")
                write_report(job.report)
        case _:
            say(f"made {short_version(job.result_version)} from {short_version(job.source_version)}")
            write_report(job.report)
