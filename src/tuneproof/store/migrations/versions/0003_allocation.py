"""Adaptive shares, the lift over all units, and subjects whose raw events are gone.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op

from tuneproof.store.types import Instant, Json

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; rows from before have none of it."""
    op.add_column("experiments", sa.Column("allocation", sa.Text(), nullable=True))
    op.add_column("looks", sa.Column("reweighted", Json, nullable=True))
    op.add_column("subjects", sa.Column("purged_at", Instant(), nullable=True))


def downgrade() -> None:
    """Drop them."""
    op.drop_column("experiments", "allocation")
    op.drop_column("looks", "reweighted")
    op.drop_column("subjects", "purged_at")
