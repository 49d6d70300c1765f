"""The log of changes in a database.

Whoever writes is alone (maas_runtime/database), so that the order of sequences is the order in which changes become
visible, and whoever has read up to one has missed nothing before it.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from maas.names import DatasetName, ModelName
from maas_registry.domain.changes import (
    Author,
    Change,
    ChangedState,
    ChangeKind,
    Clock,
    ResourceName,
    parse_resource,
    root_of,
)
from maas_registry.storage import tables
from maas_registry.storage.content import Json, state_from_json, state_to_json
from maas_runtime.database.database import Database

_changes = tables.changes
_earlier = tables.changes.alias("earlier")


class ChangeWriter:
    """Writes the entries of one transaction, all of one time and author."""

    def __init__(self, connection: AsyncConnection, author: Author, now: datetime, sequence: int) -> None:
        self._connection = connection
        self._author = author
        self.now = now
        self._sequence = sequence

    @classmethod
    async def begin(cls, connection: AsyncConnection, author: Author, clock: Clock) -> "ChangeWriter":
        """Return the writer of a transaction that has just begun."""
        newest = select(_changes.c.sequence, _changes.c.time).order_by(_changes.c.sequence.desc()).limit(1)
        last = (await connection.execute(newest)).one_or_none()
        now = clock()
        return (
            cls(connection, author, now, 0) if last is None else cls(connection, author, max(now, last.time), last[0])
        )

    async def write(self, resource: ResourceName, kind: ChangeKind, state: ChangedState) -> int:
        """Write an entry and return its number."""
        self._sequence += 1
        await self._connection.execute(
            insert(_changes).values(
                sequence=self._sequence,
                time=self.now,
                actor=self._author.actor,
                reason=self._author.reason,
                resource=str(resource),
                root=str(root_of(resource)),
                kind=kind.value,
                state=state_to_json(state),
            )
        )
        return self._sequence


class SqlChangeLog:
    """ChangeLog in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def newest_sequence(self) -> int:
        """Return the number of the last change."""
        rows = await self._database.rows(select(func.coalesce(func.max(_changes.c.sequence), 0)))
        newest: int = rows[0][0]
        return newest

    async def list_changes(
        self, resource: ResourceName | None, before: int | None, limit: int, at: datetime | None
    ) -> Sequence[Change]:
        """Return a page of changes, newest first."""

        async def read(connection: AsyncConnection) -> Sequence[Row[Any]]:
            query = _with_previous().order_by(_changes.c.sequence.desc()).limit(limit)
            match resource:
                case None:
                    pass
                case ModelName() | DatasetName():
                    query = query.where(_changes.c.root == str(resource))
                case _:
                    query = query.where(_changes.c.resource == str(resource))
            if before is not None:
                query = query.where(_changes.c.sequence < before)
            if at is not None:
                query = query.where(_changes.c.sequence <= await sequence_at(connection, at))
            rows: Sequence[Row[Any]] = (await connection.execute(query)).all()
            return rows

        return [_change(row) for row in await self._database.read(read)]

    async def changes_after(self, sequence: int, limit: int) -> Sequence[Change]:
        """Return the next changes, oldest first."""
        query = _with_previous().where(_changes.c.sequence > sequence).order_by(_changes.c.sequence).limit(limit)
        return [_change(row) for row in await self._database.rows(query)]


async def sequence_at(connection: AsyncConnection, at: datetime) -> int:
    """Return the number of the last change up to a time; 0 when there is none."""
    newest = select(_changes.c.sequence).where(_changes.c.time <= at)
    found = await connection.execute(newest.order_by(_changes.c.time.desc(), _changes.c.sequence.desc()).limit(1))
    return found.scalar() or 0


async def states_at(connection: AsyncConnection, resources: Iterable[str], sequence: int) -> Mapping[str, Row[Any]]:
    """Return the last entry of each resource up to a number, by the resource's name."""
    newest = (
        select(func.max(_changes.c.sequence))
        .where(_changes.c.resource.in_(list(resources)), _changes.c.sequence <= sequence)
        .group_by(_changes.c.resource)
    )
    rows = (await connection.execute(select(_changes).where(_changes.c.sequence.in_(newest)))).all()
    return {row.resource: row for row in rows}


def _with_previous() -> Select[Any]:
    previous = (
        select(_earlier.c.state)
        .where(_earlier.c.resource == _changes.c.resource, _earlier.c.sequence < _changes.c.sequence)
        .order_by(_earlier.c.sequence.desc())
        .limit(1)
        .scalar_subquery()
    )
    return select(_changes, previous.label("previous"))


def _change(row: Row[Any]) -> Change:
    resource = parse_resource(row.resource)
    previous: Json | None = row.previous
    return Change(
        row.sequence,
        row.time,
        Author(row.actor, row.reason),
        resource,
        ChangeKind(row.kind),
        state_from_json(resource, row.state),
        state_from_json(resource, previous),
    )
