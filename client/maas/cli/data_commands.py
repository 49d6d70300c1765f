"""`maas data`: datasets."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maas.cli.options import Endpoint, Json, connected
from maas.cli.output import ago_text, bytes_text, last_segment, say, short_version, write_json, write_table
from maas.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from maas.client import Client
    from maas.registry.v1.dataset_pb2 import ColumnStatistics, DatasetVersion

Reference = Annotated[str, typer.Argument(help="DATASET (its newest version) or DATASET@NUMBER.")]

_CELL_CHARACTERS = 80

_EXAMPLE_DESCRIPTION = (
    "Movie-review sentences rated by people, from vaderSentiment 3.3.2 (MIT): C.J. Hutto and E.E. Gilbert, "
    "ICWSM 2014. Label 1: rating above 0."
)


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Datasets: what models are trained on and judged with.", no_args_is_help=True)
    group.command("example")(example)
    group.command("push")(push)
    group.command("ls")(ls)
    group.command("show")(show)
    group.command("pull")(pull)
    group.command("head")(head)
    group.command("stats")(stats)
    group.command("diff")(diff)
    app.add_typer(group, name="data")


def example(
    name: Annotated[str, typer.Option("--name", help="Dataset to store it as.")] = "reviews",
    folder: Annotated[
        Path | None,
        typer.Option(help="Where the files are kept. Default: the user's cache folder."),
    ] = None,
    no_push: Annotated[bool, typer.Option("--no-push", help="Only write the files.")] = False,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Fetch 10,605 movie-review sentences, check their hash, and store them as a dataset with a fixed split."""
    from maas.cli.progress import transfer, waiting
    from maas.example_data import prepare_example

    with waiting("fetching the example data"):
        made = prepare_example(folder or example_folder())
    if no_push:
        if as_json:
            write_json([{"split": file.name, "path": str(file.path), "rows": file.rows} for file in made.files])
        else:
            write_table(("SPLIT", ">ROWS", "FILE"), ((file.name, file.rows, file.path) for file in made.files))
        return
    total = sum(file.path.stat().st_size for file in made.files)
    with connected(endpoint) as client, transfer("storing", total) as moved:
        newest = _newest(client, name)
        splits = {file.name: file.path for file in made.files}
        version = client.push_dataset(name, splits, description=_EXAMPLE_DESCRIPTION, progress=moved)
    _show_version(version, as_json=as_json, is_new=version.name != newest)


