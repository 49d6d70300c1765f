"""Models, versions, aliases and holds in a database.

Whoever writes is alone (maas_runtime/database), so that what a transaction has looked up still holds when it writes.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Row, Select, delete, func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from maas.names import AliasName, DeploymentName, ModelName, NameInvalid, VersionName
from maas_registry.domain.changes import Author, ChangeKind, Clock, utc_now
from maas_registry.domain.details import Deletion, ModelDetails, VersionDetails, VersionState
from maas_registry.domain.models import Alias, Hold, Model
from maas_registry.domain.store import ModelWriter
from maas_registry.domain.versions import Version, VersionContent
from maas_registry.storage import tables
from maas_registry.storage.content import (
    model_details_from_json,
    state_to_json,
    version_details_from_json,
    version_from_json,
    version_to_json,
)
from maas_registry.storage.sql_changes import ChangeWriter, sequence_at, states_at
from maas_registry.storage.sql_garbage import check_not_removed
from maas_runtime.database.database import Database

_models, _versions, _aliases, _holds = tables.models, tables.versions, tables.aliases, tables.holds
_DELETED = "deleted"
_LOOK_BACK = 50

ResultT = TypeVar("ResultT")


class SqlModelStore:
    """ModelStore in a database. `wrote` is called after each transaction, whatever became of it."""

    def __init__(self, database: Database, clock: Clock = utc_now, wrote: Callable[[], None] = lambda: None) -> None:
        self._database = database
        self._clock = clock
        self._wrote = wrote

    async def write(self, author: Author, work: Callable[[ModelWriter], Awaitable[ResultT]]) -> ResultT:
        """Return what `work` returns in one transaction."""

        async def run(connection: AsyncConnection) -> ResultT:
            return await work(_Writer(connection, await ChangeWriter.begin(connection, author, self._clock)))

        try:
            return await self._database.write(run)
        finally:
            self._wrote()

    async def get_model(self, name: ModelName, at: datetime | None = None) -> Model | None:
        """Return the model."""
        query = _with_latest().where(_models.c.model_id == name.model_id)
        found = await self._models(query, at)
        return found[0] if found else None

    async def list_models(
        self, after: ModelName | None, limit: int, *, descending: bool = False, at: datetime | None = None
    ) -> Sequence[Model]:
        """Return a page of models."""
        key = _models.c.model_id
        query = _with_latest().order_by(key.desc() if descending else key).limit(limit)
        if after is not None:
            query = query.where(key < after.model_id if descending else key > after.model_id)
        return await self._models(query, at)

    async def get_version(self, name: VersionName | AliasName, at: datetime | None = None) -> Version | None:
        """Return the version."""
        if at is not None:
            return await self._database.read(lambda connection: _version_at(connection, name, at))
        match name:
            case VersionName():
                query = select(_versions).where(_of_version(name))
            case AliasName():
                same = (_aliases.c.model_id == _versions.c.model_id) & (_aliases.c.number == _versions.c.number)
                query = select(_versions).join(_aliases, same).where(_of_alias(name))
        rows = await self._database.rows(query)
        return _version(rows[0]) if rows else None

    async def get_version_of_request(self, model: ModelName, request_id: str) -> Version | None:
        """Return the version that was made with the request id."""
        rows = await self._database.rows(_version_of_request(model, request_id))
        return _version(rows[0]) if rows else None

    async def list_versions(
        self,
        model: ModelName,
        after: VersionName | None,
        limit: int,
        *,
        descending: bool = True,
        wanted: Mapping[str, str] | None = None,
        at: datetime | None = None,
    ) -> Sequence[Version]:
        """Return a page of versions."""
        key = _versions.c.number
        query = select(_versions).where(_versions.c.model_id == model.model_id)
        query = query.order_by(key.desc() if descending else key).limit(limit)
        if after is not None:
            query = query.where(key < _storable(after.number) if descending else key > _storable(after.number))
        parent = (wanted or {}).get("parent_version")
        if parent is not None:
            query = query.where(_versions.c.parent_number == _number(parent))
        if at is None:
            state = (wanted or {}).get("state")
            if state is not None:
                query = query.where(_versions.c.state.in_([state, _DELETED]))
            return [_version(row) for row in await self._database.rows(query)]

        async def read(connection: AsyncConnection) -> list[Version]:
            # By number and not by time, which would sort all versions of the model for a page of them.
            there = key <= await _count_at(connection, model.model_id, at)
            rows = (await connection.execute(query.where(there))).all()
            states = await states_at(connection, map(_name_of, rows), await sequence_at(connection, at))
            return [_version_then(row, states[_name_of(row)]) for row in rows]

        return await self._database.read(read)

    async def get_alias(self, name: AliasName, at: datetime | None = None) -> Alias | None:
        """Return the alias."""
        if at is not None:
            return await self._database.read(lambda connection: _alias_at(connection, name, at))
        rows = await self._database.rows(select(_aliases).where(_of_alias(name)))
        return _alias(rows[0]) if rows else None

    async def list_aliases(
        self, model: ModelName, after: AliasName | None, limit: int, at: datetime | None = None
    ) -> Sequence[Alias]:
        """Return a page of aliases."""
        if at is not None:
            found = await self._database.read(lambda connection: _aliases_at(connection, model, at))
            return [alias for alias in found if after is None or alias.name > after][:limit]
        query = select(_aliases).where(_aliases.c.model_id == model.model_id).order_by(_aliases.c.alias_id).limit(limit)
        if after is not None:
            query = query.where(_aliases.c.alias_id > after.alias_id)
        return [_alias(row) for row in await self._database.rows(query)]

    async def list_holds(self, after: Hold | None, limit: int) -> Sequence[Hold]:
        """Return a page of holds."""
        key = tuple_(_holds.c.holder, _holds.c.model_id, _holds.c.number)
        query = select(_holds).order_by(_holds.c.holder, _holds.c.model_id, _holds.c.number).limit(limit)
        if after is not None:
            query = query.where(key > (str(after.holder), after.version.model_id, after.version.number))
        return [
            Hold(DeploymentName.parse(row.holder), VersionName(row.model_id, row.number))
            for row in await self._database.rows(query)
        ]

    async def _models(self, query: Select[Any], at: datetime | None) -> Sequence[Model]:
        if at is None:
            return [_model(row) for row in await self._database.rows(query)]

        async def read(connection: AsyncConnection) -> list[Model]:
            rows = (await connection.execute(query.where(_models.c.create_time <= at))).all()
            sequence = await sequence_at(connection, at)
            states = await states_at(connection, [f"models/{row.model_id}" for row in rows], sequence)
            return [await _model_then(connection, row, states[f"models/{row.model_id}"], at, sequence) for row in rows]

        return await self._database.read(read)


class _Writer:
    """ModelWriter in a transaction of a database."""

    def __init__(self, connection: AsyncConnection, changes: ChangeWriter) -> None:
        self._connection = connection
        self._changes = changes
        self.now = changes.now

    async def get_model(self, name: ModelName) -> Model | None:
        """Return the model."""
        row = await self._row(_with_latest().where(_models.c.model_id == name.model_id))
        return None if row is None else _model(row)

    async def put_model(self, name: ModelName, details: ModelDetails, kind: ChangeKind) -> Model:
        """Store a new model, or what changed of one."""
        values = {
            "details": state_to_json(details),
            "update_time": self.now,
            "revision": await self._changes.write(name, kind, details),
            "expire_time": _expire_time(details.deletion),
        }
        if kind is ChangeKind.CREATED:
            new = {"model_id": name.model_id, "version_count": 0, "create_time": self.now}
            await self._connection.execute(insert(_models).values(**new, **values))
        else:
            await self._connection.execute(update(_models).where(_models.c.model_id == name.model_id).values(**values))
        return _model(await self._one(_with_latest().where(_models.c.model_id == name.model_id)))

    async def get_version(self, name: VersionName) -> Version | None:
        """Return the version."""
        row = await self._row(select(_versions).where(_of_version(name)))
        return None if row is None else _version(row)

    async def get_version_of_request(self, model: ModelName, request_id: str) -> Version | None:
        """Return the version that was made with the request id."""
        row = await self._row(_version_of_request(model, request_id))
        return None if row is None else _version(row)

    async def add_version(
        self, model: ModelName, content: VersionContent, details: VersionDetails, request_id: str
    ) -> Version:
        """Store a version with the next number."""
        await check_not_removed(self._connection, (file.blob for file in content.files))
        count = _models.c.version_count
        counted = update(_models).where(_models.c.model_id == model.model_id).values(version_count=count + 1)
        number = (await self._connection.execute(counted.returning(count))).scalar_one()
        name = VersionName(model.model_id, number)
        revision = await self._changes.write(name, ChangeKind.CREATED, details)
        parent = content.provenance.parent_version
        await self._connection.execute(
            insert(_versions).values(
                model_id=model.model_id,
                number=number,
                parent_number=None if parent is None else parent.number,
                request_id=request_id or None,
                content=version_to_json(content),
                create_time=self.now,
                details=state_to_json(details),
                state=_state(details),
                update_time=self.now,
                revision=revision,
            )
        )
        return Version(name, content, self.now, details, self.now, revision)

    async def put_version(self, name: VersionName, details: VersionDetails, kind: ChangeKind) -> Version:
        """Store what changed of a version."""
        before = _version(await self._one(select(_versions).where(_of_version(name))))
        revision = await self._changes.write(name, kind, details)
        await self._connection.execute(
            update(_versions)
            .where(_of_version(name))
            .values(
                details=state_to_json(details),
                state=_state(details),
                update_time=self.now,
                revision=revision,
                expire_time=_expire_time(details.deletion),
            )
        )
        for holder in set(details.held_by) - set(before.details.held_by):
            await self._connection.execute(
                insert(_holds).values(holder=str(holder), model_id=name.model_id, number=name.number)
            )
        for holder in set(before.details.held_by) - set(details.held_by):
            of_version = (_holds.c.model_id == name.model_id) & (_holds.c.number == name.number)
            await self._connection.execute(delete(_holds).where(_holds.c.holder == str(holder), of_version))
        return Version(name, before.content, before.create_time, details, self.now, revision)

    async def get_alias(self, name: AliasName) -> Alias | None:
        """Return the alias."""
        row = await self._row(select(_aliases).where(_of_alias(name)))
        return None if row is None else _alias(row)

    async def put_alias(self, name: AliasName, version: VersionName) -> Alias:
        """Store or move an alias."""
        is_new = await self.get_alias(name) is None
        kind = ChangeKind.CREATED if is_new else ChangeKind.UPDATED
        revision = await self._changes.write(name, kind, version)
        values = {"number": version.number, "update_time": self.now, "revision": revision}
        if is_new:
            key = {"model_id": name.model_id, "alias_id": name.alias_id}
            await self._connection.execute(insert(_aliases).values(**key, **values))
        else:
            await self._connection.execute(update(_aliases).where(_of_alias(name)).values(**values))
        return Alias(name, version, self.now, revision)

    async def delete_alias(self, name: AliasName) -> None:
        """Remove an alias."""
        await self._changes.write(name, ChangeKind.DELETED, None)
        await self._connection.execute(delete(_aliases).where(_of_alias(name)))

    async def count_aliases(self, model: ModelName) -> int:
        """Return how many aliases the model has."""
        query = select(func.count()).select_from(_aliases).where(_aliases.c.model_id == model.model_id)
        count: int = (await self._connection.execute(query)).scalar_one()
        return count

    async def alias_of(self, name: ModelName | VersionName) -> AliasName | None:
        """Return an alias of the version, or of any version of the model."""
        query = select(_aliases).where(_aliases.c.model_id == name.model_id).order_by(_aliases.c.alias_id).limit(1)
        if isinstance(name, VersionName):
            query = query.where(_aliases.c.number == name.number)
        row = await self._row(query)
        return None if row is None else AliasName(row.model_id, row.alias_id)

    async def hold_of(self, model: ModelName) -> Hold | None:
        """Return a hold of any version of the model."""
        row = await self._row(select(_holds).where(_holds.c.model_id == model.model_id).limit(1))
        return None if row is None else Hold(DeploymentName.parse(row.holder), VersionName(row.model_id, row.number))

    async def child_of(self, name: VersionName) -> VersionName | None:
        """Return a version that was made of this one and is not deleted."""
        row = await self._row(
            select(_versions.c.model_id, _versions.c.number)
            .where(_versions.c.model_id == name.model_id, _versions.c.parent_number == name.number)
            .where(_versions.c.state != _DELETED)
            .limit(1)
        )
        return None if row is None else VersionName(row.model_id, row.number)

    async def versions_held_by(self, holder: DeploymentName) -> Sequence[VersionName]:
        """Return the versions that a deployment holds."""
        query = select(_holds).where(_holds.c.holder == str(holder)).order_by(_holds.c.model_id, _holds.c.number)
        return [VersionName(row.model_id, row.number) for row in await self._connection.execute(query)]

    async def expired_versions(self) -> Sequence[Version]:
        """Return the versions whose files may go now and have not gone."""
        of_expired_model = _versions.c.model_id.in_(select(_models.c.model_id).where(_models.c.expire_time <= self.now))
        rows = await self._connection.execute(
            select(_versions).where((_versions.c.expire_time <= self.now) | of_expired_model)
        )
        found = [_version(row) for row in rows]
        return [one for one in found if one.details.deletion is None or one.details.deletion.purge_time is None]

    async def _row(self, query: Select[Any]) -> Row[Any] | None:
        row: Row[Any] | None = (await self._connection.execute(query)).one_or_none()
        return row

    async def _one(self, query: Select[Any]) -> Row[Any]:
        row: Row[Any] = (await self._connection.execute(query)).one()
        return row


async def _version_at(connection: AsyncConnection, name: VersionName | AliasName, at: datetime) -> Version | None:
    sequence = await sequence_at(connection, at)
    if isinstance(name, AliasName):
        alias = await _alias_at(connection, name, at)
        if alias is None:
            return None
        name = alias.version
    of_name = (await states_at(connection, [str(name)], sequence)).get(str(name))
    if of_name is None:
        return None
    row = (await connection.execute(select(_versions).where(_of_version(name)))).one()
    return _version_then(row, of_name)


async def _alias_at(connection: AsyncConnection, name: AliasName, at: datetime) -> Alias | None:
    sequence = await sequence_at(connection, at)
    entry = (await states_at(connection, [str(name)], sequence)).get(str(name))
    return None if entry is None or entry.state is None else _alias_then(entry)


async def _aliases_at(connection: AsyncConnection, model: ModelName, at: datetime) -> list[Alias]:
    # Everything below `models/a/aliases/`: `0` is the character behind `/`.
    begin, end = f"{model}/aliases/", f"{model}/aliases0"
    resource = tables.changes.c.resource
    names = (await connection.execute(select(resource).where(resource > begin, resource < end).distinct())).scalars()
    entries = await states_at(connection, names, await sequence_at(connection, at))
    return sorted(
        [_alias_then(entry) for entry in entries.values() if entry.state is not None], key=lambda alias: alias.name
    )


async def _model_then(
    connection: AsyncConnection, row: Row[Any], entry: Row[Any], at: datetime, sequence: int
) -> Model:
    """A model as it was: how many versions it had then, and the newest of them that could be deployed."""
    count = await _count_at(connection, row.model_id, at)
    latest = None
    for high in range(count, 0, -_LOOK_BACK):
        numbers = range(high, max(0, high - _LOOK_BACK), -1)
        names = [str(VersionName(row.model_id, number)) for number in numbers]
        states = await states_at(connection, names, sequence)
        ready = (name for name in names if version_details_from_json(states[name].state).can_be_deployed)
        if (found := next(ready, None)) is not None:
            latest = VersionName.parse(found)
            break
    return Model(
        ModelName(row.model_id),
        model_details_from_json(entry.state),
        row.create_time,
        entry.time,
        entry.sequence,
        count,
        latest,
    )


async def _count_at(connection: AsyncConnection, model_id: str, at: datetime) -> int:
    """How many versions a model had, which is the number of its last: numbers and times rise together."""
    newest = select(_versions.c.number).where(_versions.c.model_id == model_id, _versions.c.create_time <= at)
    newest = newest.order_by(_versions.c.create_time.desc(), _versions.c.number.desc()).limit(1)
    count: int = (await connection.execute(newest)).scalar() or 0
    return count


def _with_latest() -> Select[Any]:
    ready = (_versions.c.model_id == _models.c.model_id) & (_versions.c.state == VersionState.READY.value)
    latest = select(func.max(_versions.c.number)).where(ready).correlate(_models).scalar_subquery()
    return select(_models, latest.label("latest_number"))


def _version_of_request(model: ModelName, request_id: str) -> Select[Any]:
    return select(_versions).where(_versions.c.model_id == model.model_id, _versions.c.request_id == request_id)


def _of_version(name: VersionName) -> ColumnElement[bool]:
    return (_versions.c.model_id == name.model_id) & (_versions.c.number == _storable(name.number))


def _of_alias(name: AliasName) -> ColumnElement[bool]:
    return (_aliases.c.model_id == name.model_id) & (_aliases.c.alias_id == name.alias_id)


def _number(text: str) -> int:
    """The number of a version's name; one that nothing has when the text is no name."""
    try:
        return _storable(VersionName.parse(text).number)
    except NameInvalid:
        return 0


