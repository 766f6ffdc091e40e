"""The first schema: the tables as `tables.py` has them, raw events by day on PostgreSQL.

Revision ID: 0001
"""

from alembic import op

from tuneproof.store.partitions import divide_by_day
from tuneproof.store.tables import metadata

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make all tables."""
    metadata.create_all(op.get_bind())
    if op.get_bind().dialect.name == "postgresql":
        divide_by_day(op.get_bind())


def downgrade() -> None:
    """Drop them."""
    metadata.drop_all(op.get_bind())
