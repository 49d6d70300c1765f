"""Deployments and their events in SQLite."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    Index,
    Integer,
    MetaData,
    Row,
    Select,
    String,
    Table,
    delete,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from maas.names import DeploymentName, VersionName
from maas.signatures import PublicKey
from maas_rollout.domain.deployments import Action, Deployment, DeploymentState, Event, Standing, Target
from maas_rollout.domain.feed import Changes, ResumePoint
from maas_rollout.domain.serving import DEFAULT_SERVING, LoadPolicy, ServingSettings
from maas_runtime.database.columns import UtcTime
from maas_runtime.database.database import Database
from maas_runtime.database.migrations import Migrations

MIGRATIONS = Migrations(Path(__file__).parent / "migrations")
KEPT_REVISIONS = 10_000

metadata = MetaData()

# One row: which store this is, and how many changes it has seen.
_history = Table(
    "history",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("store", String, nullable=False),
    Column("revision", Integer, nullable=False),
)

_deployments = Table(
    "deployments",
    metadata,
    Column("deployment_id", String, primary_key=True),
    Column("targets", JSON, nullable=False),
    Column("serving", JSON, nullable=False),
    Column("trusted_keys", JSON, nullable=False, server_default="[]"),
    Column("state", String, nullable=False),
    Column("message", String, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("update_time", UtcTime, nullable=False),
    Column("revision", Integer, nullable=False, index=True),
)

# What ended lately, so that a watcher who was away hears of it.
_tombstones = Table(
    "tombstones",
    metadata,
    Column("deployment_id", String, primary_key=True),
    Column("revision", Integer, nullable=False, index=True),
)

_events = Table(
    "events",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("deployment_id", String, nullable=False),
    Column("time", UtcTime, nullable=False),
    Column("action", String, nullable=False),
    Column("targets_before", JSON, nullable=False),
    Column("targets_after", JSON, nullable=False),
    Column("trusted_before", JSON, nullable=False, server_default="[]"),
    Column("trusted_after", JSON, nullable=False, server_default="[]"),
    Column("actor", String, nullable=False),
    Column("reason", String, nullable=False),
    Index("events_of_deployment", "deployment_id", "number"),
    sqlite_autoincrement=True,
)


class SqliteDeploymentStore:
    """DeploymentStore and ChangeStore in SQLite. Deletions are remembered for `kept_revisions` changes."""

    def __init__(self, database: Database, kept_revisions: int = KEPT_REVISIONS) -> None:
        self._database = database
        self._kept_revisions = kept_revisions

    async def prepare(self, identity: str) -> None:
        """Give a new store its identity; an old one keeps the one that it has."""
        await self._database.write(
            lambda connection: connection.execute(
                insert(_history).values(id=1, store=identity, revision=0).on_conflict_do_nothing()
            )
        )

    async def create(self, deployment: Deployment, event: Event) -> Deployment | None:
        """Store a deployment; None when the name is taken."""
        deployment_id = deployment.name.deployment_id

        async def create(connection: AsyncConnection) -> Deployment | None:
            if (await connection.execute(_named(deployment.name))).one_or_none() is not None:
                return None
            created = replace(deployment, revision=await _next_revision(connection))
            await connection.execute(
                insert(_deployments).values(
                    deployment_id=deployment_id, create_time=created.create_time, **_changing(created)
                )
            )
            await connection.execute(delete(_tombstones).where(_tombstones.c.deployment_id == deployment_id))
            await _record(connection, event)
            return created

        return await self._database.write(create)

    async def get(self, name: DeploymentName) -> Deployment | None:
        """Return the deployment."""
        rows = await self._database.rows(_named(name))
        return _deployment(rows[0]) if rows else None

    async def list(self, after: DeploymentName | None, limit: int) -> Sequence[Deployment]:
        """Return a page of deployments."""
        query = select(_deployments).order_by(_deployments.c.deployment_id).limit(limit)
        if after is not None:
            query = query.where(_deployments.c.deployment_id > after.deployment_id)
        return [_deployment(row) for row in await self._database.rows(query)]

    async def update(self, deployment: Deployment, event: Event) -> Deployment | None:
        """Store a deployment in place of the one of its revision; None when that is not the present one."""

        async def change(connection: AsyncConnection) -> Deployment | None:
            row = (await connection.execute(_named(deployment.name))).one_or_none()
            if row is None or row.revision != deployment.revision:
                return None
            updated = replace(deployment, revision=await _next_revision(connection))
            await connection.execute(
                update(_deployments)
                .where(_deployments.c.deployment_id == deployment.name.deployment_id)
                .values(**_changing(updated))
            )
            await _record(connection, event)
            return updated

        return await self._database.write(change)

    async def delete(self, deployment: Deployment, event: Event) -> bool:
        """Remove the deployment; False when its revision is not the present one."""
        deployment_id = deployment.name.deployment_id

        async def remove(connection: AsyncConnection) -> bool:
            removed = await connection.execute(
                delete(_deployments).where(
                    _deployments.c.deployment_id == deployment_id, _deployments.c.revision == deployment.revision
                )
            )
            if removed.rowcount == 0:
                return False
            revision = await _next_revision(connection)
            await connection.execute(insert(_tombstones).values(deployment_id=deployment_id, revision=revision))
            await connection.execute(delete(_tombstones).where(_tombstones.c.revision <= self._horizon(revision)))
            await _record(connection, event)
            return True

        return await self._database.write(remove)

    async def list_events(self, name: DeploymentName, before: int | None, limit: int) -> Sequence[Event]:
        """Return a page of events, newest first."""
        query = (
            select(_events)
            .where(_events.c.deployment_id == name.deployment_id)
            .order_by(_events.c.number.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(_events.c.number < before)
        return [_event(row) for row in await self._database.rows(query)]

    async def set_standing(self, deployment: Deployment, standing: Standing) -> None:
        """Note where a deployment is."""
        await self._database.write(
            lambda connection: connection.execute(
                update(_deployments)
                .where(
                    _deployments.c.deployment_id == deployment.name.deployment_id,
                    _deployments.c.revision == deployment.revision,
                )
                .values(state=standing.state.value, message=standing.message)
            )
        )

    async def changes_since(self, point: ResumePoint | None) -> Changes:
        """Return what changed since `point`, or a snapshot."""
        return await self._database.read(lambda connection: self._changes_since(connection, point))

    async def _changes_since(self, connection: AsyncConnection, point: ResumePoint | None) -> Changes:
        history = (await connection.execute(select(_history))).one()
        now = ResumePoint(history.store, history.revision)
        deployments = select(_deployments).order_by(_deployments.c.revision)
        if (
            point is None
            or point.store != now.store
            or not self._horizon(now.revision) <= point.revision <= now.revision
        ):
            return Changes(now, True, tuple([_deployment(row) for row in await connection.execute(deployments)]))
        if point == now:
            return Changes(now, False, ())
        changed = await connection.execute(deployments.where(_deployments.c.revision > point.revision))
        ended = await connection.execute(
            select(_tombstones).where(_tombstones.c.revision > point.revision).order_by(_tombstones.c.revision)
        )
        return Changes(
            now,
            False,
            tuple([_deployment(row) for row in changed]),
            tuple([DeploymentName(row.deployment_id) for row in ended]),
        )

    def _horizon(self, revision: int) -> int:
        """Return the revision since which every deletion is remembered."""
        return max(0, revision - self._kept_revisions)


def _named(name: DeploymentName) -> Select[Any]:
    return select(_deployments).where(_deployments.c.deployment_id == name.deployment_id)


async def _next_revision(connection: AsyncConnection) -> int:
    query = update(_history).values(revision=_history.c.revision + 1).returning(_history.c.revision)
    revision: int = (await connection.execute(query)).scalar_one()
    return revision


async def _record(connection: AsyncConnection, event: Event) -> None:
    await connection.execute(
        insert(_events).values(
            deployment_id=event.deployment.deployment_id,
            time=event.time,
            action=event.action.value,
            targets_before=_targets_to_json(event.targets_before),
            targets_after=_targets_to_json(event.targets_after),
            trusted_before=list(event.trusted_before),
            trusted_after=list(event.trusted_after),
            actor=event.actor,
            reason=event.reason,
        )
    )


def _changing(deployment: Deployment) -> dict[str, Any]:
    return {
        "targets": _targets_to_json(deployment.targets),
        "serving": _serving_to_json(deployment.serving),
        "trusted_keys": [asdict(key) for key in deployment.trusted_keys],
        "state": deployment.standing.state.value,
        "message": deployment.standing.message,
        "update_time": deployment.update_time,
        "revision": deployment.revision,
    }


def _deployment(row: Row[Any]) -> Deployment:
    return Deployment(
        DeploymentName(row.deployment_id),
        _targets_from_json(row.targets),
        Standing(DeploymentState(row.state), row.message),
        row.create_time,
        row.update_time,
        _serving_from_json(row.serving),
        tuple(PublicKey(**key) for key in row.trusted_keys),
        row.revision,
    )


def _event(row: Row[Any]) -> Event:
    return Event(
        DeploymentName(row.deployment_id),
        row.time,
        Action(row.action),
        _targets_from_json(row.targets_before),
        _targets_from_json(row.targets_after),
        row.actor,
        row.reason,
        tuple(row.trusted_before),
        tuple(row.trusted_after),
        row.number,
    )


def _serving_to_json(serving: ServingSettings) -> dict[str, Any]:
    return {
        "max_batch_rows": serving.max_batch_rows,
        "max_queue_delay_seconds": _seconds(serving.max_queue_delay),
        "max_queue_rows": serving.max_queue_rows,
        "cache_bytes": serving.cache_bytes,
        "load_policy": serving.load_policy.value,
        "engine": serving.engine,
        "worker_memory_bytes": serving.worker_memory_bytes,
        "compute_timeout_seconds": _seconds(serving.compute_timeout),
    }


def _serving_from_json(stored: dict[str, Any]) -> ServingSettings:
    return ServingSettings(
        max_batch_rows=stored.get("max_batch_rows", DEFAULT_SERVING.max_batch_rows),
        max_queue_delay=_timedelta(stored.get("max_queue_delay_seconds")),
        max_queue_rows=stored.get("max_queue_rows", DEFAULT_SERVING.max_queue_rows),
        cache_bytes=stored.get("cache_bytes", DEFAULT_SERVING.cache_bytes),
        load_policy=LoadPolicy(stored.get("load_policy", DEFAULT_SERVING.load_policy.value)),
        engine=stored.get("engine", DEFAULT_SERVING.engine),
        worker_memory_bytes=stored.get("worker_memory_bytes", DEFAULT_SERVING.worker_memory_bytes),
        compute_timeout=_timedelta(stored.get("compute_timeout_seconds")),
    )


def _seconds(value: timedelta | None) -> float | None:
    return None if value is None else value.total_seconds()


def _timedelta(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


def _targets_to_json(targets: Sequence[Target]) -> list[dict[str, Any]]:
    return [{"version": str(target.version), "weight": target.weight} for target in targets]


def _targets_from_json(value: Sequence[dict[str, Any]]) -> tuple[Target, ...]:
    return tuple([Target(VersionName.parse(target["version"]), target["weight"]) for target in value])
