"""Answers of running tests that wait to be scored, their scores, and what scoring took each day.

Revision ID: 0007
"""

import sqlalchemy as sa
from alembic import op

from tuneproof.store.types import Json

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the two tables."""
    op.create_table(
        "scores",
        sa.Column("subject", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("unit", _NAME, nullable=False),
        sa.Column("task", _NAME, nullable=False),
        sa.Column("pipeline", sa.Text(), nullable=False),
        sa.Column("arm", sa.SmallInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("queued_at", sa.BigInteger(), nullable=False),
        sa.Column("messages", Json, nullable=True),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("scorer", sa.Text(), nullable=True),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("subject", "unit", "task", name="pk_scores"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_scores_state_due_at", "scores", ["state", "due_at"])
    op.create_table(
        "scoring_days",
        sa.Column("pipeline", sa.Text(), nullable=False),
        sa.Column("day", sa.Text(), nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.Column("cost_nano", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pipeline", "day", name="pk_scoring_days"),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("scoring_days")
    op.drop_table("scores")
