"""Records for tests of the store."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tuneproof.experiments import (
    ABTest,
    ArmMetrics,
    ExperimentStatus,
    Look,
    Variant,
    Verdict,
)
from tuneproof.rollout import Deployment, DeploymentState, Plan
from tuneproof.settings import Declaration
from tuneproof.training import ModelVersion, VersionStatus

T0 = datetime(2025, 1, 20, 10, 0, tzinfo=UTC)


def experiment(id: str = "ab-test-20250120-001", **changes: Any) -> ABTest:
    """A test; `changes` are of its declaration or of the test itself."""
    told = {k: changes.pop(k) for k in list(changes) if k in Declaration.__dataclass_fields__}
    return replace(
        ABTest(
            id=id,
            run_id="ft-pipeline-20250120-001",
            pipeline="default",
            tasks=("hook", "body"),
            baseline=Variant(model_id="base"),
            candidate=Variant(model_id="ft:base:1", version="ver-1"),
            declaration=Declaration(**{"traffic_split": 0.1, **told}),
            family=id,
            status=ExperimentStatus.RUNNING,
            start_at=T0,
            end_at=T0 + timedelta(hours=168),
        ),
        **changes,
    )


def look(id: str, number: int, **changes: Any) -> Look:
    return replace(
        Look(
            experiment_id=id,
            number=number,
            at=T0 + timedelta(hours=number),
            matured_before=T0,
            baseline=ArmMetrics(sample_size=100, engagement_rate=0.1),
            candidate=ArmMetrics(),
            lift=0.1 + 0.2,
            lower=None,
            upper=None,
            p_value=0.04,
            cost_gain=None,
            is_significant=False,
            declared=False,
            method="log-ratio",
            verdict=Verdict.CONTINUE,
            reason="too early",
            inputs={"n": [1, 2]},
        ),
        **changes,
    )


def deployment(id: str = "deploy-20250120-001", **changes: Any) -> Deployment:
    """A rollout; `changes` are of its declaration or of the rollout itself."""
    told = {k: changes.pop(k) for k in list(changes) if k in Declaration.__dataclass_fields__}
    return replace(
        Deployment(
            id=id,
            run_id=None,
            pipeline="default",
            tasks=("hook",),
            ab_test_id="ab-test-20250120-001",
            version_id="ver-1",
            candidate=Variant(model_id="ft:base:1", version="ver-1"),
            previous=Variant(model_id="base"),
            plan=Plan(
                strategy="gradual_rollout",
                steps=(0.1, 0.2, 0.95),
                interval_hours=24,
                holdback=0.05,
                holdback_days=14,
            ),
            state=DeploymentState.PENDING,
            step=0,
            share=0.0,
            salt="salt",
            created_at=T0,
            declaration=Declaration(**told),
        ),
        **changes,
    )


def version(id: str = "ver-1", **changes: Any) -> ModelVersion:
    return replace(
        ModelVersion(
            id=id,
            pipeline="default",
            run_id="ft-pipeline-20250120-001",
            version="1.0.0",
            model_id=None,
            base_model="base",
            provider="default",
            training_job_id=None,
            dataset_hash="abc",
            tasks=("hook", "body"),
            status=VersionStatus.TRAINING,
            created_at=T0,
        ),
        **changes,
    )
