"""Signatures of versions."""

from alembic import op
from sqlalchemy import Column, ForeignKeyConstraint, Integer, LargeBinary

from maas_runtime.database.columns import Text, UtcTime

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "version_signatures",
        Column("model_id", Text, primary_key=True),
        Column("number", Integer, primary_key=True),
        Column("fingerprint", Text, primary_key=True),
        Column("public_key", Text, nullable=False),
        Column("bundle", LargeBinary, nullable=False),
        Column("create_time", UtcTime, nullable=False),
        ForeignKeyConstraint(["model_id", "number"], ["versions.model_id", "versions.number"]),
    )


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("version_signatures")
