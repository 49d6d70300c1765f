"""`maas models`: what is registered."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maas.cli import record_commands, signing_commands
from maas.cli.options import At, Endpoint, Json, Reason, connected
from maas.cli.output import (
    ago_text,
    bytes_text,
    console,
    last_segment,
    plain,
    say,
    short_version,
    state_text,
    tags_text,
    write_json,
    write_table,
)
from maas.formats import SourceKind, TargetFormat
from maas.names import AliasName, ModelName, VersionName
from maas.references import parse_reference

if TYPE_CHECKING:
    from maas.client import Client
    from maas.registry.v1.model_pb2 import Alias, Model
    from maas.registry.v1.version_pb2 import Version

Reference = Annotated[str, typer.Argument(metavar="MODEL[@VERSION|@ALIAS]", help="The newest version when only MODEL.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Models, their versions and aliases.", no_args_is_help=True)
    group.command("ls")(ls)
    group.command("show")(show)
    group.command("push")(push)
    group.command("import")(import_model)
    group.command("export")(export_model)
    group.command("pull")(pull)
    group.command("alias")(alias)
    group.command("history")(record_commands.history)
    group.command("describe")(record_commands.describe)
    group.command("tag")(record_commands.tag)
    group.command("ready")(record_commands.ready)
    group.command("archive")(record_commands.archive)
    group.command("rm")(record_commands.rm)
    group.command("restore")(record_commands.restore)
    group.command("watch")(record_commands.watch)
    group.command("sign")(signing_commands.sign)
    group.command("verify")(signing_commands.verify)
    group.command("signatures")(signing_commands.signatures)
    app.add_typer(group, name="models")


def ls(
    model: Annotated[str, typer.Argument(help="List this model's versions instead of models.")] = "",
    where: Annotated[
        str,
        typer.Option("--filter", help="Which ones: 'tags.team = nlp', 'state = ready AND metrics.accuracy > 0.8', ..."),
    ] = "",
    order_by: Annotated[str, typer.Option(help="'create_time desc', 'metrics.accuracy desc', ...")] = "",
    deleted: Annotated[bool, typer.Option("--deleted", help="Also what is deleted.")] = False,
    at: At = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """List models, or the versions of one."""
    with connected(endpoint) as client:
        if model:
            versions = list(client.versions(model, where=where, order_by=order_by, show_deleted=deleted, at=at))
            aliases = list(client.aliases(model, at=at))
        else:
            models = list(client.models(where=where, order_by=order_by, show_deleted=deleted, at=at))
    if as_json:
        write_json(versions if model else models)
    elif model:
        write_versions(versions, aliases)
    else:
        _write_models(models)


def _write_models(models: "list[Model]") -> None:
    write_table(
        ("MODEL", ">VERSIONS", "NEWEST", "MADE", "TAGS", "DESCRIPTION"),
        (
            (
                last_segment(one.name),
                one.version_count,
                short_version(one.latest_version),
                "deleted" if one.HasField("delete_time") else ago_text(one.create_time),
                tags_text(one.tags),
                one.description[:60],
            )
            for one in models
        ),
        empty="no models yet; make one with: maas train",
    )


def show(
    reference: Annotated[
        str, typer.Argument(metavar="MODEL[@VERSION|@ALIAS]", help="A model with all its versions, or one version.")
    ],
    at: At = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Show a model's versions, or all of one version: signature, lineage, quality, what compression changed."""
    named = parse_reference(reference)
    with connected(endpoint) as client:
        if isinstance(named, ModelName):
            _show_model(client, named, at, as_json=as_json)
        else:
            _show_version(client, named, at, as_json=as_json)


