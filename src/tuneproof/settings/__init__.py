"""Settings: what the user set, validated, with where it came from. Read once, passed on.

`checks` (rules for values) → `pipelines`, `records` (what can be set) → `environment` (names
of variables) → `loading` (`Settings.load` merges arguments, environment, file, defaults).
Nothing else in TuneProof reads the environment.
"""

from tuneproof.settings.checks import Secret, Url
from tuneproof.settings.loading import ADAPTERS, WITHOUT_EFFECT, Settings, resolved
from tuneproof.settings.pipelines import STRATEGIES, PipelineConfig
from tuneproof.settings.records import (
    BODY,
    HOOK,
    POST_COLUMNS,
    AlertsConfig,
    CacheConfig,
    KubernetesConfig,
    OutcomeSourceConfig,
    ProviderConfig,
    RemoteConfig,
    ScorerConfig,
    ServerConfig,
    SourceConfig,
    StoreConfig,
    TargetConfig,
    TaskConfig,
    TrackingConfig,
)

__all__ = [
    "ADAPTERS",
    "BODY",
    "HOOK",
    "POST_COLUMNS",
    "STRATEGIES",
    "WITHOUT_EFFECT",
    "AlertsConfig",
    "CacheConfig",
    "KubernetesConfig",
    "OutcomeSourceConfig",
    "PipelineConfig",
    "ProviderConfig",
    "RemoteConfig",
    "ScorerConfig",
    "Secret",
    "ServerConfig",
    "Settings",
    "SourceConfig",
    "StoreConfig",
    "TargetConfig",
    "TaskConfig",
    "TrackingConfig",
    "Url",
    "resolved",
]
