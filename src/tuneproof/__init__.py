"""TuneProof: your production outcomes train your next model, and no model reaches all your
users before it has proven itself.

The modules, in the order in which data flows:

    collection    posts, from SQL tables, Parquet or CSV files, become examples
    curation      examples become a dataset, named by its content
    training      a dataset becomes a version, over the wire of a fine-tuning provider
    evaluation    the gate: the offline check before any user sees a version
    experiments   the online test against the model in use, looked at every hour
    rollout       the stepwise move of traffic, its guardrails, and the way back
    pipeline      all of it as one durable run
    app           the use cases; `server`, `cli` and `kubernetes` are its faces, `client` is what
                  your application imports
    blocking      the components again, with methods that block

Below them: `workflow` (durable steps), `standalone`, `stats`, `resilience`, `settings`,
`assignment`, `errors`. Beside them: `store`, `sources`, `providers`, `targets`, `tracking`,
`telemetry`, `cache`, `testing`. Names are loaded when they are first used, so an application that
only chooses a model pays for nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuneproof.app import App
    from tuneproof.client import AsyncClient, Client
    from tuneproof.collection import DataCollector, TrainingDataBatch
    from tuneproof.errors import TuneProofError
    from tuneproof.experiments import ABTest, EvaluationResult, ModelEvaluator
    from tuneproof.kubernetes import KubernetesOptimizedPipeline
    from tuneproof.pipeline import FineTuningPipeline, PipelineResult
    from tuneproof.resilience import CircuitBreaker, ConnectionPoolManager
    from tuneproof.rollout import DeploymentManager, DeploymentResult, RollbackResult
    from tuneproof.settings import PipelineConfig, Settings
    from tuneproof.tracking import MLflowExperimentTracker, MLflowModelRegistry
    from tuneproof.training import ModelTrainer, ModelVersion

__version__ = "0.2.0"

_WHERE = {
    "ABTest": "experiments",
    "App": "app",
    "AsyncClient": "client",
    "CircuitBreaker": "resilience",
    "Client": "client",
    "ConnectionPoolManager": "resilience",
    "DataCollector": "collection",
    "DeploymentManager": "rollout",
    "DeploymentResult": "rollout",
    "EvaluationResult": "experiments",
    "FineTuningPipeline": "pipeline",
    "KubernetesOptimizedPipeline": "kubernetes",
    "MLflowExperimentTracker": "tracking",
    "MLflowModelRegistry": "tracking",
    "ModelEvaluator": "experiments",
    "ModelTrainer": "training",
    "ModelVersion": "training",
    "PipelineConfig": "settings",
    "PipelineResult": "pipeline",
    "RollbackResult": "rollout",
    "Settings": "settings",
    "TrainingDataBatch": "collection",
    "TuneProofError": "errors",
}

__all__ = [
    "ABTest",
    "App",
    "AsyncClient",
    "CircuitBreaker",
    "Client",
    "ConnectionPoolManager",
    "DataCollector",
    "DeploymentManager",
    "DeploymentResult",
    "EvaluationResult",
    "FineTuningPipeline",
    "KubernetesOptimizedPipeline",
    "MLflowExperimentTracker",
    "MLflowModelRegistry",
    "ModelEvaluator",
    "ModelTrainer",
    "ModelVersion",
    "PipelineConfig",
    "PipelineResult",
    "RollbackResult",
    "Settings",
    "TrainingDataBatch",
    "TuneProofError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'tuneproof' has no attribute {name!r}")
    value = getattr(import_module(f"tuneproof.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
