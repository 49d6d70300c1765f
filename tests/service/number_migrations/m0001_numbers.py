"""A table of numbers."""

from alembic import op
from sqlalchemy import Column, Integer

from maas_runtime.database.columns import UtcTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "numbers",
        Column("number", Integer, primary_key=True, autoincrement=False),
        Column("time", UtcTime),
    )


def downgrade() -> None:
    op.drop_table("numbers")
