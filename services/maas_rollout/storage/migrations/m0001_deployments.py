"""Deployments, what ended of them, and who changed them."""

from alembic import op
from sqlalchemy import JSON, Column, Integer, String

from maas_runtime.database.columns import UtcTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "history",
        Column("id", Integer, primary_key=True),
        Column("store", String, nullable=False),
        Column("revision", Integer, nullable=False),
    )
    op.create_table(
        "deployments",
        Column("deployment_id", String, primary_key=True),
        Column("targets", JSON, nullable=False),
        Column("serving", JSON, nullable=False),
        Column("state", String, nullable=False),
        Column("message", String, nullable=False),
        Column("create_time", UtcTime, nullable=False),
        Column("update_time", UtcTime, nullable=False),
        Column("revision", Integer, nullable=False, index=True),
    )
    op.create_table(
        "tombstones",
        Column("deployment_id", String, primary_key=True),
        Column("revision", Integer, nullable=False, index=True),
    )
    op.create_table(
        "events",
        Column("number", Integer, primary_key=True),
        Column("deployment_id", String, nullable=False),
        Column("time", UtcTime, nullable=False),
        Column("action", String, nullable=False),
        Column("targets_before", JSON, nullable=False),
        Column("targets_after", JSON, nullable=False),
        Column("actor", String, nullable=False),
        Column("reason", String, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("events_of_deployment", "events", ["deployment_id", "number"])


def downgrade() -> None:
    """Drop the tables."""
    for table in ("events", "tombstones", "deployments", "history"):
        op.drop_table(table)
