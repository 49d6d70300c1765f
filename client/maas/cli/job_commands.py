"""`maas train` and `jobs`: work that takes a while."""

from typing import Annotated

import typer

from maas.cli.job_output import NoWait, Plot, follow
from maas.cli.options import Endpoint, Json, connected
from maas.cli.output import ago_text, say, short_version, state_text, write_json, write_table


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(train)
    group = typer.Typer(help="Training and compression jobs.", no_args_is_help=True)
    group.command("ls")(ls)
    group.command("watch")(watch)
    group.command("cancel")(cancel)
    app.add_typer(group, name="jobs")


def train(
    dataset: Annotated[str, typer.Option(help="Data to train on: NAME, or NAME@VERSION.")],
    model: Annotated[str, typer.Option(help="Model that gets the version; it is made if there is none.")],
    source: Annotated[
        str,
        typer.Option("--from", metavar="MODEL[@VERSION|@ALIAS]", help="Classifier or encoder to go on from."),
    ] = "",
    architecture: Annotated[str, typer.Option(help="Default: lstm-text-classifier.")] = "",
    epochs: Annotated[int | None, typer.Option(help="Passes over the data. Default: 10; with --from 3.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Largest step size of Adam.")] = None,
    warm_up: Annotated[
        float | None,
        typer.Option(
            help="Share of the steps in which the step size rises; then it falls to 0. Default with --from: 0.1."
        ),
    ] = None,
    dropout: Annotated[float | None, typer.Option(help="Share dropped. Default: 0.5; of a transformer 0.1.")] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="Epochs without a better validation accuracy before it stops. Default: 3."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all random numbers. Default: 0.")] = None,
    no_wait: NoWait = False,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Train a model on a dataset and register the result. Ctrl-C leaves the job running.

    With --from it goes on from a version: a classifier learns more, an encoder learns to tell the data's classes apart.
    """
    with connected(endpoint) as client:
        from maas.training.v1.training_job_pb2 import Hyperparameters

        hyperparameters = Hyperparameters(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            dropout=dropout,
            patience=patience,
            seed=seed,
            warm_up=warm_up,
        )
        job = client.train(model, dataset, architecture=architecture, hyperparameters=hyperparameters, source=source)
        follow(client, job, no_wait=no_wait, as_json=as_json)


def ls(endpoint: Endpoint = None, as_json: Json = False) -> None:
    """List jobs, newest first."""
    with connected(endpoint) as client:
        jobs = sorted(client.jobs(), key=lambda job: job.status.create_time.ToNanoseconds(), reverse=True)
    if as_json:
        write_json(jobs)
        return
    from maas.jobs.v1.job_state_pb2 import JobState

    write_table(
        ("JOB", "STATE", ">DONE", "PHASE", "STARTED", "RESULT", "ERROR"),
        (
            (
                job.name,
                state_text(JobState.Name(job.status.state)),
                f"{job.status.progress:.0%}",
                job.status.phase,
                ago_text(job.status.create_time),
                short_version(job.result_version),
                job.status.error.message[:80],
            )
            for job in jobs
        ),
        empty="no jobs yet; start one with: maas train",
    )


def watch(
    job: Annotated[str, typer.Argument(help="The job's name, or its id alone.")],
    plot: Plot = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Watch a job until it ends; fails when the job does."""
    with connected(endpoint) as client:
        follow(client, client.job(job), no_wait=False, as_json=as_json, plot=plot)


def cancel(
    job: Annotated[str, typer.Argument(help="The job's name, or its id alone.")],
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Ask a job to stop."""
    with connected(endpoint) as client:
        cancelled = client.cancel_job(job)
    if as_json:
        write_json(cancelled)
        return
    from maas.jobs.v1.job_state_pb2 import JobState

    say(f"{cancelled.name} is {state_text(JobState.Name(cancelled.status.state))}")
