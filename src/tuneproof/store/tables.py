"""Every table of the store, once: queries and migrations read this page.

Events and what is kept up from them:

    exposures ─┐                     ┌─ cells       one row an hour, phase and arm: sums over units
               ├─ units (the truth) ─┤
    outcomes  ─┘                     └─ engagement  histogram of the units' outcomes
    exposures ───────────────────────── requests    every request, by hour, arm and latency bucket

`key` of `subjects` stands for the long id of an experiment or rollout in all of them.
Outcomes are billionths of their unit, cost is in billionths of a dollar: integers, so that
sums do not depend on the order in which events came. (A millionth of a dollar would be a
tenth of what a cheap model's hook costs.) Tokens and costs that nobody told are -1, of an exposure
and of a unit that has such an exposure. In these tables `at` is in microseconds and `hour` in
hours, both from 1970-01-01T00:00Z; rollups also hold whole days, under a negative `hour`
(`sums.day_of`), so that a look reads few rows. On PostgreSQL exposures and outcomes are divided by
day (`partitions`), so `at` is part of their key there; a unit's `first_at` and `last_at` say
between which instants all its raw events lie, so that an event is looked for in few of the days.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
)

from tuneproof.store.types import Instant, Json, WholeNumber

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# An INTEGER primary key is SQLite's row id; PostgreSQL wants 64 bits.
_Serial = BigInteger().with_variant(Integer(), "sqlite")

# Names that come from outside sort by code point everywhere, as they do in Python.
_Name = Text().with_variant(Text(collation="C"), "postgresql")

counters = Table(
    "counters",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("day", Text, primary_key=True),
    Column("last", Integer, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("pipeline", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("current_stage", Text),
    Column("config", Json, nullable=False),
    Column("arguments", Json, nullable=False),
    Column("stages", Json, nullable=False),
    Column("reason", Text),
    Column("error", Json),
    Column("result", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("ended_at", Instant),
    Column("version", Integer, nullable=False),
    Index(None, "pipeline", "created_at"),
    Index(None, "created_at"),
)

versions = Table(
    "versions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("pipeline", Text, nullable=False),
    Column("run_id", Text),
    Column("version", Text, nullable=False),
    Column("model_id", Text),
    Column("base_model", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("training_job_id", Text),
    Column("dataset_hash", Text),
    Column("tasks", Json, nullable=False),
    Column("status", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("trained_tokens", BigInteger),
    Column("heldout_loss", Double),
    Column("base_heldout_loss", Double),
    Column("parent_id", Text),
    Column("prompt", Text),
    Column("recipe", Text),
    UniqueConstraint("pipeline", "version"),
    Index(None, "pipeline", "created_at"),
    Index(None, "model_id"),
    Index(None, "run_id"),
)

prompts = Table(
    "prompts",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("content", Text, nullable=False),
    Column("parent", Text),
    Column("origin", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
)

subjects = Table(
    "subjects",
    metadata,
    Column("key", _Serial, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("purged_at", Instant),
    Column("counts_items", Boolean, nullable=False),
    Column("adjusts", Boolean, nullable=False),
    Column("looked_at", Instant),
    Column("absent", Text),
    Column("cap", BigInteger),
)

experiments = Table(
    "experiments",
    metadata,
    Column("id", Text, primary_key=True),
    Column("run_id", Text),
    Column("pipeline", Text, nullable=False),
    Column("tasks", Json, nullable=False),
    Column("baseline", Json, nullable=False),
    Column("candidate", Json, nullable=False),
    Column("declaration", Json, nullable=False),
    Column("status", Text, nullable=False),
    Column("start_at", Instant, nullable=False),
    Column("end_at", Instant, nullable=False),
    Column("looks", Integer, nullable=False, server_default="0"),
    Column("verdict", Text),
    Column("reason", Text),
    Column("alpha", Double),
    Column("retest", Integer, nullable=False),
    Column("identity", Json, nullable=False),
    Column("family", Text, nullable=False),
    Column("lane", Integer, nullable=False),
    Column("lanes", Integer, nullable=False),
    Index(None, "pipeline", "start_at"),
    Index(None, "start_at"),
    Index(None, "run_id"),
    Index(None, "family"),
)

phases = Table(
    "phases",
    metadata,
    Column("subject", Text, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("share", Double, nullable=False),
    Column("at", Instant, nullable=False),
)

looks = Table(
    "looks",
    metadata,
    Column("experiment_id", Text, ForeignKey("experiments.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("at", Instant, nullable=False),
    Column("matured_before", Instant, nullable=False),
    Column("declared", Boolean, nullable=False),
    Column("is_significant", Boolean, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("lift", Double),
    Column("lower", Double),
    Column("upper", Double),
    Column("p_value", Double),
    Column("cost_gain", Double),
    Column("baseline", Json, nullable=False),
    Column("candidate", Json, nullable=False),
    Column("inputs", Json, nullable=False),
    Column("alpha", Double),
    Column("standard_error", Double),
    Column("expected", Json),
    Column("halves", Json),
    Column("criteria", Json),
    Column("segments", Json),
    Column("reweighted", Json),
)

exposures = Table(
    "exposures",
    metadata,
    Column("subject", BigInteger, primary_key=True, autoincrement=False),
    Column("unit", _Name, primary_key=True),
    Column("id", _Name, primary_key=True),
    Column("phase", Integer, nullable=False),
    Column("arm", SmallInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("task", Text, nullable=False),
    Column("latency_us", BigInteger),
    Column("error", Boolean, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("cost_nano", BigInteger, nullable=False),
    Column("attributes", Json),
    Column("covariate", BigInteger),
    Index(None, "subject", "at"),
    sqlite_with_rowid=False,
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("subject", BigInteger, primary_key=True, autoincrement=False),
    Column("unit", _Name, primary_key=True),
    Column("id", _Name, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("y", BigInteger, nullable=False),
    Column("quality", BigInteger),
    Column("item", _Name),
    sqlite_with_rowid=False,
)

# b_… is what is known of the unit in the baseline arm, c_… in the candidate arm.
units = Table(
    "units",
    metadata,
    Column("subject", BigInteger, primary_key=True, autoincrement=False),
    Column("unit", _Name, primary_key=True),
    Column("b_at", BigInteger),
    Column("b_id", _Name),
    Column("b_phase", Integer),
    Column("b_tokens", BigInteger, nullable=False, server_default="0"),
    Column("b_cost", BigInteger, nullable=False, server_default="0"),
    Column("c_at", BigInteger),
    Column("c_id", _Name),
    Column("c_phase", Integer),
    Column("c_tokens", BigInteger, nullable=False, server_default="0"),
    Column("c_cost", BigInteger, nullable=False, server_default="0"),
    Column("y_at", BigInteger),
    Column("y_id", _Name),
    Column("y", BigInteger),
    Column("quality", BigInteger),
    Column("m", BigInteger),
    Column("b_x", BigInteger),
    Column("c_x", BigInteger),
    Column("first_at", BigInteger),
    Column("last_at", BigInteger),
    sqlite_with_rowid=False,
)

SUMS = ("y", "yy", "c", "cc", "cy", "t", "tt", "yt", "ct", "q", "qq")
"""Sums over units with an outcome: y outcome, c cost, t tokens, q quality; pairs are products."""

DECLARED_SUMS = ("m", "mm", "ym", "x", "xx", "xy")
"""The same of m items and x covariate, for the tests that declare them; else 0."""

UNKNOWN_SUMS = ("n_uc", "y_uc", "yy_uc", "n_uu", "t_uu", "tt_uu", "c_uu", "cc_uu")
"""Of the units with an outcome: those whose cost is unknown (uc), and those of whose usage, tokens
and cost, something is (uu). What is not known adds 0 to every sum; these say how much to leave out.
"""

cells = Table(
    "cells",
    metadata,
    Column("subject", BigInteger, primary_key=True, autoincrement=False),
    Column("hour", Integer, primary_key=True, autoincrement=False),
    Column("phase", Integer, primary_key=True, autoincrement=False),
    Column("arm", SmallInteger, primary_key=True, autoincrement=False),
    Column("exposed", BigInteger, nullable=False),
    Column("exposed_tokens", WholeNumber, nullable=False),
    Column("exposed_cost", WholeNumber, nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("n_q", BigInteger, nullable=False),
    *(Column(name, WholeNumber, nullable=False) for name in SUMS),
    *(Column(name, WholeNumber, nullable=False, server_default="0") for name in DECLARED_SUMS),
    *(Column(name, WholeNumber, nullable=False, server_default="0") for name in UNKNOWN_SUMS),
    sqlite_with_rowid=False,
)

engagement = Table(
    "engagement",
    metadata,
    Column("subject", BigInteger, primary_key=True, autoincrement=False),
    Column("hour", Integer, primary_key=True, autoincrement=False),
    Column("phase", Integer, primary_key=True, autoincrement=False),
    Column("arm", SmallInteger, primary_key=True, autoincrement=False),
    Column("bucket", Integer, primary_key=True, autoincrement=False),
    Column("n", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

requests = Table(
    "requests",
    metadata,
    Column("subject", BigInteger, primary_key=True, autoincrement=False),
    Column("hour", Integer, primary_key=True, autoincrement=False),
    Column("phase", Integer, primary_key=True, autoincrement=False),
    Column("arm", SmallInteger, primary_key=True, autoincrement=False),
    Column("bucket", Integer, primary_key=True, autoincrement=False),
    Column("n", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("latency_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

deployments = Table(
    "deployments",
    metadata,
    Column("id", Text, primary_key=True),
    Column("run_id", Text),
    Column("pipeline", Text, nullable=False),
    Column("tasks", Json, nullable=False),
    Column("ab_test_id", Text),
    Column("version_id", Text),
    Column("candidate", Json, nullable=False),
    Column("previous", Json, nullable=False),
    Column("plan", Json, nullable=False),
    Column("state", Text, nullable=False),
    Column("step", Integer, nullable=False),
    Column("share", Double, nullable=False),
    Column("salt", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("step_started_at", Instant),
    Column("next_at", Instant),
    Column("ended_at", Instant),
    Column("cause", Text),
    Column("evidence", Json, nullable=False),
    Column("version", Integer, nullable=False),
    Column("declaration", Json, nullable=False),
    Index(None, "pipeline", "created_at"),
    Index(None, "created_at"),
    Index(None, "run_id"),
)

deployment_history = Table(
    "deployment_history",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("deployment_id", Text, ForeignKey("deployments.id"), nullable=False),
    Column("at", Instant, nullable=False),
    Column("kind", Text, nullable=False),
    Column("who", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("detail", Json, nullable=False),
    Index(None, "deployment_id", "seq"),
)

routing = Table(
    "routing",
    metadata,
    Column("task", Text, primary_key=True),
    Column("baseline", Json, nullable=False),
    Column("lanes", Json, nullable=False),
    Column("salt", Text, nullable=False),
    Column("phase", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("cause", Text, nullable=False),
    Column("previous", Json),
)

# Answers to be scored, at most one of each unit and task. The texts go when a score comes.
scores = Table(
    "scores",
    metadata,
    Column("subject", BigInteger, primary_key=True, autoincrement=False),
    Column("unit", _Name, primary_key=True),
    Column("task", _Name, primary_key=True),
    Column("pipeline", Text, nullable=False),
    Column("arm", SmallInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("queued_at", BigInteger, nullable=False),
    Column("messages", Json),
    Column("text", Text),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due_at", BigInteger, nullable=False),
    Column("scorer", Text),
    Column("score", Double),
    Column("reason", Text),
    Column("ended_at", BigInteger),
    Index(None, "state", "due_at"),
    sqlite_with_rowid=False,
)

# What people said of answers, in words; they go with the raw events.
comments = Table(
    "comments",
    metadata,
    Column("subject", BigInteger, primary_key=True, autoincrement=False),
    Column("unit", _Name, primary_key=True),
    Column("id", _Name, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("text", Text, nullable=False),
    Index(None, "subject", "at"),
    sqlite_with_rowid=False,
)

# What scoring took of a pipeline's budget on a day (UTC), calls that a kill cut off included; and
# what a search for a prompt took of its recipe's, with RUN/recipe-N as pipeline, "in all" as day.
scoring_days = Table(
    "scoring_days",
    metadata,
    Column("pipeline", Text, primary_key=True),
    Column("day", Text, primary_key=True),
    Column("calls", BigInteger, nullable=False),
    Column("cost_nano", BigInteger, nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("key", Text, nullable=False, unique=True),
    Column("run", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("payload", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due_at", Instant, nullable=False),
    Column("delivered_at", Instant),
    Column("last_error", Text),
    Index(None, "delivered_at", "run", "id"),
)

activity = Table(
    "activity",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("at", Instant, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("object_id", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("detail", Json, nullable=False),
    Index(None, "object_id", "seq"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("scopes", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("revoked_at", Instant),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("key", Text, primary_key=True),
    Column("request_hash", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("body", Json),
    Column("created_at", Instant, nullable=False),
    Index(None, "created_at"),
)

schedule = Table(
    "schedule",
    metadata,
    Column("pipeline", Text, primary_key=True),
    Column("last_tick", Instant, nullable=False),
)

meta = Table(
    "meta",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Json),
)
