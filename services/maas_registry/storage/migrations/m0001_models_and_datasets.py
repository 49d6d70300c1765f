"""Models, versions, aliases and datasets."""

from alembic import op
from sqlalchemy import JSON, Column, ForeignKey, ForeignKeyConstraint, Integer, UniqueConstraint

from maas_runtime.database.columns import Text, UtcTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "models",
        Column("model_id", Text, primary_key=True),
        Column("description", Text, nullable=False),
        Column("tags", JSON, nullable=False),
        Column("version_count", Integer, nullable=False),
        Column("create_time", UtcTime, nullable=False),
    )
    op.create_table(
        "versions",
        Column("model_id", Text, ForeignKey("models.model_id"), primary_key=True),
        Column("number", Integer, primary_key=True),
        Column("parent_number", Integer),
        Column("request_id", Text),
        Column("content", JSON, nullable=False),
        Column("create_time", UtcTime, nullable=False),
        ForeignKeyConstraint(["model_id", "parent_number"], ["versions.model_id", "versions.number"]),
        UniqueConstraint("model_id", "request_id"),
    )
    op.create_table(
        "aliases",
        Column("model_id", Text, primary_key=True),
        Column("alias_id", Text, primary_key=True),
        Column("number", Integer, nullable=False),
        Column("update_time", UtcTime, nullable=False),
        ForeignKeyConstraint(["model_id", "number"], ["versions.model_id", "versions.number"]),
    )
    op.create_table(
        "datasets",
        Column("dataset_id", Text, primary_key=True),
        Column("description", Text, nullable=False),
        Column("version_count", Integer, nullable=False),
        Column("create_time", UtcTime, nullable=False),
    )
    op.create_table(
        "dataset_versions",
        Column("dataset_id", Text, ForeignKey("datasets.dataset_id"), primary_key=True),
        Column("number", Integer, primary_key=True),
        Column("request_id", Text),
        Column("content", JSON, nullable=False),
        Column("create_time", UtcTime, nullable=False),
        UniqueConstraint("dataset_id", "request_id"),
    )


def downgrade() -> None:
    """Drop the tables."""
    for table in ("dataset_versions", "datasets", "aliases", "versions", "models"):
        op.drop_table(table)
