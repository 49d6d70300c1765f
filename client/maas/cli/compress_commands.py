"""`maas compress`, `advise` and `techniques`: smaller and faster versions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maas.cli.job_output import NoWait, Plot, follow
from maas.cli.options import Endpoint, Json, connected
from maas.cli.output import console, short_version, write_json, write_table
from maas.errors import InvalidInputError, NotAllowedNowError

if TYPE_CHECKING:
    from maas.client import Client
    from maas.compression.v1.technique_pb2 import Technique
    from maas.compressions import Work

Reference = Annotated[str, typer.Argument(metavar="MODEL[@VERSION|@ALIAS]", help="The newest version when only MODEL.")]
Dataset = Annotated[
    str, typer.Option(help="Data to learn from and to judge with. Default: what the version was trained on.")
]
AllowTraining = Annotated[bool, typer.Option("--allow-training", help="Also techniques that train.")]
MaxSize = Annotated[str | None, typer.Option(metavar="SIZE", help="Of the served file: 6MB, 500kB.")]
MaxP50 = Annotated[str | None, typer.Option(metavar="TIME", help="Median time of one row alone: 2ms.")]
MaxP99 = Annotated[str | None, typer.Option(metavar="TIME", help="99th percentile of it: 5ms.")]
MinThroughput = Annotated[str | None, typer.Option(metavar="ROWS", help="Rows a second in batches of 32: 500.")]
MaxMemory = Annotated[str | None, typer.Option(metavar="SIZE", help="Peak memory of a process that serves it: 200MB.")]
MaxAccuracyLoss = Annotated[
    str | None, typer.Option(metavar="SHARE", help="How far the quality may fall: 0.01 or 1% is one point.")
]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(compress)
    app.command()(advise)
    app.command()(techniques)


def compress(
    reference: Reference,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            metavar="TECHNIQUE",
            help="`int8`, `prune(share=0.25)`; repeat it for a recipe, in this order. `maas techniques` lists them.",
        ),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", "-r", metavar="FILE", help="A recipe in YAML: a list of techniques.")
    ] = None,
    like: Annotated[
        str, typer.Option(metavar="MODEL@VERSION", help="The recipe that this version was made with.")
    ] = "",
    auto: Annotated[bool, typer.Option("--auto", help="Look for the recipe that meets the limits best.")] = False,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Only measure what each layer loses with few bits; make nothing.")
    ] = False,
    max_size: MaxSize = None,
    max_p50: MaxP50 = None,
    max_p99: MaxP99 = None,
    min_throughput: MinThroughput = None,
    max_memory: MaxMemory = None,
    max_accuracy_loss: MaxAccuracyLoss = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help="Of --auto: fastest, smallest or best_quality, among what meets the limits. Default: fastest."
        ),
    ] = None,
    time_budget: Annotated[str | None, typer.Option(metavar="TIME", help="Of --auto. Default: 15m.")] = None,
    allow_training: AllowTraining = False,
    trials: Annotated[int | None, typer.Option(help="Of --auto: at most so many. Default: 100.")] = None,
    workers: Annotated[int | None, typer.Option(help="Of --auto: trials at a time. Default: one a core.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of --auto: of all random numbers. Default: 0.")] = None,
    bits: Annotated[int | None, typer.Option(help="Of --sensitivity: bits of a weight, 2 to 8. Default: 8.")] = None,
    dataset: Dataset = "",
    unlabelled: Annotated[str, typer.Option(help="More texts, without labels, for techniques that learn.")] = "",
    allow_no_gain: Annotated[
        bool, typer.Option("--allow-no-gain", help="Register the result even if it is neither smaller nor faster.")
    ] = False,
    plot: Plot = None,
    no_wait: NoWait = False,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Make a smaller or faster child of a version, with a measured report.

    Say how with one of --method, --recipe, --like and --auto. A result that breaks a limit, or is neither smaller nor
    faster, is not registered. Ctrl-C leaves the job running.
    """
    _check_options(
        {"--method": method, "--recipe": recipe, "--like": like, "--auto": auto, "--sensitivity": sensitivity},
        {
            ("--auto",): {
                "--objective": objective,
                "--time-budget": time_budget,
                "--allow-training": allow_training,
                "--trials": trials,
                "--workers": workers,
                "--seed": seed,
            },
            ("--sensitivity",): {"--bits": bits},
            ("--auto", "--sensitivity"): {"--plot": plot},
        },
    )
    with connected(endpoint) as client:
        from maas import compressions

        limits = compressions.limits(
            max_size=max_size,
            max_p50=max_p50,
            max_p99=max_p99,
            min_throughput=min_throughput,
            max_memory=max_memory,
            max_accuracy_loss=max_accuracy_loss,
        )
        work: Work
        if auto:
            work = compressions.search(
                objective=objective,
                time_budget=time_budget,
                allow_training=allow_training,
                most_trials=trials,
                workers=workers,
                seed=seed or 0,
            )
        elif sensitivity:
            work = compressions.sensitivity(bits=bits)
        else:
            work = _recipe(client, method or [], recipe, like)
        job = client.compress(
            reference, work, dataset=dataset, unlabelled=unlabelled, limits=limits, allow_no_gain=allow_no_gain
        )
        follow(client, job, no_wait=no_wait, as_json=as_json, plot=plot)


