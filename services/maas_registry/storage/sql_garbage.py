"""Removals of blobs in a database."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial

from sqlalchemy import ColumnElement, and_, delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from maas.names import BlobName
from maas_registry.domain.blobs import BlobNotFound
from maas_registry.domain.changes import Clock
from maas_registry.domain.garbage import REMOVAL_LEASE, BlobBeingRemoved, Removal, RemovalState
from maas_registry.storage.tables import removals
from maas_registry.upkeep.references import Reference, Unreadable, references
from maas_runtime.database.database import Database
from maas_runtime.failures import DataCorrupt

_NAMES_AT_ONCE = 500

_UNUSED = removals.c.state == RemovalState.UNUSED.value
_REMOVING = removals.c.state == RemovalState.REMOVING.value
_REMOVED = removals.c.state == RemovalState.REMOVED.value


class RecordUnreadable(DataCorrupt):
    """What a record needs is not known, so nothing can be removed."""

    reason = "RECORD_UNREADABLE"


class SqlGarbageStore:
    """GarbageStore and Removals in a database."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def keep(self, name: BlobName, *, stored: bool) -> None:
        """Let a blob that nobody needs have its grace period from now on."""
        of_name = removals.c.sha256 == name.sha256
        if not await self._database.rows(select(removals).where(of_name)):
            return

        async def keep(connection: AsyncConnection) -> None:
            row = (await connection.execute(select(removals).where(of_name))).one_or_none()
            if row is None:
                return
            if _removal(row.sha256, row.state, row.since).is_under_way(self._clock()):
                raise BlobBeingRemoved(f"{name} is being removed, for nobody used it: upload it again in a moment")
            if stored or row.state == RemovalState.UNUSED.value:
                await connection.execute(delete(removals).where(of_name))

        await self._database.write(keep)

    async def needed(self) -> set[BlobName]:
        """Return the blobs that any record needs."""
        names = set()
        async for reference in references(self._database):
            match reference:
                case Unreadable(holder, problem):
                    raise RecordUnreadable(
                        f"{holder}: {problem}; nothing is removed until `maas registry verify` is clean", name=holder
                    )
                case Reference(_, blob):
                    names.add(blob)
        return names

    async def removals(self) -> list[Removal]:
        """Return all rows."""
        rows = await self._database.rows(select(removals))
        return [_removal(row.sha256, row.state, row.since) for row in rows]

    async def note_unused(self, names: Collection[BlobName], now: datetime) -> None:
        """Let those that have no row, or are REMOVED and yet there, be UNUSED from now on."""

        async def note(some: Sequence[str], connection: AsyncConnection) -> None:
            there = removals.c.sha256.in_(some)
            again = update(removals).where(there, _REMOVED).values(state=RemovalState.UNUSED.value, since=now)
            await connection.execute(again)
            known = set((await connection.execute(select(removals.c.sha256).where(there))).scalars())
            new = [
                {"sha256": sha256, "state": RemovalState.UNUSED.value, "since": now}
                for sha256 in some
                if sha256 not in known
            ]
            if new:
                await connection.execute(insert(removals), new)

        await self._write(names, note)

    async def forget(self, names: Collection[BlobName], removed_before: datetime) -> None:
        """Take away the UNUSED rows of these, and all REMOVED ones that are older."""

        async def forget(some: Sequence[str], connection: AsyncConnection) -> None:
            await connection.execute(delete(removals).where(removals.c.sha256.in_(some), _UNUSED))

        await self._write(names, forget)
        await self._database.write(
            lambda connection: connection.execute(delete(removals).where(_REMOVED, removals.c.since < removed_before))
        )

    async def begin_removing(
        self, names: Collection[BlobName], unused_before: datetime, now: datetime
    ) -> set[BlobName]:
        """Let those be REMOVING that were UNUSED before that time, or whose lease is over, and return them."""
        due = or_(
            and_(_UNUSED, removals.c.since <= unused_before), and_(_REMOVING, removals.c.since <= now - REMOVAL_LEASE)
        )
        mine: set[BlobName] = set()

        async def begin(some: Sequence[str], connection: AsyncConnection) -> None:
            moved = await connection.execute(
                update(removals)
                .where(removals.c.sha256.in_(some), due)
                .values(state=RemovalState.REMOVING.value, since=now)
                .returning(removals.c.sha256)
            )
            mine.update(BlobName(sha256) for sha256 in moved.scalars())

        await self._write(names, begin)
        return mine

    async def end_removing(
        self, removed: Collection[BlobName], needed: Collection[BlobName], began: datetime, now: datetime
    ) -> None:
        """Let what became REMOVING at `began` be REMOVED, or have no row because it is needed."""
        begun: ColumnElement[bool] = and_(_REMOVING, removals.c.since == began)

        async def end(some: Sequence[str], connection: AsyncConnection) -> None:
            values = {"state": RemovalState.REMOVED.value, "since": now}
            await connection.execute(update(removals).where(removals.c.sha256.in_(some), begun).values(values))

        async def forget(some: Sequence[str], connection: AsyncConnection) -> None:
            await connection.execute(delete(removals).where(removals.c.sha256.in_(some), begun))

        await self._write(removed, end)
        await self._write(needed, forget)

    async def _write(
        self, names: Iterable[BlobName], work: Callable[[Sequence[str], AsyncConnection], Awaitable[None]]
    ) -> None:
        for some in _batches(sorted(name.sha256 for name in names)):
            await self._database.write(partial(work, some))


async def check_not_removed(connection: AsyncConnection, names: Iterable[BlobName]) -> None:
    """Raise BlobNotFound for a blob that is being removed or was. In the transaction that stores what needs it."""
    for some in _batches(sorted({name.sha256 for name in names})):
        query = select(removals.c.sha256).where(removals.c.sha256.in_(some), ~_UNUSED)
        for sha256 in (await connection.execute(query)).scalars():
            name = BlobName(sha256)
            raise BlobNotFound(f"{name} was removed, for nobody used it: upload it again", name=str(name))


def _batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), _NAMES_AT_ONCE):
        yield names[start : start + _NAMES_AT_ONCE]


def _removal(sha256: str, state: str, since: datetime) -> Removal:
    return Removal(BlobName(sha256), RemovalState(state), since.astimezone(UTC))
