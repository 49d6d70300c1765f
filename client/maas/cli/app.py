"""The commands together."""

from importlib.metadata import version as distribution_version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from maas.cli import (
    cluster_commands,
    compress_commands,
    data_commands,
    deployment_commands,
    job_commands,
    model_commands,
    registry_commands,
    signing_commands,
)
from maas.cli.errors import EXIT_INTERRUPTED, exit_status, show_error
from maas.errors import MaasError

_VERBOSE = "--verbose"


class Commands(TyperGroup):
    """All commands. Whatever fails in one is one sentence and an exit status."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take --verbose wherever it stands: people add it to the end of the line that failed."""
        if _VERBOSE in args:
            args = [_VERBOSE, *(argument for argument in args if argument != _VERBOSE)]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except MaasError as error:
            show_error(error, verbose=bool(ctx.params.get("verbose")))
            raise typer.Exit(exit_status(error)) from error
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from interrupt


app = typer.Typer(
    cls=Commands,
    help="Train, register, compress, deploy and call models on a cluster of your own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit status: 0 done, 1 failed, 2 wrong usage, 69 no cluster answers, 78 a cluster cannot start.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"maas {distribution_version('maas')}")
        raise typer.Exit


@app.callback()
def root(
    verbose: Annotated[
        bool, typer.Option(_VERBOSE, envvar="MAAS_VERBOSE", help="With an error, also its reason and request id.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Take what stands before a command."""


cluster_commands.add_to(app)
data_commands.add_to(app)
model_commands.add_to(app)
signing_commands.add_to(app)
job_commands.add_to(app)
compress_commands.add_to(app)
deployment_commands.add_to(app)
registry_commands.add_to(app)
