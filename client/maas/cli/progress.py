"""Bars for work that takes a while. Where nobody looks at a terminal there are none."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from maas.cli.output import notes, say, state_text

if TYPE_CHECKING:
    from maas.client import Client, Job


@contextmanager
def transfer(what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Give a function that is told of the bytes that moved."""
    console = notes()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=total_bytes)
        yield lambda count: progress.advance(task, count)


@contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """Show that something goes on whose length nobody knows; give a function to say what."""
    console = notes()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda text: progress.update(task, description=text)


@contextmanager
def amount(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that is told of what is done, how much of it, and how much there is."""
    console = notes()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda text, done, total: progress.update(task, description=text, completed=done, total=total)


def follow_job(client: "Client", job: "Job") -> "Job":
    """Show a job's phases, metrics and log lines until it ends, and return its last state.

    Ctrl-C raises KeyboardInterrupt, after saying that the job goes on.
    """
    from maas.jobs.v1.job_state_pb2 import JobState

    console = notes()
    columns = (
        TextColumn("{task.fields[phase]:<12}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[metrics]}", style="cyan"),
    )
    seen_line = 0
    last = job
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task(job.name, total=1.0, phase="queued", metrics="")
            for last in client.watch_job(job.name):
                status = last.status
                for line in status.log_lines:
                    if line.number > seen_line and console.is_terminal:
                        progress.console.print(line.text, style="dim", markup=False, highlight=False)
                    seen_line = max(seen_line, line.number)
                progress.update(
                    task,
                    completed=status.progress,
                    phase=status.phase or state_text(JobState.Name(status.state)),
                    metrics="  ".join(f"{metric.name} {metric.value:.4g}" for metric in status.metrics[:4]),
                )
    except KeyboardInterrupt:
        say(f"{job.name} goes on. Watch it: maas jobs watch {job.name}   Stop it: maas jobs cancel {job.name}")
        raise
    return last
