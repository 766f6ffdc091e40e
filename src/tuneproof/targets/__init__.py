"""Places besides our own router that must learn of a new share or model.

Each is a `tuneproof.rollout.Target`: `apply` is idempotent, `observe` reads back what is really
there. They know Kubernetes, Istio, HTTP and files, and neither the store nor the provider.

Which model a place can express decides what it gets: an Istio VirtualService gets weights; a
webhook the whole routing; an env file or a ConfigMap gets `HOOK_MODEL` (one model, which
becomes the candidate once its share reaches `switch_at`) and, for applications that can
split, `HOOK_CANDIDATE_MODEL`, `HOOK_CANDIDATE_SHARE` and `HOOK_SALT`.
"""

from __future__ import annotations

from tuneproof.targets.cluster import Cluster
from tuneproof.targets.config_map import ConfigMapTarget
from tuneproof.targets.env_file import EnvFileTarget
from tuneproof.targets.istio import IstioTarget
from tuneproof.targets.opening import open_target
from tuneproof.targets.variables import SWITCH_AT, variables
from tuneproof.targets.webhook import WebhookTarget

__all__ = [
    "SWITCH_AT",
    "Cluster",
    "ConfigMapTarget",
    "EnvFileTarget",
    "IstioTarget",
    "WebhookTarget",
    "open_target",
    "variables",
]