def advise(
    reference: Reference,
    max_size: MaxSize = None,
    max_p50: MaxP50 = None,
    max_p99: MaxP99 = None,
    min_throughput: MinThroughput = None,
    max_accuracy_loss: MaxAccuracyLoss = None,
    allow_training: AllowTraining = False,
    dataset: Dataset = "",
    no_wait: NoWait = False,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Say which recipes suit a version on the host that compresses, after a minute of trials. Changes nothing."""
    with connected(endpoint) as client:
        from maas import compressions

        limits = compressions.limits(
            max_size=max_size,
            max_p50=max_p50,
            max_p99=max_p99,
            min_throughput=min_throughput,
            max_accuracy_loss=max_accuracy_loss,
        )
        job = client.compress(
            reference, compressions.advice(allow_training=allow_training), dataset=dataset, limits=limits
        )
        follow(client, job, no_wait=no_wait, as_json=as_json)


def techniques(
    technique: Annotated[str, typer.Argument(metavar="[TECHNIQUE]", help="Show its settings.")] = "",
    as_json: Json = False,
) -> None:
    """List the techniques of compression, or the settings of one."""
    from maas.technique_texts import TechniqueText, technique_texts

    texts = technique_texts()
    chosen = [text for text in texts if technique in ("", text.name)]
    if not chosen:
        raise InvalidInputError(
            f"there is no technique {technique!r}; there are: {', '.join(text.name for text in texts)}",
            reason="RECIPE_UNREADABLE",
        )

    def settings_text(text: TechniqueText) -> str:
        return ", ".join(f"{setting.name}={setting.default}" for setting in text.settings)

    if as_json:
        write_json([text.to_json() for text in chosen])
    elif technique:
        (only,) = chosen
        console().print(only.text, markup=False, highlight=False)
        write_table(
            ("SETTING", "DEFAULT", "WHAT"),
            (
                (one.name, f"{one.default} ({one.meaning})" if one.meaning else one.default, one.text)
                for one in only.settings
            ),
            empty="it has no settings",
        )
    else:
        write_table(
            ("TECHNIQUE", "WHAT", "SETTINGS"), ((text.name, text.summary, settings_text(text)) for text in texts)
        )


def _recipe(client: "Client", methods: list[str], file: Path | None, like: str) -> "list[Technique]":
    """Return the recipe that one of the three gives."""
    from maas.recipes import RecipeUnreadable, load_recipe, parse_technique

    if methods:
        return [parse_technique(line) for line in methods]
    if file is not None:
        try:
            return load_recipe(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"{file} cannot be read: {error}", reason="RECIPE_UNREADABLE") from error
        except RecipeUnreadable as error:
            raise RecipeUnreadable(f"{file}: {error.message}", reason=error.reason) from error
    version = client.version(like)
    if not version.recipe:
        raise NotAllowedNowError(
            f"{short_version(version.name)} was not made by compression, so it has no recipe", reason="RECIPE_MISSING"
        )
    return [parse_technique(line) for line in version.recipe]


def _check_options(ways: dict[str, object], belongings: dict[tuple[str, ...], dict[str, object]]) -> None:
    """Raise BadParameter unless one way is given, and nothing that belongs to another."""
    given = [name for name, value in ways.items() if value]
    if len(given) != 1:
        asked = f"not {' and '.join(given)}" if given else "for example --method int8"
        raise typer.BadParameter(f"say how with one of {', '.join(ways)}; {asked}", param_hint="how")
    for fitting, options in belongings.items():
        for name, value in options.items():
            if value not in (None, False) and given[0] not in fitting:
                raise typer.BadParameter(f"belongs to {' and '.join(fitting)}", param_hint=name)
