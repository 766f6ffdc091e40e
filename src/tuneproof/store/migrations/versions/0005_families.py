"""Families: several candidates tested against one baseline at once, each in a lane of its own.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

from tuneproof.store.types import Json

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; tests from before are alone in their one lane."""
    op.add_column("experiments", sa.Column("family", sa.Text(), nullable=True))
    op.add_column("experiments", sa.Column("lane", sa.Integer(), nullable=True))
    op.add_column("experiments", sa.Column("lanes", sa.Integer(), nullable=True))
    op.create_index("ix_experiments_family", "experiments", ["family"])
    op.add_column("routing", sa.Column("lanes", Json, nullable=True))


def downgrade() -> None:
    """Drop them."""
    op.drop_column("routing", "lanes")
    op.drop_index("ix_experiments_family", "experiments")
    for name in ("family", "lane", "lanes"):
        op.drop_column("experiments", name)
