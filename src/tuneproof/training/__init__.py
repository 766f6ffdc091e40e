"""Training: from a dataset to a version, over the wire of a fine-tuning provider.

`records` says what a provider can do, not who it is; `preflight` asks before anything is
spent; `costs` counts tokens and money, `durations` time; `trainer` uploads, creates and follows a
job, `progress` says how far it is and whether it stands still; `search` says which
hyperparameters to try. Never touches a database.
"""

from tuneproof.training.costs import (
    CostEstimate,
    Price,
    cost_of_training,
    count_file,
    count_messages,
    estimate_training,
)
from tuneproof.training.durations import (
    TimeEstimate,
    TrainingTime,
    duration,
    estimate_time,
    size_b,
)
from tuneproof.training.preflight import Catalogue, Prober, TrainingReadiness, find_model, preflight
from tuneproof.training.progress import JobProgress, JobWatch
from tuneproof.training.records import (
    Answers,
    Completion,
    Deploys,
    Embeds,
    Job,
    JobEvent,
    JobRequest,
    JobStatus,
    ListsNewestEvents,
    ModelInfo,
    ModelVersion,
    Moderates,
    Provider,
    ReadsFiles,
    Score,
    VersionStatus,
)
from tuneproof.training.search import Trial, suggest, trials
from tuneproof.training.trainer import (
    MAX_SUFFIX,
    RUN_KEY,
    ModelTrainer,
    new_version_id,
)

__all__ = [
    "MAX_SUFFIX",
    "RUN_KEY",
    "Answers",
    "Catalogue",
    "Completion",
    "CostEstimate",
    "Deploys",
    "Embeds",
    "Job",
    "JobEvent",
    "JobProgress",
    "JobRequest",
    "JobStatus",
    "JobWatch",
    "ListsNewestEvents",
    "ModelInfo",
    "ModelTrainer",
    "ModelVersion",
    "Moderates",
    "Price",
    "Prober",
    "Provider",
    "ReadsFiles",
    "Score",
    "TimeEstimate",
    "TrainingReadiness",
    "TrainingTime",
    "Trial",
    "VersionStatus",
    "cost_of_training",
    "count_file",
    "count_messages",
    "duration",
    "estimate_time",
    "estimate_training",
    "find_model",
    "new_version_id",
    "preflight",
    "size_b",
    "suggest",
    "trials",
]