def _storable(number: int) -> int:
    """The number, or one that no version gets when a column cannot hold it."""
    return min(number, 2**31 - 1)


def _state(details: VersionDetails) -> str:
    return details.state.value if details.deletion is None else _DELETED


def _expire_time(deletion: Deletion | None) -> datetime | None:
    return None if deletion is None or deletion.purge_time is not None else deletion.expire_time


def _name_of(row: Row[Any]) -> str:
    return str(VersionName(row.model_id, row.number))


def _model(row: Row[Any]) -> Model:
    return Model(
        ModelName(row.model_id),
        model_details_from_json(row.details),
        row.create_time,
        row.update_time,
        row.revision,
        row.version_count,
        None if row.latest_number is None else VersionName(row.model_id, row.latest_number),
    )


def _version(row: Row[Any]) -> Version:
    return Version(
        VersionName(row.model_id, row.number),
        version_from_json(row.content),
        row.create_time,
        version_details_from_json(row.details),
        row.update_time,
        row.revision,
    )


def _version_then(row: Row[Any], entry: Row[Any]) -> Version:
    return Version(
        VersionName(row.model_id, row.number),
        version_from_json(row.content),
        row.create_time,
        version_details_from_json(entry.state),
        entry.time,
        entry.sequence,
    )


def _alias(row: Row[Any]) -> Alias:
    return Alias(
        AliasName(row.model_id, row.alias_id), VersionName(row.model_id, row.number), row.update_time, row.revision
    )


def _alias_then(entry: Row[Any]) -> Alias:
    return Alias(AliasName.parse(entry.resource), VersionName.parse(entry.state["version"]), entry.time, entry.sequence)
