"""Raw events of PostgreSQL by day, and the span of each unit's raw events.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

from tuneproof.store.partitions import partition_existing

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_COLUMNS = ("first_at", "last_at")
_SPANS = """
UPDATE units SET first_at = span.first_at, last_at = span.last_at
FROM (
    SELECT subject, unit, min(at) AS first_at, max(at) AS last_at
    FROM (
        SELECT subject, unit, at FROM exposures UNION ALL SELECT subject, unit, at FROM outcomes
    ) events
    GROUP BY subject, unit
) span
WHERE units.subject = span.subject AND units.unit = span.unit
"""
_PLAIN = """
ALTER TABLE {table} RENAME TO {table}_days;
CREATE TABLE {table} (LIKE {table}_days INCLUDING DEFAULTS);
INSERT INTO {table} SELECT * FROM {table}_days;
DROP TABLE {table}_days;
ALTER TABLE {table} ADD CONSTRAINT pk_{table} PRIMARY KEY (subject, unit, id);
"""


def upgrade() -> None:
    """Move the raw events into partitions; SQLite keeps its tables."""
    for name in _COLUMNS:
        op.add_column("units", sa.Column(name, sa.BigInteger(), nullable=True))
    op.execute(_SPANS)
    if op.get_bind().dialect.name == "postgresql":
        partition_existing(op.get_bind())


def downgrade() -> None:
    """Move them back into plain tables."""
    for name in _COLUMNS:
        op.drop_column("units", name)
    if op.get_bind().dialect.name == "postgresql":
        for table in ("exposures", "outcomes"):
            op.execute(_PLAIN.format(table=table))
        op.create_index("ix_exposures_subject_at", "exposures", ["subject", "at"])
