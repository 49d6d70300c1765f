"""A whole registry, copied to other stores: blobs first, then all records in one transaction, then a check of it all.

Whatever ends it in between, the target has no record yet: begin again, and what was copied is not copied again.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from sqlalchemy import Row, Table, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from maas.names import BlobName
from maas_registry.domain.blobs import BlobCorrupt, BlobState, BlobStore
from maas_registry.storage import tables
from maas_registry.storage.stores import Stores
from maas_registry.upkeep.progress import Tell, for_each
from maas_registry.upkeep.references import Reference, Unreadable, references
from maas_registry.upkeep.verification import Verification, verify
from maas_runtime.database.database import alone
from maas_runtime.failures import DataCorrupt, NotAllowedNow

_ROWS_AT_ONCE = 500
_BLOBS_AT_ONCE = 4


class TargetInUse(NotAllowedNow):
    """The database to move to holds records that are not those of this registry."""

    reason = "TARGET_IN_USE"


class SourceDamaged(DataCorrupt):
    """Something of the registry cannot be copied, because it is not there or not what it has to be."""

    reason = "SOURCE_DAMAGED"


class MoveIncomplete(DataCorrupt):
    """The check after the move found a difference."""

    reason = "MOVE_INCOMPLETE"


async def move(source: Stores, target: Stores, tell: Tell) -> Verification:
    """Copy everything and check it: each row is equal, each blob is there and has its hash.

    Raises TargetInUse, SourceDamaged or MoveIncomplete.
    """
    async with alone(source.location) as here, alone(target.location) as there:
        await _check_unused(here, there, target)
    await _copy_blobs(source, target, tell)
    # While nobody writes to the source: what is registered until now comes along, with its blobs.
    async with alone(source.location) as here:
        await _copy_blobs(source, target, tell)
        async with alone(target.location) as there:
            await _check_unused(here, there, target)
            await _copy_rows(here, there, tell)
    async with alone(source.location) as here, alone(target.location) as there:
        for table in tables.metadata.sorted_tables:
            if not await _same_rows(here, there, table):
                raise MoveIncomplete(f"not all rows of {table.name} are equal in {target.location}", name=table.name)
    found = await verify(target.database, target.blobs, tell, hashing=True)
    if found.problems:
        first = found.problems[0]
        raise MoveIncomplete(f"{first.name} {first.problem}", name=first.name)
    return found


async def _check_unused(here: AsyncConnection, there: AsyncConnection, target: Stores) -> None:
    """Check that the target holds nothing, or all that the source does."""
    for table in tables.metadata.sorted_tables:
        count = select(func.count()).select_from(table)
        if (await there.execute(count)).scalar_one() and not await _same_rows(here, there, table):
            raise TargetInUse(
                f"{target.location} holds other records, or a registry that went on after a move: choose an empty "
                "database",
                name=str(target.location),
            )


async def _same_rows(here: AsyncConnection, there: AsyncConnection, table: Table) -> bool:
    async with aclosing(_pages(here, table)) as pages, aclosing(_pages(there, table)) as other_pages:
        async for page in pages:
            if await anext(other_pages, None) != page:
                return False
        return await anext(other_pages, None) is None


async def _copy_rows(here: AsyncConnection, there: AsyncConnection, tell: Tell) -> None:
    for table in tables.metadata.sorted_tables:
        count = select(func.count()).select_from(table)
        if (await there.execute(count)).scalar_one():
            continue  # the same rows, as was checked
        total, done = (await here.execute(count)).scalar_one(), 0
        async with aclosing(_pages(here, table)) as pages:
            async for page in pages:
                await there.execute(insert(table), [dict(row._mapping) for row in page])
                done += len(page)
                tell(table.name, done, total)


async def _pages(connection: AsyncConnection, table: Table) -> AsyncGenerator[Sequence[Row[Any]], None]:
    """Yield all rows, in an order in which each one that refers to another of its table comes after it."""
    result = await connection.stream(select(table).order_by(*table.primary_key.columns))
    async for page in result.partitions(_ROWS_AT_ONCE):
        yield page


async def _copy_blobs(source: Stores, target: Stores, tell: Tell) -> None:
    needed: dict[BlobName, int] = {}
    async for reference in references(source.database):
        match reference:
            case Unreadable(holder, problem):
                raise SourceDamaged(f"{holder}: {problem}", name=holder)
            case Reference(_, blob, size_bytes):
                needed[blob] = size_bytes
    total, done = sum(needed.values()), 0

    async def copy(name: BlobName) -> None:
        nonlocal done
        stored = await target.blobs.find(name)
        offset = stored.stored_bytes if stored is not None and stored.state is BlobState.RECEIVING else 0
        if stored is not None and stored.committed:
            done += needed[name]
        else:
            await _check_there(source.blobs, name)
            done += offset
            async with target.blobs.upload(name, offset) as upload:
                async with aclosing(source.blobs.read(name, offset, None)) as chunks:
                    async for chunk in chunks:
                        await upload.write(chunk)
                        done += len(chunk)
                        tell("blobs", done, total)
                await upload.commit()
        tell("blobs", done, total)

    try:
        await for_each(needed, copy, _BLOBS_AT_ONCE)
    except BlobCorrupt as failure:
        raise SourceDamaged(f"{failure.message}; then begin the move again", name=failure.name) from failure


async def _check_there(blobs: BlobStore, name: BlobName) -> None:
    blob = await blobs.find(name)
    if blob is None or not blob.committed:
        raise SourceDamaged(
            f"{name} is not there, though a record needs it: `maas registry verify` shows which", name=str(name)
        )
