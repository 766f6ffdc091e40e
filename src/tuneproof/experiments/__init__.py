"""Experiments: the online test of a candidate against a baseline, looked at every hour.

Assignment is `assignment.py`, the arithmetic is `stats/`; this stage declares the test
(`evaluator`), judges what came of it (`judge`; of several at once `families`), and knows no
database and no wire.
"""

from tuneproof.experiments.declaring import Declared, declare, told_by
from tuneproof.experiments.effect_sizes import EffectSize, effect_size
from tuneproof.experiments.evaluator import ModelEvaluator, variant_of
from tuneproof.experiments.families import largest_split, winner
from tuneproof.experiments.judge import (
    DeclaredLook,
    RequestHarm,
    broken_split,
    candidate_harm,
    harmful_requests,
    judge,
    unlike_absence,
)
from tuneproof.experiments.ledger import Allotment, Spent, allot, identity_of
from tuneproof.experiments.records import (
    ABTest,
    Arm,
    ArmMetrics,
    Cell,
    Comment,
    Criteria,
    Criterion,
    CriterionResult,
    EvaluationResult,
    Evidence,
    ExpectedLift,
    ExperimentStatus,
    Exposure,
    Halves,
    HourRequests,
    Ingested,
    Look,
    Outcome,
    Part,
    RejectedEvent,
    Requests,
    Segment,
    Variant,
    Verdict,
    engagement_metric,
    strata_of,
)
from tuneproof.experiments.store import ExperimentStore

__all__ = [
    "ABTest",
    "Allotment",
    "Arm",
    "ArmMetrics",
    "Cell",
    "Comment",
    "Criteria",
    "Criterion",
    "CriterionResult",
    "Declared",
    "DeclaredLook",
    "EffectSize",
    "EvaluationResult",
    "Evidence",
    "ExpectedLift",
    "ExperimentStatus",
    "ExperimentStore",
    "Exposure",
    "Halves",
    "HourRequests",
    "Ingested",
    "Look",
    "ModelEvaluator",
    "Outcome",
    "Part",
    "RejectedEvent",
    "RequestHarm",
    "Requests",
    "Segment",
    "Spent",
    "Variant",
    "Verdict",
    "allot",
    "broken_split",
    "candidate_harm",
    "declare",
    "effect_size",
    "engagement_metric",
    "harmful_requests",
    "identity_of",
    "judge",
    "largest_split",
    "strata_of",
    "told_by",
    "unlike_absence",
    "variant_of",
    "winner",
]
