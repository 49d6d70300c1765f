"""`maas data`: datasets."""

from pathlib import Path
from typing import Annotated

import typer

from maas.cli.options import Endpoint, Json, connected
from maas.cli.output import ago_text, bytes_text, last_segment, say, write_json, write_table
from maas.errors import InvalidInputError

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
        splits = {file.name: file.path for file in made.files}
        version = client.push_dataset(name, splits, description=_EXAMPLE_DESCRIPTION, progress=moved)
    _show_version(version, as_json=as_json)


def push(
    name: Annotated[str, typer.Argument(help="Dataset; it is made if there is none.")],
    files: Annotated[
        list[str],
        typer.Argument(
            help="SPLIT=FILE for each split (train=a.parquet test=b.parquet), or a folder of SPLIT.parquet."
        ),
    ],
    description: Annotated[str, typer.Option(help="What the data is, where it is from, its licence.")] = "",
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Store Parquet files as the next version of a dataset."""
    from maas.cli.progress import transfer

    splits = _splits(files)
    total = sum(path.stat().st_size for path in splits.values())
    with connected(endpoint) as client, transfer("storing", total) as moved:
        version = client.push_dataset(name, splits, description=description, progress=moved)
    _show_version(version, as_json=as_json)


def ls(endpoint: Endpoint = None, as_json: Json = False) -> None:
    """List datasets."""
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


def example_folder() -> Path:
    """Return where the example data is kept between runs."""
    import os

    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "maas" / "example-data"


def _splits(files: list[str]) -> dict[str, Path]:
    if len(files) == 1 and Path(files[0]).is_dir():
        found = {path.stem: path for path in sorted(Path(files[0]).glob("*.parquet"))}
        if not found:
            raise InvalidInputError(f"{files[0]} holds no .parquet file", reason="DATASET_INVALID")
        return found
    splits = {}
    for text in files:
        split, equals, path = text.partition("=")
        if not equals or not split:
            raise InvalidInputError(f"{text!r}: write SPLIT=FILE, like train=train.parquet", reason="DATASET_INVALID")
        if not Path(path).is_file():
            raise InvalidInputError(f"there is no file {path}", reason="DATASET_INVALID")
        splits[split] = Path(path)
    return splits


def _show_version(version: object, *, as_json: bool) -> None:
    from maas.registry.v1.dataset_pb2 import DatasetVersion

    assert isinstance(version, DatasetVersion)
    if as_json:
        write_json(version)
        return
    say(f"stored {version.name}")
    write_table(
        ("SPLIT", ">ROWS", ">SIZE", "COLUMNS"),
        (
            (split.split_id, split.row_count, bytes_text(split.file.size_bytes), ", ".join(split.columns))
            for split in version.splits
        ),
    )
