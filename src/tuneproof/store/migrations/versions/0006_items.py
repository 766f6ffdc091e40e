"""Outcomes of a unit's items, and covariates of its exposures, for the tests that declare them.

Revision ID: 0006
"""

import sqlalchemy as sa
from alembic import op

from tuneproof.store.types import WholeNumber

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_SUMS = ("m", "mm", "ym", "x", "xx", "xy")


def upgrade() -> None:
    """Add the columns; what is from before counts units and knows no covariate."""
    for table in ("experiments", "deployments", "subjects"):
        op.add_column(table, sa.Column("analysis_unit", sa.Text(), nullable=True))
        op.add_column(table, sa.Column("cuped", sa.Boolean(), nullable=True))
    op.add_column("exposures", sa.Column("covariate", sa.BigInteger(), nullable=True))
    op.add_column("outcomes", sa.Column("item", _NAME, nullable=True))
    for name in ("m", "b_x", "c_x"):
        op.add_column("units", sa.Column(name, sa.BigInteger(), nullable=True))
    for name in _SUMS:
        column: sa.Column[int] = sa.Column(name, WholeNumber(), nullable=False, server_default="0")
        op.add_column("cells", column)


def downgrade() -> None:
    """Drop them."""
    for name in _SUMS:
        op.drop_column("cells", name)
    for name in ("m", "b_x", "c_x"):
        op.drop_column("units", name)
    op.drop_column("outcomes", "item")
    op.drop_column("exposures", "covariate")
    for table in ("experiments", "deployments", "subjects"):
        op.drop_column(table, "analysis_unit")
        op.drop_column(table, "cuped")
