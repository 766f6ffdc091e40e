"""What experiments have learnt to keep: their ledger, their criteria, their segments.

Revision ID: 0002
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from tuneproof.store.types import Json

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_EXPERIMENTS: tuple[tuple[str, Any], ...] = (
    ("alpha", sa.Double()),
    ("retest", sa.Integer()),
    ("identity", Json),
    ("objectives", Json),
    ("segments", Json),
    ("segment_guardrail", sa.Boolean()),
)
_LOOKS: tuple[tuple[str, Any], ...] = (
    ("alpha", sa.Double()),
    ("standard_error", sa.Double()),
    ("expected", Json),
    ("halves", Json),
    ("criteria", Json),
    ("segments", Json),
)


def upgrade() -> None:
    """Add the columns; rows from before have none of it."""
    for table, columns in (("experiments", _EXPERIMENTS), ("looks", _LOOKS)):
        for name, kind in columns:
            op.add_column(table, sa.Column(name, kind, nullable=True))


def downgrade() -> None:
    """Drop them."""
    for table, columns in (("experiments", _EXPERIMENTS), ("looks", _LOOKS)):
        for name, _ in columns:
            op.drop_column(table, name)
