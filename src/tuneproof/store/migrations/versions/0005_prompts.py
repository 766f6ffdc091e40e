"""Prompts, and by which one and how a version was made.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

from tuneproof.store.types import Instant

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table, empty, and the columns: empty is a prompt of the application's own."""
    op.create_table(
        "prompts",
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("parent", sa.Text(), nullable=True),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("created_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("hash", name="pk_prompts"),
    )
    op.add_column("versions", sa.Column("prompt", sa.Text(), nullable=True))
    op.add_column("versions", sa.Column("recipe", sa.Text(), nullable=True))
