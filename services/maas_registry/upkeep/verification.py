"""Every record against every other and against every blob."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ForeignKeyConstraint, Row, Select, Table, and_, exists, func, select

from maas.names import BlobName
from maas_registry.domain.blobs import BlobCorrupt, BlobState, BlobStore
from maas_registry.storage import tables
from maas_registry.upkeep.log_check import log_problems
from maas_registry.upkeep.progress import Tell, for_each
from maas_registry.upkeep.references import Reference, Unreadable, references
from maas_runtime.database.database import Database

_BLOBS_AT_ONCE = 8


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something that is not as it has to be."""

    name: str
    """Of the resource."""
    problem: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What was looked at, and what was found."""

    rows: dict[str, int]
    """How many rows each table has."""
    blobs: int
    """How many blobs the records need."""
    blob_bytes: int
    hashed: bool
    """Whether every byte was read."""
    problems: tuple[Problem, ...]


async def verify(database: Database, blobs: BlobStore, tell: Tell, *, hashing: bool) -> Verification:
    """Check all records, and that each blob they need is there; with `hashing`, that its bytes have its hash.

    A blob that is found damaged is set aside, so that it can be uploaded again. The registry may serve meanwhile.
    """
    rows = {table.name: await _count(database, table) for table in tables.metadata.sorted_tables}
    problems = [*await _missing_rows(database), *await _gaps(database)]
    problems += [Problem(name, problem) for name, problem in await log_problems(database)]
    needed: dict[BlobName, Reference] = {}
    async for reference in references(database):
        match reference:
            case Unreadable(holder, problem):
                problems.append(Problem(holder, problem))
            case Reference() if reference.blob not in needed:
                needed[reference.blob] = reference
            case Reference() if reference.size_bytes != needed[reference.blob].size_bytes:
                problems.append(
                    Problem(
                        reference.holder,
                        f"says that {reference.blob} has {reference.size_bytes} bytes, {needed[reference.blob].holder} "
                        f"that it has {needed[reference.blob].size_bytes}",
                    )
                )
    problems += await _wrong_blobs(list(needed.values()), blobs, tell, hashing=hashing)
    size_bytes = sum(reference.size_bytes for reference in needed.values())
    return Verification(rows, len(needed), size_bytes, hashing, tuple(sorted(problems)))


async def _count(database: Database, table: Table) -> int:
    (row,) = await database.rows(select(func.count()).select_from(table))
    count: int = row[0]
    return count


async def _missing_rows(database: Database) -> list[Problem]:
    """Return the rows that refer to a row which is not there, whatever the table."""
    problems = []
    for table in tables.metadata.sorted_tables:
        for constraint in sorted(table.foreign_key_constraints, key=lambda constraint: tuple(constraint.column_keys)):
            for row in await database.rows(_referring_to_nothing(table, constraint)):
                key = ", ".join(str(value) for value in row)
                problems.append(
                    Problem(f"{table.name}({key})", f"refers to a row of {constraint.referred_table} that is not there")
                )
    return problems


def _referring_to_nothing(table: Table, constraint: ForeignKeyConstraint) -> Select[Any]:
    referred = constraint.referred_table.alias("referred")
    pairs = [(element.parent, referred.c[element.column.key]) for element in constraint.elements]
    return (
        select(*table.primary_key.columns)
        .where(*(column.is_not(None) for column, _ in pairs))
        .where(~exists(select(referred).where(and_(*(column == other for column, other in pairs)))))
    )


async def _gaps(database: Database) -> list[Problem]:
    """Return what has other versions than those from 1 to its count."""
    problems = []
    for owners, versions, name in (
        (tables.models, tables.versions, "models"),
        (tables.datasets, tables.dataset_versions, "datasets"),
    ):
        (owner_id,) = owners.primary_key.columns
        count, last = func.count(versions.c.number), func.coalesce(func.max(versions.c.number), 0)
        query = (
            select(owner_id, owners.c.version_count, count.label("count"), last.label("last"))
            .join(versions, versions.c[owner_id.key] == owner_id, isouter=True)
            .group_by(owner_id, owners.c.version_count)
            .having((count != owners.c.version_count) | (last != owners.c.version_count))
        )
        problems += [_gap(f"{name}/{row[0]}", row) for row in await database.rows(query)]
    return problems


def _gap(name: str, row: Row[Any]) -> Problem:
    return Problem(
        name, f"made {row.version_count} versions, but {row.count} are there and the last is number {row.last}"
    )


async def _wrong_blobs(needed: list[Reference], blobs: BlobStore, tell: Tell, *, hashing: bool) -> list[Problem]:
    problems = []
    total = sum(reference.size_bytes for reference in needed) if hashing else len(needed)
    done = 0

    async def check(reference: Reference) -> None:
        nonlocal done
        blob = await blobs.find(reference.blob)
        if blob is None or blob.state is BlobState.RECEIVING:
            problems.append(Problem(reference.holder, f"needs {reference.blob}, which is not there"))
        elif blob.state is BlobState.DAMAGED:
            problems.append(Problem(reference.holder, f"needs {reference.blob}, which is damaged: upload it again"))
        elif blob.stored_bytes != reference.size_bytes:
            problems.append(
                Problem(
                    reference.holder,
                    f"needs {reference.size_bytes} bytes of {reference.blob}, {blob.stored_bytes} are there",
                )
            )
        elif hashing:
            try:
                async for chunk in blobs.read(reference.blob, 0, None):
                    done += len(chunk)
                    tell("blobs", done, total)
            except BlobCorrupt as failure:
                problems.append(Problem(reference.holder, failure.message))
        if not hashing:
            done += 1
            tell("blobs", done, total)

    await for_each(needed, check, _BLOBS_AT_ONCE)
    return problems
