"""What the settings say about everything but pipelines: tasks, providers, sources, servers.

Each record validates itself. Secrets are `Secret`, addresses `Url`: neither shows a key or a
password in a repr, in `to_dict` or in an error.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tuneproof.settings import checks
from tuneproof.settings.checks import Secret, Url


def _wrap(record: object, **kinds: type[str]) -> None:
    for name, kind in kinds.items():
        value = getattr(record, name)
        if isinstance(value, str):
            object.__setattr__(record, name, kind(value))


def shown(value: Any) -> Any:
    """A setting's value as JSON types, with secrets and passwords masked."""
    if isinstance(value, Secret):
        return "***"
    if isinstance(value, Url):
        return value.masked
    if isinstance(value, Mapping):
        return {str(k): shown(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [shown(v) for v in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: shown(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One thing the application asks a model for.

    `prompt` is a template over the post's columns; a post whose columns for it are empty gets
    `empty_prompt`. `completion` is the column with the answer. `model` is the model in use
    before the first rollout (None: the pipeline's base model), which `model_provider` serves
    (None: the pipeline's provider). Where the pipeline's tasks train apart, `provider` and
    `base_model` are this task's own (None: the pipeline's).
    """

    name: str
    prompt: str
    completion: str
    empty_prompt: str = "Create engaging content"
    system: str | None = None
    model: str | None = None
    model_provider: str | None = None
    provider: str | None = None
    base_model: str | None = None

    def __post_init__(self) -> None:
        for name in ("name", "prompt", "completion", "empty_prompt"):
            checks.text(name, getattr(self, name))
        for name in ("provider", "base_model", "model_provider"):
            checks.text(name, getattr(self, name), optional=True)
        checks.text("system", self.system, optional=True)
        checks.text("model", self.model, optional=True)
        try:
            self.columns  # noqa: B018 - parses the template
        except ValueError as error:
            mend = 'Write columns in braces, such as "{original_input}"; double a brace to keep it.'
            raise checks.refuse("prompt", self.prompt, "must be a template", mend=mend) from error

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the prompt's template names, in order, each once."""
        from string import Formatter

        found = (name for _, name, _, _ in Formatter().parse(self.prompt) if name is not None)
        return tuple(dict.fromkeys(found))

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return dataclasses.asdict(self)


HOOK = TaskConfig(name="hook", prompt="{original_input}", completion="hook")
BODY = TaskConfig(name="body", prompt="{hook}\n\nWrite a detailed post:", completion="body")


@dataclass(frozen=True, kw_only=True)
class ProviderConfig:
    """Who trains and answers. `kind` is a dialect of OpenAI's wire, "openai" (told by its host),
    "azure", "nebius", "compatible", or "trainer": our own, started in this process where no
    `base_url` is set; or a wire of its own, "together" or "fireworks".

    `base_model` is what pipelines train on here that name none of their own, so that naming
    another provider is enough to switch. Give the key by `api_key_env`, the name of an
    environment variable; only the settings read it. `organization` is the account at Fireworks.
    `webhook_secret` (by `webhook_secret_env`) is what the provider signs its webhooks with.
    `prices` maps a model's prefix to USD per million tokens (prompt, completion),
    `training_prices` to USD per million trained tokens; both go before the dated table.
    """

    name: str = "default"
    kind: str = "openai"
    base_url: str | None = None
    base_model: str | None = None
    api_key_env: str = ""
    api_key: str | None = None
    organization: str | None = None
    webhook_secret_env: str = "OPENAI_WEBHOOK_SECRET"
    webhook_secret: str | None = None
    timeout_seconds: float = 30
    prices: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    training_prices: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _wrap(self, api_key=Secret, webhook_secret=Secret, base_url=Url)
        checks.text("name", self.name)
        checks.text("kind", self.kind)
        if not self.api_key_env:
            object.__setattr__(self, "api_key_env", key_variable(self.kind))
        checks.text("webhook_secret_env", self.webhook_secret_env)
        checks.text("webhook_secret", self.webhook_secret, optional=True)
        checks.address("base_url", self.base_url, ("http", "https"))
        checks.text("api_key_env", self.api_key_env)
        checks.text("api_key", self.api_key, optional=True)
        checks.text("base_model", self.base_model, optional=True)
        checks.text("organization", self.organization, optional=True)
        checks.number("timeout_seconds", self.timeout_seconds, above=0)
        object.__setattr__(self, "prices", {k: _price(k, v) for k, v in self.prices.items()})
        for model, price in self.training_prices.items():
            checks.number(f"training_prices.{model}", price, at_least=0)

    @property
    def embedded(self) -> bool:
        """Whether this process starts the trainer itself."""
        return self.kind == "trainer" and self.base_url is None


_KEY_VARIABLES = {"together": "TOGETHER_API_KEY", "fireworks": "FIREWORKS_API_KEY"}


def key_variable(kind: str) -> str:
    """The environment variable that holds the key of a provider that names none."""
    return _KEY_VARIABLES.get(kind, "OPENAI_API_KEY")


def _price(model: str, pair: Any) -> tuple[float, float]:
    rule = "must be two numbers, USD per million tokens of prompt and of completion"
    if isinstance(pair, str) or not hasattr(pair, "__len__") or len(pair) != 2:
        raise checks.refuse(f"prices.{model}", pair, rule)
    for part in pair:
        checks.number(f"prices.{model}", part, at_least=0)
    return float(pair[0]), float(pair[1])


POST_COLUMNS: Mapping[str, str] = {
    "id": "id",
    "persona_id": "persona_id",
    "original_input": "original_input",
    "hook": "hook",
    "body": "body",
    "engagement_rate": "engagement_rate",
    "ts": "ts",
    "tokens_used": "tokens_used",
}
"""Our word for a column of the posts -> its usual name in the user's table."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where posts come from: a database or a file. `url` None is our own database.

    `columns` says which column of the table is meant by our word for it; words left out keep
    their own name. `where` is SQL put beside the conditions, from this file only.
    """

    name: str = "posts"
    url: str | None = None
    table: str = "posts"
    columns: Mapping[str, str] = field(default_factory=dict)
    where: str | None = None

    def __post_init__(self) -> None:
        _wrap(self, url=Url)
        checks.text("name", self.name)
        checks.text("url", self.url, optional=True)
        checks.text("table", self.table)
        checks.text("where", self.where, optional=True)
        for word, column in self.columns.items():
            checks.text(f"columns.{word}", column)


@dataclass(frozen=True, kw_only=True)
class OutcomeSourceConfig:
    """Outcomes that lie in the user's own table. `url` None is our own database.

    `query` gets `:since` and `:until` and returns `unit`, `value`, `at` (when the row was last
    changed) and maybe `quality` and `item`. `times` says how the two are bound: "native"
    (timestamps), "text" (UTC, as "2025-01-20 02:00:00.000000"), "seconds" or "milliseconds" since
    1970; "auto" is text for SQLite, else native. Rows are read again for `overlap_hours`.
    """

    name: str
    query: str
    url: str | None = None
    times: str = "auto"
    overlap_hours: float = 24
    poll_seconds: float = 300

    def __post_init__(self) -> None:
        _wrap(self, url=Url)
        checks.text("name", self.name)
        checks.text("url", self.url, optional=True)
        checks.text("query", self.query)
        for parameter in (":since", ":until"):
            if parameter not in self.query:
                rule = f"must use the parameter {parameter}"
                raise checks.refuse("query", self.query, rule)
        known = ("auto", "native", "text", "seconds", "milliseconds")
        checks.choice("times", self.times, known)
        checks.number("overlap_hours", self.overlap_hours, at_least=0)
        checks.number("poll_seconds", self.poll_seconds, above=0)


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """Our own database. An empty `url` is a SQLite file in the data directory."""

    url: str = ""
    pool_size: int = 10
    max_overflow: int = 0
    pool_timeout: float = 30

    def __post_init__(self) -> None:
        _wrap(self, url=Url)
        if self.url:
            schemes = ("postgresql", "postgres", "sqlite")
            checks.address("url", self.url, schemes, optional=False)
        checks.number("pool_size", self.pool_size, at_least=1, at_most=1000, whole=True)
        checks.number("max_overflow", self.max_overflow, at_least=0, at_most=1000, whole=True)
        checks.number("pool_timeout", self.pool_timeout, above=0)


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The cache: `mem://` in this process, or a Redis."""

    url: str = "mem://"
    max_connections: int = 20
    keepalive: bool = True

    def __post_init__(self) -> None:
        _wrap(self, url=Url)
        checks.address("url", self.url, ("mem", "redis", "rediss", "unix"), optional=False)
        checks.number("max_connections", self.max_connections, at_least=1, whole=True)
        checks.truth("keepalive", self.keepalive)


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """MLflow. Without `uri` the outbox keeps what it should get; without `autolog` runs are not
    logged by themselves, and nothing is put there."""

    uri: str | None = None
    experiment_name: str = "fine_tuning_pipeline"
    autolog: bool = True

    def __post_init__(self) -> None:
        _wrap(self, uri=Url)
        checks.text("uri", self.uri, optional=True)
        checks.text("experiment_name", self.experiment_name)
        checks.truth("autolog", self.autolog)


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The HTTP service. Any bind but loopback asks for a bearer token on each call."""

    host: str = "127.0.0.1"
    port: int = 8686
    public_url: str | None = None
    metrics_enabled: bool = True
    metrics_port: int = 9090
    grafana_dashboard_enabled: bool = True
    require_token: bool | None = None

    def __post_init__(self) -> None:
        _wrap(self, public_url=Url)
        checks.text("host", self.host)
        checks.number("port", self.port, at_least=0, at_most=65535, whole=True)
        checks.address("public_url", self.public_url, ("http", "https"))
        checks.number("metrics_port", self.metrics_port, at_least=0, at_most=65535, whole=True)
        checks.truth("metrics_enabled", self.metrics_enabled)
        checks.truth("grafana_dashboard_enabled", self.grafana_dashboard_enabled)
        if self.require_token is not None:
            checks.truth("require_token", self.require_token)
            if not self.require_token and not self.loopback:
                rule = f"must be true where host ({self.host}) is not loopback"
                raise checks.refuse("require_token", False, rule)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def token_needed(self) -> bool:
        """Whether each call must carry a bearer token."""
        return not self.loopback if self.require_token is None else self.require_token


@dataclass(frozen=True, kw_only=True)
class AlertsConfig:
    """Whom to tell when a person should look: a webhook of yours, Prometheus, or both.

    The webhook's messages are signed by the secret in the variable `webhook_secret_env`, as
    Standard Webhooks says. Of Prometheus it is only asked whether its rules watch us.
    """

    webhook_url: str | None = None
    webhook_secret_env: str = "TUNEPROOF_ALERTS_SECRET"
    prometheus_url: str | None = None

    def __post_init__(self) -> None:
        _wrap(self, webhook_url=Url, prometheus_url=Url)
        checks.address("webhook_url", self.webhook_url, ("http", "https"))
        checks.text("webhook_secret_env", self.webhook_secret_env)
        checks.address("prometheus_url", self.prometheus_url, ("http", "https"))


@dataclass(frozen=True, kw_only=True)
class RemoteConfig:
    """The service that the command line speaks to, where it is not the local one."""

    url: str | None = None
    token: str | None = None

    def __post_init__(self) -> None:
        _wrap(self, url=Url, token=Secret)
        checks.address("url", self.url, ("http", "https"))
        checks.text("token", self.token, optional=True)


@dataclass(frozen=True, kw_only=True)
class KubernetesConfig:
    """What targets in a cluster share that their own options don't say.

    `namespace` comes from the pod when it is not set. `cluster_name` is the kubeconfig's context,
    outside a pod. The other two: connections are kept, and a breaker guards the calls.
    """

    cluster_name: str | None = None
    namespace: str | None = None
    connection_pool_enabled: bool = True
    circuit_breaker_enabled: bool = True

    def __post_init__(self) -> None:
        checks.text("cluster_name", self.cluster_name, optional=True)
        checks.text("namespace", self.namespace, optional=True)
        checks.truth("connection_pool_enabled", self.connection_pool_enabled)
        checks.truth("circuit_breaker_enabled", self.circuit_breaker_enabled)


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """A place besides our router that must learn of a new share or model.

    `kind` is one of ours, or the dotted name of what makes one of yours from this config:
    "mypackage.targets:open_target".
    """

    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.text("name", self.name)
        if not checks.dotted(self.kind):
            checks.choice("kind", self.kind, ("configmap", "istio", "webhook", "envfile"))


JUDGE_FIELDS = ("answer", "conversation", "rubric", "lowest", "highest", "mark")
"""What a judge's prompt may name in braces; the first is needed."""


@dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """Who scores texts, for the gate and while a test runs.

    `kind` "judge" asks `model` at `provider` for a score from `lowest` to `highest` by `rubric`,
    or by a whole `prompt` of your own. Any other `kind` is the dotted name of a scorer of yours,
    "mypackage.scoring:readable"; with `options` (all further keys), of what makes one from them.
    """

    name: str
    kind: str = "judge"
    provider: str = "default"
    model: str | None = None
    rubric: str | None = None
    prompt: str | None = None
    lowest: float = 1
    highest: float = 5
    max_tokens: int = 300
    timeout_seconds: float = 60
    concurrency: int = 4
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.text("name", self.name)
        if self.kind != "judge" and not checks.dotted(self.kind):
            rule = 'must be "judge", or the dotted name of a scorer'
            mend = 'Write "package.module:name" of something that is installed.'
            raise checks.refuse("kind", self.kind, rule, mend=mend)
        checks.text("provider", self.provider)
        for name in ("model", "rubric", "prompt"):
            checks.text(name, getattr(self, name), optional=True)
        if self.is_judge and self.model is None:
            rule = "must name the model that judges"
            raise checks.refuse("model", self.model, rule, mend='For example model = "gpt-4.1".')
        if self.prompt is not None:
            _check_prompt(self.prompt)
        checks.number("lowest", self.lowest)
        checks.number("highest", self.highest, above=self.lowest)
        checks.number("max_tokens", self.max_tokens, at_least=1, whole=True)
        checks.number("timeout_seconds", self.timeout_seconds, above=0)
        checks.number("concurrency", self.concurrency, at_least=1, at_most=100, whole=True)
        if self.is_judge and self.options:
            name = sorted(self.options)[0]
            raise checks.refuse(name, self.options[name], "is no setting of a judge")

    @property
    def is_judge(self) -> bool:
        """Whether a model is asked."""
        return self.kind == "judge"


def _check_prompt(prompt: str) -> None:
    from string import Formatter

    mend = f"Write {{answer}}; known are {', '.join(JUDGE_FIELDS)}; double a brace to keep it."
    try:
        named = [name for _, name, _, _ in Formatter().parse(prompt) if name is not None]
    except ValueError as error:
        raise checks.refuse("prompt", prompt, "must be a template", mend=mend) from error
    unknown = [name for name in named if name not in JUDGE_FIELDS]
    if unknown or "answer" not in named:
        raise checks.refuse("prompt", prompt, "must name {answer}, and nothing unknown", mend=mend)
