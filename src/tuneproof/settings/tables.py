"""The tables of `tuneproof.toml`, each with the record that it makes, and what they have in common.

A table is named (`[providers.NAME]`, one record for each name) or single (`[store]`). A setting's
path is its table, the name if there is one, and the field: `providers.default.base_url`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, get_args, get_origin, get_type_hints

from tuneproof.settings.fields import Option, options
from tuneproof.settings.pipelines import PipelineConfig
from tuneproof.settings.records import (
    BODY,
    HOOK,
    OutcomeSourceConfig,
    ProviderConfig,
    ScorerConfig,
    SourceConfig,
    TargetConfig,
    TaskConfig,
)
from tuneproof.settings.relay import RelayConfig
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


def _by_name(*records: Callable[[], Any]) -> Any:
    """A field whose default is these records by their name, made when they are needed."""
    return field(default_factory=lambda: {r.name: r for r in (make() for make in records)})


@dataclass(frozen=True, kw_only=True)
class Tables:
    """What each table says, as its records."""

    pipelines: Mapping[str, PipelineConfig] = _by_name(PipelineConfig)
    tasks: Mapping[str, TaskConfig] = _by_name(lambda: HOOK, lambda: BODY)
    providers: Mapping[str, ProviderConfig] = _by_name(lambda: ProviderConfig(kind="trainer"))
    sources: Mapping[str, SourceConfig] = _by_name(SourceConfig)
    outcome_sources: Mapping[str, OutcomeSourceConfig] = field(default_factory=dict)
    scorers: Mapping[str, ScorerConfig] = field(default_factory=dict)
    targets: Mapping[str, TargetConfig] = field(default_factory=dict)
    store: StoreConfig = field(default_factory=StoreConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    files: FilesConfig = field(default_factory=FilesConfig)
    breakers: BreakersConfig = field(default_factory=BreakersConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    relay: RelayConfig = field(default_factory=RelayConfig)
    alerts: AlertsConfig = field(default_factory=AlertsConfig)
    outgoing: OutgoingConfig = field(default_factory=OutgoingConfig)
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    kubernetes: KubernetesConfig = field(default_factory=KubernetesConfig)


def _tables() -> tuple[dict[str, type[Any]], dict[str, type[Any]]]:
    named: dict[str, type[Any]] = {}
    single: dict[str, type[Any]] = {}
    hints = get_type_hints(Tables)
    for f in dataclasses.fields(Tables):
        if get_origin(hints[f.name]) is Mapping:
            named[f.name] = get_args(hints[f.name])[1]
        else:
            single[f.name] = hints[f.name]
    return named, single


_named, _single = _tables()
NAMED: Mapping[str, type[Any]] = MappingProxyType(_named)
"""Table -> record, one for each name."""
SINGLE: Mapping[str, type[Any]] = MappingProxyType(_single)
"""Table -> record."""


def settings() -> Iterator[tuple[str, Option]]:
    """Each setting that has a usual place, with its path there.

    In a named table that is under the name that its record has by default.
    """
    for table, record in SINGLE.items():
        for option in options(record):
            yield f"{table}.{option.name}", option
    for table, record in NAMED.items():
        name = usual_name(record)
        for option in options(record) if name else ():
            yield f"{table}.{name}.{option.name}", option


def usual_name(record: type[Any]) -> str:
    """The name that a named record has where none is given; empty: it must be given."""
    name = next(option for option in options(record) if option.name == "name")
    return "" if name.required else str(name.default)


def variables() -> dict[str, tuple[str, Option]]:
    """Environment variable -> the path that it sets, and what is known of the setting there."""
    found = {o.env: (path, o) for path, o in settings() if isinstance(o.env, str) and o.env}
    for table, record in NAMED.items():
        for option in options(record):
            if not isinstance(option.env, str):
                for name, variable in option.env.items():
                    found[variable] = (f"{table}.{name}.{option.name}", option)
    return found


def arguments() -> dict[str, str]:
    """Short name of an argument of `Settings.load` -> the path that it sets."""
    return {o.argument: path for path, o in settings() if o.argument}
