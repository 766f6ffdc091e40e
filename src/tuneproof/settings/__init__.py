"""Settings: what the user set, validated, with where it came from. Read once, passed on.

`secrets`, `checks` (rules for values) → `fields` (what is known of one setting) → `declaration`,
`pipelines`, `relay`, `records`, `shadow`, `service` (what can be set) → `measures` (what chooses
and what decides) → `tables` (of the file) →
`environment`, `layers` (what each source sets) → `loading` (`Settings.load` merges arguments,
environment, file, defaults).
Nothing else in TuneProof reads the environment.
"""

from tuneproof.settings.declaration import Declaration, declared_rows
from tuneproof.settings.fields import Option, options
from tuneproof.settings.loading import ADAPTERS, WITHOUT_EFFECT, Settings, resolved
from tuneproof.settings.pipelines import (
    DRIFTS,
    LENGTH,
    OPENINGS,
    STRATEGIES,
    VARIETY,
    PipelineConfig,
    refuse_both,
)
from tuneproof.settings.records import (
    BODY,
    HOOK,
    POST_COLUMNS,
    OutcomeSourceConfig,
    ProviderConfig,
    ScorerConfig,
    SourceConfig,
    TargetConfig,
    TaskConfig,
)
from tuneproof.settings.relay import RelayConfig
from tuneproof.settings.secrets import Options, Secret, Url, WebhookUrl, revealed
from tuneproof.settings.service import (
    AlertsConfig,
    BreakersConfig,
    CacheConfig,
    FilesConfig,
    KubernetesConfig,
    OutgoingConfig,
    RemoteConfig,
    ServerConfig,
    StoreConfig,
    TrackingConfig,
)
from tuneproof.settings.shadow import Shadow

__all__ = [
    "ADAPTERS",
    "BODY",
    "DRIFTS",
    "HOOK",
    "LENGTH",
    "OPENINGS",
    "POST_COLUMNS",
    "STRATEGIES",
    "VARIETY",
    "WITHOUT_EFFECT",
    "AlertsConfig",
    "BreakersConfig",
    "CacheConfig",
    "Declaration",
    "FilesConfig",
    "KubernetesConfig",
    "Option",
    "Options",
    "OutcomeSourceConfig",
    "OutgoingConfig",
    "PipelineConfig",
    "ProviderConfig",
    "RelayConfig",
    "RemoteConfig",
    "ScorerConfig",
    "Secret",
    "ServerConfig",
    "Settings",
    "Shadow",
    "SourceConfig",
    "StoreConfig",
    "TargetConfig",
    "TaskConfig",
    "TrackingConfig",
    "Url",
    "WebhookUrl",
    "declared_rows",
    "options",
    "refuse_both",
    "resolved",
    "revealed",
]
