"""How many units' tokens and costs are unknown, which counted as 0.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op

from tuneproof.store.types import WholeNumber

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_SUMS = ("n_uc", "y_uc", "yy_uc", "n_uu", "t_uu", "tt_uu", "c_uu", "cc_uu")


def upgrade() -> None:
    """Add the sums: 0, since what was kept as 0 until now stays 0."""
    for name in _SUMS:
        column = sa.Column(name, WholeNumber, nullable=False, server_default="0")
        op.add_column("cells", column)
