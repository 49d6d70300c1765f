"""The log of changes; what may change of models and versions becomes one value, which the log holds as well."""

from typing import Any

from alembic import op
from sqlalchemy import (
    JSON,
    Column,
    Connection,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    Table,
    insert,
    select,
    update,
)

from maas_runtime.database.columns import Text, UtcTime

revision = "0003"
down_revision = "0002"

_COMMON = {"actor": "unknown", "reason": "", "kind": "created"}


def upgrade() -> None:
    """Make the log, and write into it what there is."""
    op.create_table(
        "changes",
        Column("sequence", Integer, primary_key=True, autoincrement=False),
        Column("time", UtcTime, nullable=False),
        Column("actor", Text, nullable=False),
        Column("reason", Text, nullable=False),
        Column("resource", Text, nullable=False),
        Column("root", Text, nullable=False),
        Column("kind", Text, nullable=False),
        Column("state", JSON(none_as_null=True)),
    )
    op.create_index("changes_of_resource", "changes", ["resource", "sequence"])
    op.create_index("changes_of_root", "changes", ["root", "sequence"])
    op.create_index("changes_by_time", "changes", ["time", "sequence"])
    op.create_table(
        "holds",
        Column("holder", Text, primary_key=True),
        Column("model_id", Text, primary_key=True),
        Column("number", Integer, primary_key=True),
        ForeignKeyConstraint(["model_id", "number"], ["versions.model_id", "versions.number"]),
    )
    op.create_index("holds_of_version", "holds", ["model_id", "number"])
    op.add_column("models", Column("details", JSON))
    op.add_column("models", Column("update_time", UtcTime))
    op.add_column("models", Column("revision", Integer))
    op.add_column("models", Column("expire_time", UtcTime))
    op.add_column("versions", Column("details", JSON))
    op.add_column("versions", Column("state", Text))
    op.add_column("versions", Column("update_time", UtcTime))
    op.add_column("versions", Column("revision", Integer))
    op.add_column("versions", Column("expire_time", UtcTime))
    op.add_column("aliases", Column("revision", Integer))
    _log_what_there_is(op.get_bind())
    with op.batch_alter_table("models") as table:
        for column in ("details", "update_time", "revision"):
            table.alter_column(column, nullable=False)
        table.drop_column("description")
        table.drop_column("tags")
    with op.batch_alter_table("versions") as table:
        for column in ("details", "state", "update_time", "revision"):
            table.alter_column(column, nullable=False)
    with op.batch_alter_table("aliases") as table:
        table.alter_column("revision", nullable=False)
    op.create_index("expired_models", "models", ["expire_time"])
    op.create_index("versions_by_state", "versions", ["model_id", "state", "number"])
    op.create_index("versions_by_parent", "versions", ["model_id", "parent_number", "number"])
    op.create_index("versions_by_time", "versions", ["model_id", "create_time", "number"])
    op.create_index("expired_versions", "versions", ["expire_time"])
    op.create_index("aliases_of_version", "aliases", ["model_id", "number"])


def downgrade() -> None:
    """Drop the log; descriptions and tags go back to where they were."""
    op.add_column("models", Column("description", Text))
    op.add_column("models", Column("tags", JSON))
    _put_descriptions_back(op.get_bind())
    op.drop_index("expired_models", "models")
    with op.batch_alter_table("models") as table:
        for column in ("description", "tags"):
            table.alter_column(column, nullable=False)
        for column in ("details", "update_time", "revision", "expire_time"):
            table.drop_column(column)
    for index in ("versions_by_state", "versions_by_parent", "versions_by_time", "expired_versions"):
        op.drop_index(index, "versions")
    with op.batch_alter_table("versions") as table:
        for column in ("details", "state", "update_time", "revision", "expire_time"):
            table.drop_column(column)
    op.drop_index("aliases_of_version", "aliases")
    with op.batch_alter_table("aliases") as table:
        table.drop_column("revision")
    op.drop_table("holds")
    op.drop_table("changes")


def _log_what_there_is(connection: Connection) -> None:
    models, versions, aliases, changes = _tables(connection, "models", "versions", "aliases", "changes")
    entries: list[tuple[Any, Any, dict[str, Any], dict[str, Any]]] = []
    for row in connection.execute(select(models)).all():
        details = {"description": row.description, "tags": row.tags, "deletion": None}
        change = {"time": row.create_time, "resource": f"models/{row.model_id}", "state": details}
        entries.append((models, models.c.model_id == row.model_id, change, {"details": details}))
    for row in connection.execute(select(versions)).all():
        content = dict(row.content)
        provenance = dict(content.get("provenance", {}))
        details = {
            "description": provenance.pop("description", ""),
            "tags": {},
            "state": "ready",
            "evaluations": [],
            "measurements": [],
            "held_by": [],
            "deletion": None,
        }
        content["provenance"] = _dated(provenance | {"code_revision": ""})
        name = f"models/{row.model_id}/versions/{row.number}"
        change = {"time": row.create_time, "resource": name, "state": details}
        key = (versions.c.model_id == row.model_id) & (versions.c.number == row.number)
        entries.append((versions, key, change, {"details": details, "state": "ready", "content": content}))
    for row in connection.execute(select(aliases)).all():
        name = f"models/{row.model_id}/aliases/{row.alias_id}"
        state = {"version": f"models/{row.model_id}/versions/{row.number}"}
        key = (aliases.c.model_id == row.model_id) & (aliases.c.alias_id == row.alias_id)
        entries.append((aliases, key, {"time": row.update_time, "resource": name, "state": state}, {}))
    # Stable: of the same time, a model comes before its versions and they before its aliases.
    entries.sort(key=lambda entry: entry[2]["time"])
    for sequence, (table, key, change, values) in enumerate(entries, start=1):
        root = "/".join(change["resource"].split("/")[:2])
        connection.execute(insert(changes).values(sequence=sequence, root=root, **_COMMON, **change))
        times = {} if table is aliases else {"update_time": change["time"]}
        connection.execute(update(table).where(key).values(revision=sequence, **times, **values))


def _dated(provenance: dict[str, Any]) -> dict[str, Any]:
    """Evaluations and measurements that came with a version have no time of their own."""
    undated = {"create_time": None}
    if evaluation := provenance.get("evaluation"):
        provenance["evaluation"] = evaluation | undated
    if report := provenance.get("compression_report"):
        parts = ("before", "after", "quality_before", "quality_after")
        provenance["compression_report"] = report | {part: report[part] | undated for part in parts}
    return provenance


def _put_descriptions_back(connection: Connection) -> None:
    models, versions = _tables(connection, "models", "versions")
    for row in connection.execute(select(models)).all():
        values = {"description": row.details["description"], "tags": row.details["tags"]}
        connection.execute(update(models).where(models.c.model_id == row.model_id).values(**values))
    for row in connection.execute(select(versions)).all():
        provenance = row.content.get("provenance", {}) | {"description": row.details["description"]}
        key = (versions.c.model_id == row.model_id) & (versions.c.number == row.number)
        connection.execute(update(versions).where(key).values(content=row.content | {"provenance": provenance}))


def _tables(connection: Connection, *names: str) -> list[Table]:
    metadata = MetaData()
    return [Table(name, metadata, autoload_with=connection) for name in names]
