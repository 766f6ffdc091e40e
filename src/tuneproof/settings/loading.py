"""`Settings`: everything that was set, merged once from arguments, environment, file, defaults.

Within, a setting is a path (`pipelines.default.traffic_split`, `store.url`) with a value and
an origin; layers are laid over each other by path, then each record is built and validates
itself. Nothing else in the package reads the environment.
"""

from __future__ import annotations

import dataclasses
import os
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tuneproof.errors import ConfigError, InputError
from tuneproof.prompts import Prompt
from tuneproof.settings import checks, environment, layers, tables
from tuneproof.settings.former import fold
from tuneproof.settings.layers import DEFAULT_DIR, Layer
from tuneproof.settings.measures import check_measures
from tuneproof.settings.pipelines import PipelineConfig
from tuneproof.settings.recipes import PROMPT, Recipe
from tuneproof.settings.records import BODY, CLUSTER_KINDS, HOOK, TargetConfig, shown
from tuneproof.settings.secrets import Secret, Url
from tuneproof.settings.shadow import Shadow, shadows_of
from tuneproof.settings.tables import Tables

UNPROMPTED = ("envfile", "configmap", "istio", "webhook")
"""Kinds of targets that tell of models alone, where nothing else is said."""

ADAPTERS: Mapping[str, str] = MappingProxyType(
    {
        "store": "tuneproof.store:open_store",
        "source": "tuneproof.sources:open_source",
        "provider": "tuneproof.providers:open_provider",
        "target": "tuneproof.targets:open_target",
        "tracker": "tuneproof.tracking:MLflowExperimentTracker",
        "cache": "tuneproof.cache:Cache",
        "trainer": "tuneproof_trainer.embedded:serve",
        "app": "tuneproof.app:App",
    }
)
"""Kind of adapter -> the dotted name that makes one. Settings may name others."""

PROVIDER_KINDS = (
    "openai",
    "azure",
    "nebius",
    "compatible",
    "together",
    "fireworks",
    "anthropic",
    "trainer",
)
"""What `kind` may say where the provider's adapter is our own."""

WITHOUT_EFFECT: Mapping[str, str] = MappingProxyType(
    {path: option.without_effect for path, option in tables.settings() if option.without_effect}
)
"""Settings of the first users that are read and do nothing: why, and what to do instead."""

POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Where Kubernetes tells a pod its namespace."""


@dataclass(frozen=True, kw_only=True)
class Settings(Tables):
    """All settings of a process, read once; `Settings.load` merges where they come from.

    `origins` says by path where each value that is no default came from. Reprs and `to_dict`
    never show a secret.
    """

    dir: Path = DEFAULT_DIR
    adapters: Mapping[str, str] = field(default_factory=lambda: ADAPTERS)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    env: Mapping[str, str] = field(
        default_factory=lambda: os.environ, compare=False, repr=False, hash=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "dir", Path(self.dir).expanduser().absolute())
        object.__setattr__(self, "adapters", MappingProxyType({**ADAPTERS, **self.adapters}))
        for name in (*tables.NAMED, "origins"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        if not self.store.url:
            url = Url(f"sqlite+aiosqlite:///{self.dir / 'tuneproof.db'}")
            object.__setattr__(self, "store", dataclasses.replace(self.store, url=url))
        for config in self.pipelines.values():
            self._check_names(config)
        object.__setattr__(self, "pipelines", MappingProxyType(self._with_bases()))
        for config in self.pipelines.values():
            self.check_measures(config)
        if self.adapters["provider"] == ADAPTERS["provider"]:
            for provider in self.providers.values():
                checks.choice(f"providers.{provider.name}.kind", provider.kind, PROVIDER_KINDS)
        for scorer in self.scorers.values():
            if scorer.is_judge:
                self._check_provider(f"scorers.{scorer.name}.provider", scorer.provider)
        for task in self.tasks.values():
            for key in ("provider", "model_provider", "shadow_provider"):
                named = getattr(task, key)
                if named is not None:
                    self._check_provider(f"tasks.{task.name}.{key}", named)
        for target in self.targets.values():
            self._check_target(target)
        if self.relay.provider is not None:
            self._check_provider("relay.provider", self.relay.provider)
        self._check_aliases()

    @property
    def task_aliases(self) -> Mapping[str, str]:
        """The task that each model name of `tasks.*.aliases` means at the gateway."""
        return {alias: task.name for task in self.tasks.values() for alias in task.aliases}

    def check_measures(self, config: PipelineConfig) -> None:
        """Refuse a pipeline in which one measure chooses candidates and judges them alone."""
        check_measures(config, self.scorers, self.tasks)
        if config.succeeding is not None:
            check_measures(config.succeeding, self.scorers, self.tasks)

    @property
    def default_provider(self) -> str:
        """Who gets what the relay passes on, where it names no provider."""
        return self.relay.provider or next(iter(self.pipelines.values())).provider

    @property
    def shadows(self) -> Mapping[str, Shadow]:
        """Who gets copies of requests, by task."""
        return shadows_of(self.tasks, self.pipelines)

    @property
    def counts_spending(self) -> bool:
        """Whether something is served within a budget a day."""
        return self.relay.enabled or bool(self.shadows)

    def _check_aliases(self) -> None:
        found = self.task_aliases
        for task in self.tasks.values():
            for alias in task.aliases:
                if found[alias] != task.name:
                    raise ConfigError(
                        f"tasks.{task.name}.aliases names {alias!r}, which is also an alias of "
                        f"{found[alias]}.",
                        mend="Leave it to one of them.",
                        field=f"tasks.{task.name}.aliases",
                        value=alias,
                    )
                if alias.startswith("tuneproof/"):
                    raise ConfigError(
                        f"tasks.{task.name}.aliases names {alias!r}, which is the task "
                        f"{alias.removeprefix('tuneproof/')!r} at the gateway.",
                        mend="Name what the application calls its model now.",
                        field=f"tasks.{task.name}.aliases",
                        value=alias,
                    )

    def _with_bases(self) -> dict[str, PipelineConfig]:
        """The pipelines; those that name no base model train on their provider's."""
        return {
            name: dataclasses.replace(
                config, base_model=config.base_model or self.providers[config.provider].base_model
            )
            for name, config in self.pipelines.items()
        }

    def _check_target(self, target: TargetConfig) -> None:
        """A target of ours that tells models alone would keep each prompt from being tested."""
        owned = [task.name for task in self.tasks.values() if task.owned_by_variants]
        told = target.options.get("prompts") is True
        if not owned or told or target.kind not in UNPROMPTED:
            return
        mend = f"Set prompts = true in [targets.{target.name}]"
        if target.kind == "istio":
            mend = "Let the client or the gateway choose, and take the target out"
        raise ConfigError(
            f"targets.{target.name} tells applications of models and of no prompts, and variants "
            f"own the prompt of {owned[0]}.",
            mend=f'{mend}, or leave prompt_owner = "application".',
            field=f"targets.{target.name}",
        )

    def _check_provider(self, where: str, name: str) -> None:
        if name not in self.providers:
            raise ConfigError(
                f"{where} names the provider {name!r}, which is not set.",
                mend=f"{checks.meant(name, self.providers)} Or add [providers.{name}].",
                field=where,
                value=name,
            )

    def check_recipes(self, config: PipelineConfig, setting: str = "recipes") -> None:
        """Refuse recipes that no run of this pipeline could make; raises `ConfigError`."""
        where = f"pipelines.{config.name}.{setting}"
        self._check_provider(where, config.for_training.provider)
        for recipe in config.untrained:
            if recipe.provider is not None:
                self._check_provider(where, recipe.provider)
            if recipe.make == PROMPT:
                self._check_prompt(where, recipe, config)
            if recipe.search is not None:
                self._check_provider(where, recipe.search.provider)

    def _check_successors(self, config: PipelineConfig) -> None:
        """What a run would be refused for on the day is refused now."""
        try:
            later = config.succeeding
        except ConfigError as error:
            where = f"pipelines.{config.name}.successors"
            raise ConfigError(
                f"{where}: no run could go by them: {error.message}",
                mend=error.mend,
                field=where,
            ) from error
        if later is not None:
            self.check_recipes(later, "successors")

    def _check_prompt(self, where: str, recipe: Recipe, config: PipelineConfig) -> None:
        """A prompt is of one task, which leaves its prompt to variants, and has its variables."""
        task = self.tasks.get(config.tasks[0]) if len(config.tasks) == 1 else None
        if task is None or not task.owned_by_variants:
            raise ConfigError(
                f"{where} makes a prompt, and the pipeline's tasks "
                f"({', '.join(config.tasks)}) are not one whose prompt variants own.",
                mend='Set prompt_owner = "variant" in [tasks.NAME], once the application sends '
                "variables, and give the task a pipeline of its own.",
                field=where,
            )
        if recipe.prompt is None:
            return
        first = Prompt(messages=(("user", task.prompt),), variables=task.columns)
        try:
            recipe.prompt_from(first)
        except InputError as error:
            rule = f"that is no prompt of {task.name}: {error.message.rstrip('.')}"
            raise checks.refuse(where, recipe.prompt, rule, mend=error.mend) from error

    def _check_owners(self, config: PipelineConfig) -> None:
        """A version has one prompt, so it is of one task where variants own that."""
        owned = [t for t in config.tasks if t in self.tasks and self.tasks[t].owned_by_variants]
        if owned and len(config.tasks) > 1 and config.train_together:
            raise ConfigError(
                f"pipelines.{config.name} trains {', '.join(config.tasks)} together, and variants "
                f"own the prompt of {owned[0]}: a version has one prompt.",
                mend="Set train_together = false, or give the task a pipeline of its own.",
                field=f"pipelines.{config.name}.train_together",
            )

    def _check_names(self, config: PipelineConfig) -> None:
        named: list[tuple[str, str, Mapping[str, Any]]]
        named = [("tasks", task, self.tasks) for task in config.tasks]
        named += [("provider", config.provider, self.providers)]
        named += [("source", config.source, self.sources)]
        if config.outcome_source is not None:
            named += [("outcome_source", config.outcome_source, self.outcome_sources)]
        self._check_owners(config)
        self.check_recipes(config)
        self._check_successors(config)
        if config.gate_moderation is not None:
            where = f"pipelines.{config.name}.gate.moderation"
            self._check_provider(where, config.gate_moderation)
        if config.gate_embeddings not in ("auto", "off"):
            where = f"pipelines.{config.name}.gate.embeddings"
            self._check_provider(where, config.gate_embeddings)
            if config.gate_embedding_model is None:
                raise ConfigError(
                    f"{where} names a provider, and gate.embedding_model no model of it.",
                    mend='Give e.g. embedding_model = "text-embedding-3-small".',
                    field=f"pipelines.{config.name}.gate.embedding_model",
                )
        for key, name, known in named:
            if name not in known:
                kind = key.rstrip("s")
                raise ConfigError(
                    f"pipelines.{config.name}.{key} names the {kind} {name!r}, which is not set.",
                    mend=f"{checks.meant(name, known)} Or add [{kind}s.{name}].",
                    field=f"pipelines.{config.name}.{key}",
                    value=name,
                )

    @classmethod
    def load(
        cls,
        *,
        dir: Path | str | None = None,
        file: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        **arguments: Any,
    ) -> Settings:
        """Merge arguments over environment over `tuneproof.toml` over defaults.

        `dir` is the data directory; `file` the settings file, by default `tuneproof.toml` in
        the current directory, or in the data directory, if there is one. `env` defaults to
        the process's environment. Further arguments are fields of the pipeline `default`
        (`traffic_split=0.2`), the short names `database_url`, `redis_url`, `host`, `port`,
        `base_url`, `api_key`, `mlflow_tracking_uri`, `posts`, or whole paths
        (`**{"pipelines.weekly.seed": 3}`). An argument that is None is not set.

        Raises `ConfigError`, which names the field, value, rule, mend and origin.
        """
        env = os.environ if env is None else env
        from_env = environment.read(env)
        where = dir or from_env.pop("dir", (None, ""))[0]
        named = file or from_env.pop("file", (None, ""))[0]
        path = layers.find_file(named, Path(where) if where else DEFAULT_DIR)
        merged: Layer = layers.from_file(path) if path else {}
        if "dir" in merged and not where:
            where = layers.folder_of(path) / str(merged["dir"][0])
        merged.pop("dir", None)
        merged |= {key: (value, f"environment {name}") for key, (value, name) in from_env.items()}
        merged |= layers.from_arguments(arguments)
        where = Path(where) if where else DEFAULT_DIR
        return _build(cls, where, layers.with_keys(merged, env), env)

    def adapter(self, kind: str) -> Callable[..., Any]:
        """What makes an adapter of this kind, resolved from its dotted name.

        Raises `ConfigError` when the name is unknown or cannot be imported.
        """
        if kind not in self.adapters:
            raise ConfigError(
                f"There is no adapter {kind!r}.",
                mend=checks.meant(kind, self.adapters),
                field=f"adapters.{kind}",
            )
        return resolved(f"adapters.{kind}", self.adapters[kind])

    def secret(self, variable: str) -> Secret | None:
        """What an environment variable holds, masked wherever it is shown; None where nothing."""
        value = self.env.get(variable, "").strip()
        return Secret(value) if value else None

    def unset_variables(self) -> list[ConfigError]:
        """Each variable that the settings name for a secret and that holds nothing."""
        found = []
        for path in self.origins:
            table, _, rest = path.partition(".")
            name, _, key = rest.rpartition(".")
            secret = path.removesuffix("_env")
            if secret == path or secret in self.origins:
                continue
            record = getattr(self, table)[name] if name else getattr(self, table)
            variable = getattr(record, key)
            if self.secret(variable) is None:
                message = f"{path} names the variable {variable!r}, which is not set."
                mend = f"Set it, or take {path} out of the settings."
                found.append(ConfigError(message, mend=mend, field=path))
        return found

    def target(self, name: str) -> TargetConfig:
        """The target of this name; `[kubernetes]` says what a cluster's leaves out."""
        config, common = self.targets[name], self.kubernetes
        if config.kind not in CLUSTER_KINDS:
            return config
        options: dict[str, Any] = {
            "connection_pool": common.connection_pool_enabled,
            "circuit_breaker": common.circuit_breaker_enabled,
        }
        if common.namespace is not None:
            options["namespace"] = common.namespace
        reached = {"server", "kubeconfig", "context"} & set(config.options)
        if common.cluster_name is not None and not reached and not POD_NAMESPACE.is_file():
            options["context"] = common.cluster_name
        return dataclasses.replace(config, options={**options, **config.options})

    def without_effect(self) -> list[str]:
        """The settings that were set and change nothing in this version."""
        return [path for path in WITHOUT_EFFECT if path in self.origins]

    def pipeline(self, name: str = "default") -> PipelineConfig:
        """The pipeline of this name. Raises `ConfigError` when there is none."""
        if name not in self.pipelines:
            mend = checks.meant(name, self.pipelines)
            raise ConfigError(f"There is no pipeline {name!r}.", mend=mend, field="pipeline")
        return self.pipelines[name]

    @property
    def address(self) -> str:
        """Where people and programs reach this service."""
        if self.server.public_url:
            return self.server.public_url.without_user.rstrip("/")
        host = self.server.host
        host = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server.port}"

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON types, secrets masked; where they are kept comes first."""
        fields = [f.name for f in dataclasses.fields(self) if f.name not in ("origins", "env")]
        fields.sort(key=lambda name: name != "dir")
        return {name: shown(getattr(self, name)) for name in fields}

    def describe(self) -> list[tuple[str, str, str]]:
        """What holds, as rows of (path, value, origin), for `tuneproof config check`."""
        rows: list[tuple[str, str, str]] = []
        for path, value in _walk(self.to_dict()):
            origin = self.origins.get(path) or _nearest(self.origins, path)
            rows.append((path, "none" if value is None else str(value), origin))
        return rows


def resolved(where: str, name: str) -> Callable[..., Any]:
    """What a dotted name in the setting `where` stands for.

    Raises `ConfigError` when it cannot be imported.
    """
    try:
        return pkgutil.resolve_name(name)  # type: ignore[no-any-return]
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{where} is {name!r}, which cannot be imported: {error}.",
            mend='Write "package.module:name" of something that is installed.',
            field=where,
            value=name,
        ) from error


def _walk(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        prefix = f"{path}." if path else ""
        return [row for key, inner in value.items() for row in _walk(inner, f"{prefix}{key}")]
    return [(path, value)]


def _nearest(origins: Mapping[str, str], path: str) -> str:
    while "." in path:
        path = path.rpartition(".")[0]
        if path in origins:
            return origins[path]
    return "default"


def _build(cls: type[Settings], dir: Path, merged: Layer, env: Mapping[str, str]) -> Settings:
    _follow_pod(merged)
    fold(merged)
    grouped = _grouped(merged)
    grouped.setdefault("providers", {}).setdefault("default", {"kind": "trainer"})
    built: dict[str, Any] = {}
    for kind, record in tables.NAMED.items():
        built[kind] = {
            name: _record(record, f"{kind}.{name}", {**_start(kind, name), **fields}, merged)
            for name, fields in _with_defaults(kind, grouped.get(kind, {})).items()
        }
    for kind, record in tables.SINGLE.items():
        built[kind] = _record(record, kind, grouped.get(kind, {}), merged)
    origins = {path: origin for path, (_, origin) in merged.items()}
    return cls(dir=dir, adapters=grouped.get("adapters", {}), origins=origins, env=env, **built)


def _follow_pod(merged: Layer) -> None:
    if "kubernetes.namespace" not in merged and POD_NAMESPACE.is_file():
        namespace = POD_NAMESPACE.read_text("utf-8").strip()
        merged["kubernetes.namespace"] = (namespace or None, "the pod")


def _grouped(merged: Layer) -> dict[str, dict[str, Any]]:
    grouped: dict[str, dict[str, Any]] = {}
    for path, (value, _) in merged.items():
        head, rest = path.split(".", 1)
        if head in tables.NAMED:
            name, _, key = rest.rpartition(".")
            grouped.setdefault(head, {}).setdefault(name, {})[key] = value
        else:
            grouped.setdefault(head, {})[rest] = value
    return grouped


def _with_defaults(kind: str, named: dict[str, Any]) -> dict[str, Any]:
    usual = {"pipelines": ["default"], "tasks": ["hook", "body"], "sources": ["posts"]}
    return {**{name: {} for name in usual.get(kind, [])}, **named}


def _start(kind: str, name: str) -> dict[str, Any]:
    """The fields from which a named record starts before the layers are laid over it."""
    known = {"hook": HOOK, "body": BODY}
    if kind == "tasks" and name in known:
        return dataclasses.asdict(known[name])
    return {"name": name}


def _record(record: type[Any], where: str, fields: dict[str, Any], merged: Layer) -> Any:
    for required in layers.required_in(record):
        if required not in fields:
            mend = f"Add it to [{where}]."
            path = f"{where}.{required}"
            raise ConfigError(f"{path} is not set.", mend=mend, field=path)
    try:
        return record(**fields)
    except ConfigError as error:
        path = f"{where}.{error.details.get('field', '')}"
        raise layers.located(error, merged.get(path, ("", ""))[1], path) from error
