"""The log of changes against itself and against what it is the log of. Each question is one query: others may write."""

from typing import Any

from sqlalchemy import ColumnElement, Select, String, Table, cast, func, literal, null, select

from maas_registry.storage import tables
from maas_runtime.database.database import Database

_changes = tables.changes
_models, _versions, _aliases = tables.models, tables.versions, tables.aliases


async def log_problems(database: Database) -> list[tuple[str, str]]:
    """Return what is wrong, each with the name of the resource."""
    problems = []
    sequence = _changes.c.sequence
    counted: list[ColumnElement[Any]] = [
        func.count().label("entries"),
        func.min(sequence).label("first"),
        func.max(sequence).label("last"),
    ]
    (numbered,) = await database.rows(select(*counted))
    if numbered.entries and (numbered.first != 1 or numbered.last != numbered.entries):
        problems.append(
            (
                "changes",
                f"has {numbered.entries} entries, numbered from {numbered.first} to {numbered.last}: some are missing",
            )
        )
    problems += [
        (f"changes/{row.sequence}", "is dated before the change that it follows")
        for row in await database.rows(_out_of_order())
    ]
    for table, name, state in (
        (_models, _model_name(_models), cast(_models.c.details, String)),
        (_versions, _version_name(_versions), cast(_versions.c.details, String)),
        (_aliases, _alias_name(), literal('{"version": "') + _version_name(_aliases) + '"}'),
    ):
        problems += [
            (row.name, f"was last changed by change {row.revision}, the log says {row.latest}")
            for row in await database.rows(_not_the_latest(table, name))
        ]
        problems += [
            (row.name, f"is not as change {row.revision} left it")
            for row in await database.rows(_other(table, name, state))
        ]
    (there,) = await database.rows(_counts())
    if there.logged != there.stored:
        problems.append(
            ("changes", f"says that there are {there.logged} models, versions and aliases, not {there.stored}")
        )
    return problems


def _out_of_order() -> Select[Any]:
    before = func.lag(_changes.c.time).over(order_by=_changes.c.sequence)
    dated = select(_changes.c.sequence, _changes.c.time, before.label("before")).subquery()
    return select(dated.c.sequence).where(dated.c.time < dated.c.before)


def _not_the_latest(table: Table, name: ColumnElement[str]) -> Select[Any]:
    newest = select(func.max(_changes.c.sequence)).where(_changes.c.resource == name).scalar_subquery()
    latest = func.coalesce(newest, 0)
    return select(name.label("name"), table.c.revision, latest.label("latest")).where(latest != table.c.revision)


def _other(table: Table, name: ColumnElement[str], state: ColumnElement[str]) -> Select[Any]:
    return (
        select(name.label("name"), table.c.revision)
        .join(_changes, _changes.c.sequence == table.c.revision)
        .where(cast(_changes.c.state, String) != state)
    )


def _counts() -> Select[Any]:
    """How many resources the log leaves there, and how many are."""
    later = tables.changes.alias("later")
    newest = select(func.max(later.c.sequence)).where(later.c.resource == _changes.c.resource).scalar_subquery()
    # Of datasets the log has no state.
    logged = select(func.count()).where(_changes.c.sequence == newest, _changes.c.state.is_not(null()))
    stored = [select(func.count()).select_from(table).scalar_subquery() for table in (_models, _versions, _aliases)]
    return select(logged.scalar_subquery().label("logged"), (stored[0] + stored[1] + stored[2]).label("stored"))


def _model_name(table: Table) -> ColumnElement[str]:
    return literal("models/") + table.c.model_id


def _version_name(table: Table) -> ColumnElement[str]:
    return _model_name(table) + "/versions/" + cast(table.c.number, String)


def _alias_name() -> ColumnElement[str]:
    return _model_name(_aliases) + "/aliases/" + _aliases.c.alias_id
