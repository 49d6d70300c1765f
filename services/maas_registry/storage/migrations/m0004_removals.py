"""Blobs that no record needs, on their way to be removed."""

from alembic import op
from sqlalchemy import Column

from maas_runtime.database.columns import Text, UtcTime

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "removals",
        Column("sha256", Text, primary_key=True),
        Column("state", Text, nullable=False),
        Column("since", UtcTime, nullable=False),
    )


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("removals")
