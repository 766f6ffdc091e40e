"""Outcomes of a unit's items, and covariates of its exposures, for the tests that declare them.

Revision ID: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; what is from before counts units and knows no covariate."""
    for table in ("experiments", "deployments", "subjects"):
        op.add_column(table, sa.Column("analysis_unit", sa.Text(), nullable=True))
        op.add_column(table, sa.Column("cuped", sa.Boolean(), nullable=True))


def downgrade() -> None:
    """Drop them."""
    for table in ("experiments", "deployments", "subjects"):
        op.drop_column(table, "analysis_unit")
        op.drop_column(table, "cuped")
