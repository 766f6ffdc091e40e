"""Experiments: the online test of a candidate against a baseline, looked at every hour.

Assignment is `assignment.py`, the arithmetic is `stats/`; this stage declares the test
(`evaluator`), judges what came of it (`judge`), and knows no database and no wire.
"""

from tuneproof.experiments.evaluator import ExperimentStore, ModelEvaluator, model_ref
from tuneproof.experiments.judge import broken_split, harmful_requests, judge
from tuneproof.experiments.records import (
    ABTest,
    Arm,
    ArmMetrics,
    Cell,
    Criteria,
    EvaluationResult,
    Evidence,
    ExperimentStatus,
    Exposure,
    Ingested,
    Look,
    ModelRef,
    Outcome,
    Requests,
    Verdict,
)

__all__ = [
    "ABTest",
    "Arm",
    "ArmMetrics",
    "Cell",
    "Criteria",
    "EvaluationResult",
    "Evidence",
    "ExperimentStatus",
    "ExperimentStore",
    "Exposure",
    "Ingested",
    "Look",
    "ModelEvaluator",
    "ModelRef",
    "Outcome",
    "Requests",
    "Verdict",
    "broken_split",
    "harmful_requests",
    "judge",
    "model_ref",
]
