"""Keys that deployments trust, and which were trusted before and after an event."""

from alembic import op
from sqlalchemy import JSON, Column

revision = "0002"
down_revision = "0001"

_COLUMNS = (("deployments", "trusted_keys"), ("events", "trusted_before"), ("events", "trusted_after"))


def upgrade() -> None:
    """Add the columns."""
    for table, column in _COLUMNS:
        op.add_column(table, Column(column, JSON, nullable=False, server_default="[]"))


def downgrade() -> None:
    """Drop the columns."""
    for table, column in reversed(_COLUMNS):
        op.drop_column(table, column)
