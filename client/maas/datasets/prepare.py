"""From files of tables to a Parquet file a split, with what was counted in each."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from maas.datasets.failures import ColumnsInvalid, DataFileInvalid, LabelsInvalid
from maas.datasets.splitting import TEST, TRAIN, VALIDATION, Shares, row_keys
from maas.datasets.statistics import LABEL_VALUES, SplitStatistics
from maas.datasets.tables import TYPES, Block, Progress, TableOptions, read_blocks
from maas.label_names import label_names_metadata
from maas.registry.v1.dataset_pb2 import ColumnStatistics

TEXT, LABEL = "text", "label"

_GROUP_ROWS = 65_536
_GROUP_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class PrepareOptions:
    """What becomes of the tables: which columns are text and label (default: those of that name), and the splits."""

    text_column: str = ""
    label_column: str = ""
    shares: Shares = field(default_factory=Shares)
    table: TableOptions = field(default_factory=TableOptions)

    def __post_init__(self) -> None:
        for name, kind in self.table.types.items():
            if kind not in TYPES:
                raise ColumnsInvalid(f"column {name} cannot be {kind!r}: there are {', '.join(TYPES)}")


@dataclass(frozen=True, slots=True)
class PreparedSplit:
    """A Parquet file and what is in it."""

    path: Path
    row_count: int
    statistics: Sequence[ColumnStatistics]


def prepare_splits(
    sources: Mapping[str, Sequence[Path]], folder: Path, options: PrepareOptions, progress: Progress = lambda _: None
) -> dict[str, PreparedSplit]:
    """Write `<split>.parquet` into the folder for each split of the sources, and return them.

    With shares there is one source, `train`, and its rows go to the splits by the rule of maas.datasets.splitting.
    Files are read twice when there are labels to be numbered; `progress` counts their bytes once. The same files and
    options give the same bytes. Raises DataInvalid.
    """
    if options.shares.splits != (TRAIN,) and list(sources) != [TRAIN]:
        raise ColumnsInvalid("shares divide one table; files that are splits already are not divided")
    wanted = _Table(sources, options, progress)
    labels = wanted.find_labels()
    writers: dict[str, _SplitWriter] = {}
    try:
        for split_id, block in wanted.blocks():
            rows = labels.numbered(block) if labels is not None else block.rows
            _check_texts(block)
            for part_id, part in _parts(split_id, rows, options.shares):
                writer = writers.get(part_id)
                if writer is None:
                    writer = writers[part_id] = _SplitWriter(folder / f"{part_id}.parquet", part.schema)
                writer.add(part)
    finally:
        for writer in writers.values():
            writer.close()
    for split_id in sources if options.shares.splits == (TRAIN,) else options.shares.splits:
        if split_id not in writers:
            raise DataFileInvalid(f"there are no rows for the split {split_id}")
    return {split_id: writers[split_id].prepared for split_id in sorted(writers, key=_usual_order)}


@contextmanager
def prepared_splits(
    sources: Mapping[str, Sequence[Path]], options: PrepareOptions, progress: Progress = lambda _: None
) -> Iterator[dict[str, PreparedSplit]]:
    """Give the splits while the context lasts. Parquet files with nothing to be changed are given as they are.

    Raises DataInvalid.
    """
    if options == PrepareOptions() and all(
        len(paths) == 1 and paths[0].suffix == ".parquet" for paths in sources.values()
    ):
        yield {split_id: count_parquet(path, progress) for split_id, (path,) in sources.items()}
        return
    with TemporaryDirectory(prefix="maas-dataset-") as folder:
        yield prepare_splits(sources, Path(folder), options, progress)


def count_parquet(path: Path, progress: Progress = lambda _: None) -> PreparedSplit:
    """Return what is in a Parquet file that is to be stored as it is. Raises DataFileInvalid."""
    statistics: SplitStatistics | None = None
    for block in read_blocks(path, TableOptions(), progress=progress):
        if statistics is None:
            statistics = SplitStatistics(block.rows.schema)
        statistics.add(block.rows)
    if statistics is None:
        raise DataFileInvalid(f"{path} has no rows")
    return PreparedSplit(path, statistics.row_count, statistics.messages())


@dataclass(frozen=True, slots=True)
class _Labels:
    """The classes of the column `label`, in order."""

    names: Sequence[str]
    numbers: pyarrow.Array | None
    """The values that classes 0, 1, 2... have in the files; None when these are the numbers themselves."""

    def numbered(self, block: Block) -> pyarrow.RecordBatch:
        """Return the rows with classes instead of values."""
        rows = block.rows
        place = rows.schema.get_field_index(LABEL)
        values = rows.column(place)
        missing = pyarrow.compute.index(pyarrow.compute.is_null(values), True).as_py()
        if missing >= 0:
            raise block.invalid(missing, LABEL, "has no label")
        if self.numbers is None:
            return rows
        classes = pyarrow.compute.index_in(values, self.numbers).cast(pyarrow.int64())
        rows = rows.set_column(place, pyarrow.field(LABEL, pyarrow.int64()), classes)
        metadata = {**(rows.schema.metadata or {}), **label_names_metadata(self.names)}
        return rows.replace_schema_metadata(metadata)


class _Table:
    """The rows of all sources, with the names of the columns as they will be stored."""

    def __init__(self, sources: Mapping[str, Sequence[Path]], options: PrepareOptions, progress: Progress) -> None:
        self._sources = sources
        self._options = options
        self._progress = progress
        self._passes = 1
        self._schema: pyarrow.Schema | None = None

    def find_labels(self) -> _Labels | None:
        """Read all rows for their labels; None when there is no such column, or what it holds are no classes."""
        with closing(self._blocks(lambda _: None)) as blocks:
            first = next(blocks, None)
        if first is None or LABEL not in first[1].rows.schema.names:
            return None
        self._passes = 2
        found: pyarrow.Array | None = None
        for _, block in self.blocks():
            values = block.rows.column(LABEL).drop_null()
            found = (values if found is None else pyarrow.concat_arrays([found, values])).unique()
            if len(found) > LABEL_VALUES:
                if self._options.label_column:
                    raise LabelsInvalid(
                        f"column {self._options.label_column} has more than {LABEL_VALUES:,} different values: these "
                        "are no classes"
                    )
                return None
        assert found is not None
        return _classes(found)

    def blocks(self) -> Iterator[tuple[str, Block]]:
        """Yield split and rows."""
        return self._blocks(self._advance)

    def _blocks(self, progress: Progress) -> Generator[tuple[str, Block], None, None]:
        for split_id, paths in self._sources.items():
            for path in paths:
                for block in read_blocks(path, self._options.table, self._schema, progress):
                    self._schema = block.rows.schema
                    yield split_id, self._renamed(block)

    def _advance(self, size_bytes: int) -> None:
        self._progress(size_bytes // self._passes)

    def _renamed(self, block: Block) -> Block:
        names = list(block.rows.schema.names)
        for old, new in ((self._options.text_column, TEXT), (self._options.label_column, LABEL)):
            if not old or old == new:
                continue
            if old not in names:
                raise ColumnsInvalid(f"{block.path} has no column {old}; it has: {', '.join(names)}")
            if new in names:
                raise ColumnsInvalid(f"{block.path} has both a column {old} and a column {new}")
            names[names.index(old)] = new
        schema = pyarrow.schema(
            [one.with_name(name) for one, name in zip(block.rows.schema, names, strict=True)],
            metadata=block.rows.schema.metadata,
        )
        return Block(block.path, pyarrow.record_batch(block.rows.columns, schema=schema), block.places, block.unit)


def _classes(found: pyarrow.Array) -> _Labels | None:
    kind = found.type
    if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_boolean(kind) or pyarrow.types.is_string(kind)):
        return None
    values = sorted(found.to_pylist())
    if pyarrow.types.is_integer(kind) and values == list(range(len(values))):
        return _Labels([str(value) for value in values], None)
    names = [str(value).lower() if isinstance(value, bool) else str(value) for value in values]
    return _Labels(names, pyarrow.array(values, kind))


def _check_texts(block: Block) -> None:
    """Raise RowInvalid for a row without text: nothing could be learned from it."""
    if TEXT not in block.rows.schema.names:
        return
    texts = block.rows.column(TEXT)
    if not pyarrow.types.is_string(texts.type) and not pyarrow.types.is_large_string(texts.type):
        raise ColumnsInvalid(f"{block.path}: the column {TEXT} is {texts.type}; say --column {TEXT}=string")
    empty = pyarrow.compute.equal(pyarrow.compute.utf8_trim_whitespace(texts), "")
    bad = pyarrow.compute.index(pyarrow.compute.fill_null(empty, True), True).as_py()
    if bad >= 0:
        raise block.invalid(bad, TEXT, "has no text")


def _parts(split_id: str, rows: pyarrow.RecordBatch, shares: Shares) -> Iterator[tuple[str, pyarrow.RecordBatch]]:
    """Yield the rows as they are, or those of each split, in order."""
    if shares.splits == (TRAIN,):
        yield split_id, rows
        return
    chosen = pyarrow.array([shares.split_of(key) for key in row_keys(rows)], pyarrow.string())
    for part_id in shares.splits:
        part = rows.filter(pyarrow.compute.equal(chosen, part_id))
        if len(part):
            yield part_id, part


class _SplitWriter:
    """Writes a split in row groups of like size, and counts it."""

    def __init__(self, path: Path, schema: pyarrow.Schema) -> None:
        self._path = path
        self._statistics = SplitStatistics(schema)
        self._writer = pyarrow.parquet.ParquetWriter(path, schema, compression="zstd")
        self._waiting: list[pyarrow.RecordBatch] = []

    def add(self, rows: pyarrow.RecordBatch) -> None:
        self._statistics.add(rows)
        self._waiting.append(rows)
        if (
            sum(map(len, self._waiting)) >= _GROUP_ROWS
            or sum(waiting.nbytes for waiting in self._waiting) >= _GROUP_BYTES
        ):
            self._write()

    def close(self) -> None:
        if self._waiting:
            self._write()
        self._writer.close()

    @property
    def prepared(self) -> PreparedSplit:
        return PreparedSplit(self._path, self._statistics.row_count, self._statistics.messages())

    def _write(self) -> None:
        self._writer.write_table(pyarrow.Table.from_batches(self._waiting), row_group_size=_GROUP_ROWS)
        self._waiting = []


def _usual_order(split_id: str) -> tuple[int, str]:
    usual = (TRAIN, VALIDATION, TEST)
    return (usual.index(split_id) if split_id in usual else len(usual), split_id)