def push(
    model: Annotated[str, typer.Argument(help="Model; it is made if there is none.")],
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Package folder, with manifest.json.")],
    description: Annotated[str, typer.Option(help="What is new in it.")] = "",
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Store a package folder as the next version of a model."""
    from maas.cli.progress import transfer
    from maas.client import package_files

    total = sum(path.stat().st_size for path in package_files(folder))
    with connected(endpoint) as client, transfer("storing", total) as moved:
        version = client.push_package(folder, model, description=description, progress=moved)
    if as_json:
        write_json(version)
    else:
        say(f"stored {short_version(version.name)}")


def import_model(
    path: Annotated[
        Path,
        typer.Argument(
            exists=True, help="ONNX file, Hugging Face folder, TensorFlow SavedModel, OCI image layout, package folder."
        ),
    ],
    model: Annotated[str, typer.Argument(help="Model; it is made if there is none.")],
    kind: Annotated[SourceKind | None, typer.Option(help="What PATH is, where its content does not tell.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="tokenizer.json that turns texts into word ids.")
    ] = None,
    text_feeds: Annotated[str, typer.Option(help="Input that takes the word ids, where there are several.")] = "",
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="How many word ids of a text are kept; 256 where the source says nothing.")
    ] = None,
    labels: Annotated[str, typer.Option(help="Names of the classes, with commas, of a classifier.")] = "",
    description: Annotated[str, typer.Option(help="What is new in it.")] = "",
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Store a model from elsewhere as the next version; it is checked, run and measured on this machine first."""
    from tempfile import TemporaryDirectory

    from maas.cli.formats import run_formats
    from maas.cli.progress import transfer
    from maas.client import package_files

    options = [f"--labels={labels}", f"--text-feeds={text_feeds}"]
    options += [f"--{name}={value}" for name, value in (("kind", kind), ("tokenizer", tokenizer)) if value is not None]
    options += [f"--max-tokens={max_tokens}"] if max_tokens is not None else []
    with TemporaryDirectory(prefix="maas-import-") as scratch:
        folder = Path(scratch, "package")
        made = run_formats("importing", "import", path, f"--out={folder}", *options)
        total = sum(file.stat().st_size for file in package_files(folder))
        with connected(endpoint) as client, transfer("storing", total) as moved:
            version = client.push_package(folder, model, description=description, progress=moved)
    if as_json:
        write_json({"version": version.name, **made})
        return
    for note in made["notes"]:
        say(note)
    say(f"takes {', '.join(made['inputs'])}; gives {', '.join(made['outputs'])}")
    say(f"stored {short_version(version.name)}")


def export_model(
    reference: Reference,
    folder: Annotated[Path, typer.Argument(help="New folder for what is written.")],
    target: Annotated[TargetFormat, typer.Option("--format", help="What is written.")] = TargetFormat.PACKAGE,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Write a version as what others read: package folder, ONNX file, Triton model repository, OCI image layout."""
    from tempfile import TemporaryDirectory

    from maas.cli.formats import run_formats
    from maas.cli.progress import transfer

    if target is TargetFormat.PACKAGE:
        pull(reference, folder, endpoint, as_json)
        return
    with TemporaryDirectory(prefix="maas-export-") as scratch:
        package = Path(scratch, "package")
        with connected(endpoint) as client:
            version = client.version(reference)
            name = VersionName.parse(version.name)
            with transfer("fetching", version.size_bytes) as moved:
                client.pull_package(version.name, package, progress=moved)
        options = (
            f"--format={target}",
            f"--out={folder}",
            f"--model={name.model.model_id}",
            f"--version={name.number}",
        )
        made = run_formats("exporting", "export", package, *options)
    if as_json:
        write_json({"version": version.name, "folder": str(folder), **made})
        return
    for note in made["notes"]:
        say(note)
    say(f"wrote {short_version(version.name)} to {folder}: {', '.join(made['files'])}")


def pull(
    reference: Reference,
    folder: Annotated[Path, typer.Argument(help="New folder for the package.")],
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Write a version's package into a folder."""
    from maas.cli.progress import transfer

    with connected(endpoint) as client:
        total = client.version(reference).size_bytes
        with transfer("fetching", total) as moved:
            version = client.pull_package(reference, folder, progress=moved)
    if as_json:
        write_json({"version": version.name, "folder": str(folder), "size_bytes": version.size_bytes})
    else:
        say(f"wrote {short_version(version.name)} to {folder}")


def alias(
    reference: Reference,
    name: Annotated[str, typer.Argument(help="The alias: production, champion, ...")],
    delete: Annotated[bool, typer.Option("--delete", help="Remove the alias; the version stays.")] = False,
    expect: Annotated[
        str, typer.Option(metavar="VERSION", help="Only if it points there now: MODEL@VERSION, or none for nowhere.")
    ] = "",
    reason: Reason = "",
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Point an alias to a version; it is moved if there is one."""
    with connected(endpoint) as client:
        if delete:
            _delete_alias(client, reference, name, reason, as_json=as_json)
            return
        made = client.set_alias(reference, name, expected=expect, reason=reason)
    if as_json:
        write_json(made)
    else:
        say(f"{name} is {short_version(made.version)}")


def _show_model(client: "Client", name: ModelName, at: datetime | None, *, as_json: bool) -> None:
    model = client.model(str(name), at=at)
    versions, aliases = list(client.versions(model.name, at=at)), list(client.aliases(model.name, at=at))
    if as_json:
        write_json(plain(model) | {"versions": versions, "aliases": aliases})
    else:
        write_versions(versions, aliases)


def _show_version(client: "Client", name: VersionName | AliasName, at: datetime | None, *, as_json: bool) -> None:
    version = client.version(str(name), at=at)
    aliases = [one for one in client.aliases(str(name.model), at=at) if one.version == version.name]
    if as_json:
        write_json(plain(version) | {"aliases": aliases})
        return
    facts = {
        "version": version.name,
        "aliases": ", ".join(_ids(aliases, version.name)),
        "state": "deleted" if version.HasField("delete_time") else version_state_text(version),
        "deployed by": ", ".join(version.held_by),
        "made": ago_text(version.create_time),
        "description": version.description,
        "tags": tags_text(version.tags),
        "by": version.source_job,
        "code": version.code_revision,
        "parent": version.parent_version and short_version(version.parent_version),
        "recipe": ", ".join(version.recipe),
        "data": version.dataset_version,
        "task": version.signature.task,
        "architecture": version.signature.architecture,
        "labels": ", ".join(version.signature.labels),
        "inputs": ", ".join(f"{one.name} {one.datatype} {list(one.shape)}" for one in version.signature.inputs),
        "text input": version.signature.text_input,
        "outputs": ", ".join(f"{one.name} {one.datatype} {list(one.shape)}" for one in version.signature.outputs),
        "size": bytes_text(version.size_bytes),
        "quality": quality_text(version),
    }
    for fact, value in facts.items():
        if value:
            console().print(f"{fact:<13} {value}", markup=False, highlight=False)
    console().print()
    write_table(
        ("SERVABLE", "PRECISION", ">SIZE", "FILE"),
        ((one.engine, one.precision, bytes_text(one.size_bytes), one.path) for one in version.signature.servables),
    )
    if version.HasField("compression_report"):
        from maas.cli.compression_reports import write_report

        console().print()
        write_report(version.compression_report)


def _delete_alias(client: "Client", reference: str, name: str, reason: str, *, as_json: bool) -> None:
    named = parse_reference(reference)
    model = named if isinstance(named, ModelName) else named.model
    client.delete_alias(str(model), name, reason=reason)
    if as_json:
        write_json({"deleted": f"{model}/aliases/{name}"})
    else:
        say(f"{name} is no alias of {model.model_id} any more")


def quality_text(version: "Version") -> str:
    """Return a version's quality with its interval, or nothing."""
    if not version.HasField("evaluation"):
        return ""
    found = version.evaluation
    interval = f"[{found.low:.3f}, {found.high:.3f}]"
    where = f"of {found.split}" if found.split else "that were made up"
    return f"{found.metric} {found.value:.3f} {interval} on {found.row_count} rows {where}"


def version_state_text(version: "Version") -> str:
    """Return a version's state as a word."""
    from maas.registry.v1.version_pb2 import VersionState

    return state_text(VersionState.Name(version.state))


def write_versions(versions: "list[Version]", aliases: "list[Alias]") -> None:
    """Write versions as a table."""
    write_table(
        ("VERSION", "ALIASES", "STATE", "MADE", ">SIZE", "RECIPE", "PARENT", ">QUALITY", "VERDICT"),
        (
            (
                short_version(one.name),
                ", ".join(_ids(aliases, one.name)),
                "deleted" if one.HasField("delete_time") else version_state_text(one),
                ago_text(one.create_time),
                bytes_text(one.size_bytes),
                ", ".join(one.recipe),
                short_version(one.parent_version),
                f"{one.evaluation.value:.3f}" if one.HasField("evaluation") else "",
                one.compression_report.verdict.partition(";")[0],
            )
            for one in versions
        ),
        empty="no versions yet; make one with: maas train",
    )


def _ids(aliases: "list[Alias]", version: str) -> list[str]:
    return [last_segment(alias.name) for alias in aliases if alias.version == version]
