"""The registry's tables. Migrations make them, in migrations/; a test holds the two together.

What these hold to, so that SQLite and PostgreSQL give the same answers and a registry can move from one to the other:
texts are `Text`, times `UtcTime`, JSON is read and written whole, and every number is given by us, never by a sequence
of the database.
"""

from pathlib import Path

from sqlalchemy import (
    JSON,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    UniqueConstraint,
)

from maas_runtime.database.columns import Text, UtcTime
from maas_runtime.database.migrations import Migrations

MIGRATIONS = Migrations(Path(__file__).parent / "migrations")

metadata = MetaData()

models = Table(
    "models",
    metadata,
    Column("model_id", Text, primary_key=True),
    # What may change of it, whole, as the log holds it.
    Column("details", JSON, nullable=False),
    Column("version_count", Integer, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("update_time", UtcTime, nullable=False),
    Column("revision", Integer, nullable=False),
    # From when on its files may go; nothing while it is not deleted.
    Column("expire_time", UtcTime),
    Index("expired_models", "expire_time"),
)

versions = Table(
    "versions",
    metadata,
    Column("model_id", Text, ForeignKey("models.model_id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("parent_number", Integer),
    Column("request_id", Text),
    # A version's content never changes and is read whole, so what it holds is one value.
    Column("content", JSON, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("details", JSON, nullable=False),
    # Its state in the details, or `deleted`.
    Column("state", Text, nullable=False),
    Column("update_time", UtcTime, nullable=False),
    Column("revision", Integer, nullable=False),
    # From when on its files may go; nothing while it is not deleted, and when they have gone.
    Column("expire_time", UtcTime),
    ForeignKeyConstraint(["model_id", "parent_number"], ["versions.model_id", "versions.number"]),
    UniqueConstraint("model_id", "request_id"),
    Index("versions_by_state", "model_id", "state", "number"),
    Index("versions_by_parent", "model_id", "parent_number", "number"),
    Index("versions_by_time", "model_id", "create_time", "number"),
    Index("expired_versions", "expire_time"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("model_id", Text, primary_key=True),
    Column("alias_id", Text, primary_key=True),
    Column("number", Integer, nullable=False),
    Column("update_time", UtcTime, nullable=False),
    Column("revision", Integer, nullable=False),
    ForeignKeyConstraint(["model_id", "number"], ["versions.model_id", "versions.number"]),
    Index("aliases_of_version", "model_id", "number"),
)

# Which deployments hold which versions: what the versions' details say, to be found by its holder.
holds = Table(
    "holds",
    metadata,
    Column("holder", Text, primary_key=True),
    Column("model_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True),
    ForeignKeyConstraint(["model_id", "number"], ["versions.model_id", "versions.number"]),
    Index("holds_of_version", "model_id", "number"),
)

# The log. Sequences are in the order in which changes took effect; times never go back.
changes = Table(
    "changes",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("time", UtcTime, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("resource", Text, nullable=False),
    # The model or dataset that the resource is in.
    Column("root", Text, nullable=False),
    Column("kind", Text, nullable=False),
    # What may change of the resource, whole, as the change left it; nothing when there is none any more.
    Column("state", JSON(none_as_null=True)),
    Index("changes_of_resource", "resource", "sequence"),
    Index("changes_of_root", "root", "sequence"),
    Index("changes_by_time", "time", "sequence"),
)

version_signatures = Table(
    "version_signatures",
    metadata,
    Column("model_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("fingerprint", Text, primary_key=True),
    Column("public_key", Text, nullable=False),
    Column("bundle", LargeBinary, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    ForeignKeyConstraint(["model_id", "number"], ["versions.model_id", "versions.number"]),
)

datasets = Table(
    "datasets",
    metadata,
    Column("dataset_id", Text, primary_key=True),
    Column("description", Text, nullable=False),
    Column("version_count", Integer, nullable=False),
    Column("create_time", UtcTime, nullable=False),
)

dataset_versions = Table(
    "dataset_versions",
    metadata,
    Column("dataset_id", Text, ForeignKey("datasets.dataset_id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("request_id", Text),
    Column("content", JSON, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    UniqueConstraint("dataset_id", "request_id"),
)

# Blobs that no record needs; the rules are in domain/garbage.py.
removals = Table(
    "removals",
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("since", UtcTime, nullable=False),
)