def push(
    name: Annotated[str, typer.Argument(help="Dataset; it is made if there is none.")],
    files: Annotated[
        list[str],
        typer.Argument(
            help="CSV, TSV, JSONL (plain, .gz or .zst) or Parquet: SPLIT=FILE for each split (train=a.csv test=b.csv), "
            "files that together are one table, or a folder of files called by their splits."
        ),
    ],
    text_column: Annotated[str, typer.Option(help="Column to store as `text`.")] = "",
    label_column: Annotated[
        str, typer.Option(help="Column to store as `label`; classes are numbered in the order of their names.")
    ] = "",
    test_share: Annotated[float, typer.Option(help="Share of the rows that become the split `test`.")] = 0.0,
    validation_share: Annotated[
        float, typer.Option(help="Share of the rows that become the split `validation`.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the split: another seed divides the rows anew.")] = 0,
    column: Annotated[
        list[str] | None,
        typer.Option(help="NAME=TYPE (string, int64, double, bool) for a column of a CSV or JSONL; repeat it."),
    ] = None,
    delimiter: Annotated[str, typer.Option(help="Between the fields of a CSV. Default: comma, tab in a .tsv.")] = "",
    description: Annotated[str, typer.Option(help="What the data is, where it is from, its licence.")] = "",
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Store files as the next version of a dataset; what the newest version has is not stored again."""
    from maas.cli.progress import transfer
    from maas.datasets import check_pyarrow

    check_pyarrow()
    from maas.datasets.prepare import PrepareOptions, prepared_splits
    from maas.datasets.splitting import Shares
    from maas.datasets.tables import TableOptions

    sources = _sources(files)
    options = PrepareOptions(
        text_column=text_column,
        label_column=label_column,
        shares=Shares(test=test_share, validation=validation_share, seed=seed),
        table=TableOptions(delimiter=_delimiter(delimiter), types=_types(column or ())),
    )
    read_bytes = sum(path.stat().st_size for paths in sources.values() for path in paths)
    with connected(endpoint) as client, ExitStack() as stack:
        newest = _newest(client, name)
        with transfer("reading", read_bytes) as read:
            splits = stack.enter_context(prepared_splits(sources, options, read))
        stored_bytes = sum(split.path.stat().st_size for split in splits.values())
        with transfer("storing", stored_bytes) as moved:
            version = client.store_dataset(name, splits, description=description, reason=reason, progress=moved)
    _show_version(version, as_json=as_json, is_new=version.name != newest)


def ls(
    name: Annotated[str | None, typer.Argument(help="Dataset whose versions to list. Default: all datasets.")] = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """List datasets, or the versions of one."""
    if name is not None:
        _list_versions(name, endpoint, as_json=as_json)
        return
    with connected(endpoint) as client:
        datasets = list(client.datasets())
    if as_json:
        write_json(datasets)
        return
    write_table(
        ("DATASET", "NEWEST", "MADE", "DESCRIPTION"),
        (
            (
                last_segment(dataset.name),
                last_segment(dataset.latest_version),
                ago_text(dataset.create_time),
                dataset.description[:60],
            )
            for dataset in datasets
        ),
        empty="no datasets yet; store one with: maas data example",
    )


def show(reference: Reference, endpoint: Endpoint = None, as_json: Json = False) -> None:
    """Show a version: its splits, its columns, what it is."""
    with connected(endpoint) as client:
        version = client.dataset_version(reference)
    if as_json:
        write_json(version)
        return
    say(f"{short_version(version.name)}, {bytes_text(version.size_bytes)}, stored {ago_text(version.create_time)}")
    if version.description:
        say(version.description)
    _write_splits(version)
    write_table(
        ("COLUMN", "TYPE", "MAY BE MISSING"),
        ((column.name, column.type, "yes" if column.nullable else "no") for column in version.columns),
    )


def pull(
    reference: Reference,
    folder: Annotated[Path, typer.Argument(help="Folder for SPLIT.parquet; it is made if there is none.")],
    split: Annotated[list[str] | None, typer.Option(help="Only this split; repeat it. Default: all.")] = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Write a version's Parquet files into a folder."""
    from maas.cli.progress import transfer

    with connected(endpoint) as client:
        version = client.dataset_version(reference)
        with transfer("fetching", version.size_bytes) as moved:
            client.pull_dataset(version.name, folder, splits=split or (), progress=moved)
    if as_json:
        write_json(version)
    else:
        say(f"{short_version(version.name)} is in {folder}")


def head(
    reference: Reference,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, max=10_000, help="How many.")] = 10,
    split: Annotated[str, typer.Option(help="Of this split. Default: the first.")] = "",
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Show the first rows of a split; only the part of the file that holds them is fetched."""
    import json

    with connected(endpoint) as client:
        found = client.dataset_rows(reference, split, rows)
    if as_json:
        write_json(json.loads(json.dumps(found, default=str)))
        return
    columns = list(found[0]) if found else []
    write_table(
        [name.upper() for name in columns],
        ([_cell(row[name]) for name in columns] for row in found),
        empty="no rows",
    )


def stats(reference: Reference, endpoint: Endpoint = None, as_json: Json = False) -> None:
    """Show what was counted in each column of each split, and how many rows each label has."""
    with connected(endpoint) as client:
        version = client.dataset_version(reference)
    if as_json:
        write_json(list(version.splits))
        return
    write_table(
        ("SPLIT", "COLUMN", ">MISSING", ">DISTINCT", ">MINIMUM", ">MEAN", ">MAXIMUM", ">DEVIATION"),
        (
            (split.split_id, one.column, one.null_count, _distinct(one), *_range(one))
            for split in version.splits
            for one in split.statistics
        ),
        empty="nothing was counted when it was stored",
    )
    write_table(
        ("SPLIT", "LABEL", ">ROWS", ">SHARE"),
        (
            (split.split_id, count.value, count.row_count, f"{count.row_count / split.row_count:.1%}")
            for split in version.splits
            for one in split.statistics
            if one.column == "label"
            for count in one.values
        ),
        empty="there are no labels",
    )


def diff(
    before: Annotated[str, typer.Argument(help="DATASET@NUMBER")],
    after: Annotated[str, typer.Argument(help="DATASET@NUMBER, or DATASET for its newest version.")],
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Show what is different in two versions: columns, splits, rows, and what was counted."""
    from dataclasses import asdict

    from maas.datasets.difference import differences

    with connected(endpoint) as client:
        found = list(differences(client.dataset_version(before), client.dataset_version(after)))
    if as_json:
        write_json([asdict(one) for one in found])
        return
    write_table(
        ("SPLIT", "COLUMN", "WHAT", ">BEFORE", ">AFTER"),
        ((one.split, one.column, one.what, one.before, one.after) for one in found),
        empty="nothing is different",
    )


