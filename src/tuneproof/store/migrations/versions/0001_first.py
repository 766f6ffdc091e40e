"""The first schema; raw events by day on PostgreSQL.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

from tuneproof.store.types import Instant, Json, WholeNumber

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

_DIVIDED = ("exposures", "outcomes")
_2000, _2100 = 946_684_800_000_000, 4_102_444_800_000_000
"""Microseconds: the events before and after share a partition each, the days between have own."""


def upgrade() -> None:
    """Make all tables."""
    divided = op.get_bind().dialect.name == "postgresql"
    day = ("at",) if divided else ()  # a key of a divided table has to name the day
    op.create_table(
        "activity",
        sa.Column("seq", _SERIAL, autoincrement=True, nullable=False),
        sa.Column("at", Instant(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", Json, nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_activity")),
    )
    op.create_index(
        op.f("ix_activity_object_id_seq"), "activity", ["object_id", "seq"], unique=False
    )
    op.create_table(
        "cells",
        sa.Column("subject", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hour", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("phase", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("arm", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("exposed", sa.BigInteger(), nullable=False),
        sa.Column("exposed_tokens", WholeNumber(), nullable=False),
        sa.Column("exposed_cost", WholeNumber(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("n_q", sa.BigInteger(), nullable=False),
        sa.Column("y", WholeNumber(), nullable=False),
        sa.Column("yy", WholeNumber(), nullable=False),
        sa.Column("c", WholeNumber(), nullable=False),
        sa.Column("cc", WholeNumber(), nullable=False),
        sa.Column("cy", WholeNumber(), nullable=False),
        sa.Column("t", WholeNumber(), nullable=False),
        sa.Column("tt", WholeNumber(), nullable=False),
        sa.Column("yt", WholeNumber(), nullable=False),
        sa.Column("ct", WholeNumber(), nullable=False),
        sa.Column("q", WholeNumber(), nullable=False),
        sa.Column("qq", WholeNumber(), nullable=False),
        sa.Column("m", WholeNumber(), server_default="0", nullable=False),
        sa.Column("mm", WholeNumber(), server_default="0", nullable=False),
        sa.Column("ym", WholeNumber(), server_default="0", nullable=False),
        sa.Column("x", WholeNumber(), server_default="0", nullable=False),
        sa.Column("xx", WholeNumber(), server_default="0", nullable=False),
        sa.Column("xy", WholeNumber(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("subject", "hour", "phase", "arm", name=op.f("pk_cells")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "counters",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("day", sa.Text(), nullable=False),
        sa.Column("last", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "day", name=op.f("pk_counters")),
    )
    op.create_table(
        "deployments",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("pipeline", sa.Text(), nullable=False),
        sa.Column("tasks", Json, nullable=False),
        sa.Column("ab_test_id", sa.Text(), nullable=True),
        sa.Column("version_id", sa.Text(), nullable=True),
        sa.Column("candidate", Json, nullable=False),
        sa.Column("previous", Json, nullable=False),
        sa.Column("plan", Json, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("share", sa.Double(), nullable=False),
        sa.Column("salt", sa.Text(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("step_started_at", Instant(), nullable=True),
        sa.Column("next_at", Instant(), nullable=True),
        sa.Column("ended_at", Instant(), nullable=True),
        sa.Column("cause", sa.Text(), nullable=True),
        sa.Column("evidence", Json, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("declaration", Json, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployments")),
    )
    op.create_index(op.f("ix_deployments_created_at"), "deployments", ["created_at"], unique=False)
    op.create_index(
        op.f("ix_deployments_pipeline_created_at"),
        "deployments",
        ["pipeline", "created_at"],
        unique=False,
    )
    op.create_index(op.f("ix_deployments_run_id"), "deployments", ["run_id"], unique=False)
    op.create_table(
        "engagement",
        sa.Column("subject", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hour", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("phase", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("arm", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("bucket", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "subject", "hour", "phase", "arm", "bucket", name=op.f("pk_engagement")
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "experiments",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("pipeline", sa.Text(), nullable=False),
        sa.Column("tasks", Json, nullable=False),
        sa.Column("baseline", Json, nullable=False),
        sa.Column("candidate", Json, nullable=False),
        sa.Column("declaration", Json, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("start_at", Instant(), nullable=False),
        sa.Column("end_at", Instant(), nullable=False),
        sa.Column("looks", sa.Integer(), server_default="0", nullable=False),
        sa.Column("verdict", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("alpha", sa.Double(), nullable=True),
        sa.Column("retest", sa.Integer(), nullable=False),
        sa.Column("identity", Json, nullable=False),
        sa.Column("family", sa.Text(), nullable=False),
        sa.Column("lane", sa.Integer(), nullable=False),
        sa.Column("lanes", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_experiments")),
    )
    op.create_index(op.f("ix_experiments_family"), "experiments", ["family"], unique=False)
    op.create_index(
        op.f("ix_experiments_pipeline_start_at"),
        "experiments",
        ["pipeline", "start_at"],
        unique=False,
    )
    op.create_index(op.f("ix_experiments_run_id"), "experiments", ["run_id"], unique=False)
    op.create_index(op.f("ix_experiments_start_at"), "experiments", ["start_at"], unique=False)
    op.create_table(
        "exposures",
        sa.Column("subject", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("unit", _NAME, nullable=False),
        sa.Column("id", _NAME, nullable=False),
        sa.Column("phase", sa.Integer(), nullable=False),
        sa.Column("arm", sa.SmallInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("latency_us", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Boolean(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_nano", sa.BigInteger(), nullable=False),
        sa.Column("attributes", Json, nullable=True),
        sa.Column("covariate", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("subject", "unit", "id", *day, name=op.f("pk_exposures")),
        postgresql_partition_by="RANGE (at)",
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_exposures_subject_at"), "exposures", ["subject", "at"], unique=False)
    op.create_table(
        "idempotency",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request_hash", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", Json, nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_idempotency")),
    )
    op.create_index(op.f("ix_idempotency_created_at"), "idempotency", ["created_at"], unique=False)
    op.create_table(
        "meta",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", Json, nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_meta")),
    )
    op.create_table(
        "outbox",
        sa.Column("id", _SERIAL, autoincrement=True, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("payload", Json, nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at", Instant(), nullable=False),
        sa.Column("delivered_at", Instant(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
        sa.UniqueConstraint("key", name=op.f("uq_outbox_key")),
    )
    op.create_index(
        op.f("ix_outbox_delivered_at_run_id"), "outbox", ["delivered_at", "run", "id"], unique=False
    )
    op.create_table(
        "outcomes",
        sa.Column("subject", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("unit", _NAME, nullable=False),
        sa.Column("id", _NAME, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("y", sa.BigInteger(), nullable=False),
        sa.Column("quality", sa.BigInteger(), nullable=True),
        sa.Column("item", _NAME, nullable=True),
        sa.PrimaryKeyConstraint("subject", "unit", "id", *day, name=op.f("pk_outcomes")),
        postgresql_partition_by="RANGE (at)",
        sqlite_with_rowid=False,
    )
    op.create_table(
        "phases",
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("share", sa.Double(), nullable=False),
        sa.Column("at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("subject", "number", name=op.f("pk_phases")),
    )
    op.create_table(
        "requests",
        sa.Column("subject", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hour", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("phase", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("arm", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("bucket", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("latency_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "subject", "hour", "phase", "arm", "bucket", name=op.f("pk_requests")
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "routing",
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("baseline", Json, nullable=False),
        sa.Column("lanes", Json, nullable=False),
        sa.Column("salt", sa.Text(), nullable=False),
        sa.Column("phase", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("updated_at", Instant(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("task", name=op.f("pk_routing")),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("pipeline", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("current_stage", sa.Text(), nullable=True),
        sa.Column("config", Json, nullable=False),
        sa.Column("arguments", Json, nullable=False),
        sa.Column("stages", Json, nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("error", Json, nullable=True),
        sa.Column("result", Json, nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("updated_at", Instant(), nullable=False),
        sa.Column("ended_at", Instant(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_index(op.f("ix_runs_created_at"), "runs", ["created_at"], unique=False)
    op.create_index(
        op.f("ix_runs_pipeline_created_at"), "runs", ["pipeline", "created_at"], unique=False
    )
    op.create_table(
        "schedule",
        sa.Column("pipeline", sa.Text(), nullable=False),
        sa.Column("last_tick", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("pipeline", name=op.f("pk_schedule")),
    )
    op.create_table(
        "scores",
        sa.Column("subject", sa.BigInteger(), autoincrement=False, nullable=False),
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
        sa.PrimaryKeyConstraint("subject", "unit", "task", name=op.f("pk_scores")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_scores_state_due_at"), "scores", ["state", "due_at"], unique=False)
    op.create_table(
        "scoring_days",
        sa.Column("pipeline", sa.Text(), nullable=False),
        sa.Column("day", sa.Text(), nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.Column("cost_nano", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pipeline", "day", name=op.f("pk_scoring_days")),
    )
    op.create_table(
        "subjects",
        sa.Column("key", _SERIAL, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("purged_at", Instant(), nullable=True),
        sa.Column("counts_items", sa.Boolean(), nullable=False),
        sa.Column("adjusts", sa.Boolean(), nullable=False),
        sa.Column("looked_at", Instant(), nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_subjects")),
        sa.UniqueConstraint("id", name=op.f("uq_subjects_id")),
    )
    op.create_table(
        "tokens",
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scopes", Json, nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("revoked_at", Instant(), nullable=True),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_tokens")),
        sa.UniqueConstraint("name", name=op.f("uq_tokens_name")),
    )
    op.create_table(
        "units",
        sa.Column("subject", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("unit", _NAME, nullable=False),
        sa.Column("b_at", sa.BigInteger(), nullable=True),
        sa.Column("b_id", _NAME, nullable=True),
        sa.Column("b_phase", sa.Integer(), nullable=True),
        sa.Column("b_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("b_cost", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("c_at", sa.BigInteger(), nullable=True),
        sa.Column("c_id", _NAME, nullable=True),
        sa.Column("c_phase", sa.Integer(), nullable=True),
        sa.Column("c_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("c_cost", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("y_at", sa.BigInteger(), nullable=True),
        sa.Column("y_id", _NAME, nullable=True),
        sa.Column("y", sa.BigInteger(), nullable=True),
        sa.Column("quality", sa.BigInteger(), nullable=True),
        sa.Column("m", sa.BigInteger(), nullable=True),
        sa.Column("b_x", sa.BigInteger(), nullable=True),
        sa.Column("c_x", sa.BigInteger(), nullable=True),
        sa.Column("first_at", sa.BigInteger(), nullable=True),
        sa.Column("last_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("subject", "unit", name=op.f("pk_units")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "versions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("pipeline", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=True),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("training_job_id", sa.Text(), nullable=True),
        sa.Column("dataset_hash", sa.Text(), nullable=True),
        sa.Column("tasks", Json, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("trained_tokens", sa.BigInteger(), nullable=True),
        sa.Column("heldout_loss", sa.Double(), nullable=True),
        sa.Column("base_heldout_loss", sa.Double(), nullable=True),
        sa.Column("parent_id", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_versions")),
        sa.UniqueConstraint("pipeline", "version", name=op.f("uq_versions_pipeline_version")),
    )
    op.create_index(op.f("ix_versions_model_id"), "versions", ["model_id"], unique=False)
    op.create_index(
        op.f("ix_versions_pipeline_created_at"),
        "versions",
        ["pipeline", "created_at"],
        unique=False,
    )
    op.create_index(op.f("ix_versions_run_id"), "versions", ["run_id"], unique=False)
    op.create_table(
        "deployment_history",
        sa.Column("seq", _SERIAL, autoincrement=True, nullable=False),
        sa.Column("deployment_id", sa.Text(), nullable=False),
        sa.Column("at", Instant(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", Json, nullable=False),
        sa.ForeignKeyConstraint(
            ["deployment_id"], ["deployments.id"], name=op.f("fk_deployment_history_deployment_id")
        ),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_deployment_history")),
    )
    op.create_index(
        op.f("ix_deployment_history_deployment_id_seq"),
        "deployment_history",
        ["deployment_id", "seq"],
        unique=False,
    )
    op.create_table(
        "looks",
        sa.Column("experiment_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("at", Instant(), nullable=False),
        sa.Column("matured_before", Instant(), nullable=False),
        sa.Column("declared", sa.Boolean(), nullable=False),
        sa.Column("is_significant", sa.Boolean(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("lift", sa.Double(), nullable=True),
        sa.Column("lower", sa.Double(), nullable=True),
        sa.Column("upper", sa.Double(), nullable=True),
        sa.Column("p_value", sa.Double(), nullable=True),
        sa.Column("cost_gain", sa.Double(), nullable=True),
        sa.Column("baseline", Json, nullable=False),
        sa.Column("candidate", Json, nullable=False),
        sa.Column("inputs", Json, nullable=False),
        sa.Column("alpha", sa.Double(), nullable=True),
        sa.Column("standard_error", sa.Double(), nullable=True),
        sa.Column("expected", Json, nullable=True),
        sa.Column("halves", Json, nullable=True),
        sa.Column("criteria", Json, nullable=True),
        sa.Column("segments", Json, nullable=True),
        sa.Column("reweighted", Json, nullable=True),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiments.id"], name=op.f("fk_looks_experiment_id")
        ),
        sa.PrimaryKeyConstraint("experiment_id", "number", name=op.f("pk_looks")),
    )
    # ### end Alembic commands ###
    if divided:
        for table in _DIVIDED:
            op.execute(
                f"CREATE TABLE {table}_past PARTITION OF {table} "
                f"FOR VALUES FROM (MINVALUE) TO ({_2000})"
            )
            op.execute(
                f"CREATE TABLE {table}_future PARTITION OF {table} "
                f"FOR VALUES FROM ({_2100}) TO (MAXVALUE)"
            )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("looks")
    op.drop_table("deployment_history")
    op.drop_table("versions")
    op.drop_table("units")
    op.drop_table("tokens")
    op.drop_table("subjects")
    op.drop_table("scoring_days")
    op.drop_table("scores")
    op.drop_table("schedule")
    op.drop_table("runs")
    op.drop_table("routing")
    op.drop_table("requests")
    op.drop_table("phases")
    op.drop_table("outcomes")
    op.drop_table("outbox")
    op.drop_table("meta")
    op.drop_table("idempotency")
    op.drop_table("exposures")
    op.drop_table("experiments")
    op.drop_table("engagement")
    op.drop_table("deployments")
    op.drop_table("counters")
    op.drop_table("cells")
    op.drop_table("activity")
