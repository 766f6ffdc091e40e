"""What people said of answers, in words.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table, empty."""
    name = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    op.create_table(
        "comments",
        sa.Column("subject", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("unit", name, nullable=False),
        sa.Column("id", name, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("subject", "unit", "id", name="pk_comments"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_comments_subject_at", "comments", ["subject", "at"])