def example_folder() -> Path:
    """Return where the example data is kept between runs."""
    import os

    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "maas" / "example-data"


def _list_versions(name: str, endpoint: str | None, *, as_json: bool) -> None:
    with connected(endpoint) as client:
        versions = list(client.dataset_versions(name))
    if as_json:
        write_json(versions)
        return
    write_table(
        ("VERSION", "SPLITS", ">ROWS", ">SIZE", "STORED", "DESCRIPTION"),
        (
            (
                short_version(version.name),
                ", ".join(split.split_id for split in version.splits),
                sum(split.row_count for split in version.splits),
                bytes_text(version.size_bytes),
                ago_text(version.create_time),
                version.description[:60],
            )
            for version in versions
        ),
        empty=f"{name} has no version yet; push one: maas data push {name} FILE",
    )


def _sources(files: list[str]) -> dict[str, list[Path]]:
    """Return the files of each split. What is given without a split is `train`."""
    from maas.datasets.tables import is_table

    if len(files) == 1 and Path(files[0]).is_dir():
        found = {path.name.partition(".")[0]: [path] for path in sorted(Path(files[0]).iterdir()) if is_table(path)}
        if not found:
            raise InvalidInputError(
                f"{files[0]} holds no file of a split, like train.csv or train.parquet", reason="DATASET_INVALID"
            )
        return found
    sources: dict[str, list[Path]] = {}
    for text in files:
        split, equals, path = text.partition("=")
        if not equals or Path(text).is_file():
            split, path = "train", text
        if not Path(path).is_file():
            raise InvalidInputError(f"there is no file {path}", reason="DATASET_INVALID")
        sources.setdefault(split, []).append(Path(path))
    return sources


def _types(columns: Sequence[str]) -> dict[str, str]:
    types = {}
    for text in columns:
        name, equals, kind = text.rpartition("=")
        if not equals or not name:
            raise InvalidInputError(f"{text!r}: write NAME=TYPE, like zip=string", reason="DATASET_INVALID")
        types[name] = kind
    return types


def _delimiter(text: str) -> str:
    delimiter = text.replace("\\t", "\t")
    if len(delimiter) > 1 or delimiter in ("\n", "\r", '"'):
        raise InvalidInputError(
            f"{text!r} cannot stand between fields: name one character, like ';'", reason="DATASET_INVALID"
        )
    return delimiter


def _newest(client: "Client", name: str) -> str:
    try:
        return client.dataset(name).latest_version
    except NotFoundError:
        return ""


def _show_version(version: "DatasetVersion", *, as_json: bool, is_new: bool) -> None:
    if not is_new:
        say(f"nothing is stored: {short_version(version.name)}, the newest version, has the same rows")
    if as_json:
        write_json(version)
        return
    if is_new:
        say(f"stored {version.name}")
    _write_splits(version)


def _write_splits(version: "DatasetVersion") -> None:
    columns = ", ".join(column.name for column in version.columns)
    write_table(
        ("SPLIT", ">ROWS", ">SIZE", "COLUMNS"),
        ((split.split_id, split.row_count, bytes_text(split.file.size_bytes), columns) for split in version.splits),
    )


def _distinct(one: "ColumnStatistics") -> str:
    return f"~{one.distinct_count}" if one.distinct_estimated else str(one.distinct_count)


def _range(one: "ColumnStatistics") -> tuple[str, str, str, str]:
    if one.HasField("numbers"):
        numbers = one.numbers
        values = (numbers.minimum, numbers.mean, numbers.maximum, numbers.standard_deviation)
        return (f"{values[0]:.6g}", f"{values[1]:.6g}", f"{values[2]:.6g}", f"{values[3]:.6g}")
    if one.HasField("texts"):
        texts = one.texts
        return (f"{texts.minimum_length} chars", f"{texts.mean_length:.1f} chars", f"{texts.maximum_length} chars", "")
    return ("", "", "", "")


def _cell(value: object) -> str:
    text = "" if value is None else str(value).replace("\n", " ")
    return text if len(text) <= _CELL_CHARACTERS else text[: _CELL_CHARACTERS - 3] + "..."
