"""The baseline before a task's present one; how a subject counts absent outcomes, and its cap.

Revision ID: 0002
"""

import sqlalchemy as sa
from alembic import op

from tuneproof.store.types import Json

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns: empty is as it was before."""
    op.add_column("routing", sa.Column("previous", Json, nullable=True))
    op.add_column("subjects", sa.Column("absent", sa.Text(), nullable=True))
    op.add_column("subjects", sa.Column("cap", sa.BigInteger(), nullable=True))
