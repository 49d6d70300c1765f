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
    Column("description", Text, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("version_count", Integer, nullable=False),
    Column("create_time", UtcTime, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("model_id", Text, ForeignKey("models.model_id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("parent_number", Integer),
    Column("request_id", Text),
    # A version never changes and is read whole, so what it holds is one value.
    Column("content", JSON, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    ForeignKeyConstraint(["model_id", "parent_number"], ["versions.model_id", "versions.number"]),
    UniqueConstraint("model_id", "request_id"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("model_id", Text, primary_key=True),
    Column("alias_id", Text, primary_key=True),
    Column("number", Integer, nullable=False),
    Column("update_time", UtcTime, nullable=False),
    ForeignKeyConstraint(["model_id", "number"], ["versions.model_id", "versions.number"]),
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
