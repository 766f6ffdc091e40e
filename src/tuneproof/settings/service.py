"""What the settings say about the service itself: its database, cache, tracking, address, alerts.

Each is one table of the file. The tables that the user names are `records`.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from tuneproof.settings import checks, fields
from tuneproof.settings.checks import HTTP
from tuneproof.settings.fields import YEAR_SECONDS, Option, option
from tuneproof.settings.secrets import Secret, Url, WebhookUrl

WEBHOOK_KINDS = ("standard", "slack")

DATABASES = ("postgresql", "postgres", "sqlite")

LONGEST_PAUSE_S = 300.0
"""How long a breaker waits at most before it lets one call try again, unless it is told longer."""

LOCAL = ("file", "sqlite")
"""Where MLflow may keep what it is told on this machine, without a server."""


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """Our own database. An empty `url` is a SQLite file in the data directory."""

    url: Url = option(
        Url(""),
        Option(
            schemes=DATABASES,
            empty=True,
            env="DATABASE_URL",
            argument="database_url",
            doc="PostgreSQL address; empty: `DIR/tuneproof.db`",
        ),
    )
    pool_size: int = option(
        10, Option(at_least=1, at_most=1000, env="DATABASE_POOL_SIZE", doc="connections")
    )
    max_overflow: int = option(
        0,
        Option(at_least=0, at_most=1000, env="DATABASE_MAX_OVERFLOW", doc="connections beyond"),
    )
    pool_timeout: float = option(
        30,
        Option(
            above=0,
            at_most=YEAR_SECONDS,
            env="DATABASE_POOL_TIMEOUT",
            doc="seconds to wait for one",
        ),
    )
    workers: int | None = option(
        None,
        Option(
            at_least=1,
            at_most=10_000,
            env="TUNEPROOF_WORKERS",
            doc="how many share the database at most, one that a rolling restart adds counted in, "
            "for [`doctor`](../how-to/postgresql.md#connections); none: those that live",
        ),
    )

    pool_min_size: int = option(
        2, Option(at_least=0, at_most=1000, doc="connections that stay open when all are idle")
    )
    max_queries: int = option(
        50_000,
        Option(at_least=1, at_most=10**9, doc="statements after which a connection is renewed"),
    )
    max_idle_seconds: float = option(
        300,
        Option(above=0, at_most=YEAR_SECONDS, doc="rest after which a connection is renewed"),
    )

    def __post_init__(self) -> None:
        fields.check(self)
        if self.pool_min_size > self.pool_size:
            rule = f"must be at most pool_size ({self.pool_size})"
            raise checks.refuse("pool_min_size", self.pool_min_size, rule)


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The cache of what looks show: `mem://` in this process, or a Redis."""

    enabled: bool | None = option(
        None,
        Option(
            doc="whether looks are read through it; none: where the database is PostgreSQL. Beside "
            "SQLite it saves nothing: the database is read on the same machine"
        ),
    )
    url: Url = option(
        Url("mem://"),
        Option(
            schemes=("mem", "redis", "rediss", "unix"),
            env="REDIS_URL",
            argument="redis_url",
            doc="or `redis://...`; by Sentinels `redis+sentinel://HOST:26379,HOST:26379/NAME/0`",
        ),
    )
    max_connections: int = option(
        20, Option(at_least=1, at_most=100_000, env="REDIS_MAX_CONNECTIONS", doc="to Redis")
    )
    keepalive: bool = option(
        True, Option(env="REDIS_SOCKET_KEEPALIVE", doc="TCP keepalive to Redis")
    )
    health_check_interval: int = option(
        30,
        Option(
            at_least=0,
            at_most=86_400,
            doc="seconds of rest after which a connection to Redis is tried before it is used; 0: "
            "never",
        ),
    )

    def __post_init__(self) -> None:
        fields.check(self)


@dataclass(frozen=True, kw_only=True)
class FilesConfig:
    """Where datasets are kept so that every worker has them. Without `url`: in the data directory.

    The data directory is then a cache of what is in the object store.
    """

    url: Url | None = option(
        None,
        Option(
            env="TUNEPROOF_FILES_URL",
            doc="an [object store](../how-to/object-store.md) in which all workers find the "
            "datasets: `s3://BUCKET/PREFIX`, or another protocol that fsspec knows; none: they "
            "are in the data directory alone",
        ),
    )
    cache_mb: int = option(
        4096,
        Option(
            at_least=0,
            at_most=10**9,
            doc="MiB of datasets that are kept in the data directory beside the store; those of "
            "the last day stay in any case",
        ),
    )

    def __post_init__(self) -> None:
        fields.check(self)
        if self.url is not None and "://" not in self.url.reveal():
            mend = "Write it like s3://BUCKET/PREFIX or file:///FOLDER."
            raise checks.refuse("url", self.url, "must begin with a protocol", mend=mend)


def _threshold(section: str, default: int, doc: str) -> int:
    more = Option(section=section, key="failure_threshold", at_least=1, at_most=1000, doc=doc)
    return option(default, more)


def _pause(section: str, default: float, doc: str) -> float:
    more = Option(section=section, key="timeout", above=0, at_most=YEAR_SECONDS, doc=doc)
    return option(default, more)


@dataclass(frozen=True, kw_only=True)
class BreakersConfig:
    """When a service that fails is left alone, and for how long.

    `openai` is each provider of models, whoever it is: all have a breaker of their own.
    """

    openai_failure_threshold: int = _threshold(
        "openai", 3, "failures in a row after which a provider is left alone"
    )
    openai_timeout: float = _pause(
        "openai", 120, "seconds until one call tries again; twice as long each time it fails"
    )
    mlflow_failure_threshold: int = _threshold("mlflow", 5, "the same of MLflow")
    mlflow_timeout: float = _pause("mlflow", 60, "the same of MLflow")

    def __post_init__(self) -> None:
        fields.check(self)

    def of(self, service: str) -> dict[str, Any]:
        """The limits of a breaker of `openai` or `mlflow`, as it takes them."""
        timeout = getattr(self, f"{service}_timeout")
        return {
            "failure_threshold": getattr(self, f"{service}_failure_threshold"),
            "timeout": timeout,
            "max_timeout": max(LONGEST_PAUSE_S, timeout),
        }


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """MLflow. Without `uri` the outbox keeps what it should get; without `autolog` runs are not
    logged by themselves, and nothing is put there."""

    uri: Url | None = option(
        None,
        Option(
            schemes=(*HTTP, *LOCAL),
            env="MLFLOW_TRACKING_URI",
            argument="mlflow_tracking_uri",
            doc="MLflow's address: `http(s)://...`, or with the extra `[mlflow]` "
            "`sqlite:///FILE` or `file:FOLDER`",
        ),
    )
    experiment_name: str = option(
        "fine_tuning_pipeline",
        Option(env="MLFLOW_EXPERIMENT_NAME", doc="the experiment that runs are logged to"),
    )
    autolog: bool = option(
        True,
        Option(
            env="MLFLOW_AUTOLOG_ENABLED",
            doc="runs are logged by themselves; `false`: nothing is put into the outbox",
        ),
    )

    def __post_init__(self) -> None:
        fields.check(self)
        if self.uri is not None and self.uri.scheme in HTTP and not self.uri.host:
            raise checks.refuse("uri", self.uri, "must name a host")
        if self.uri is not None and self.uri.scheme in LOCAL and not _whole_mlflow():
            rule = "needs the whole of MLflow, and only its client is installed"
            mend = "pip install tuneproof[mlflow], or name a server: http://HOST:5000"
            raise checks.refuse("uri", self.uri, rule, mend=mend)


def _whole_mlflow() -> bool:
    """Whether MLflow is installed, not its client alone; told without importing it."""
    try:
        metadata.distribution("mlflow")
    except metadata.PackageNotFoundError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The HTTP service. Any bind but loopback asks for a bearer token on each call."""

    host: str = option(
        "127.0.0.1", Option(env="TUNEPROOF_HOST", argument="host", doc="where it listens")
    )
    port: int = option(
        8686,
        Option(
            at_least=0,
            at_most=65535,
            env="TUNEPROOF_PORT",
            argument="port",
            doc="0: a free one",
        ),
    )
    public_url: Url | None = option(
        None,
        Option(
            schemes=HTTP,
            env="TUNEPROOF_PUBLIC_URL",
            argument="public_url",
            doc="how people reach it, behind a proxy",
        ),
    )
    metrics_enabled: bool = option(
        True,
        Option(
            env="PROMETHEUS_METRICS_ENABLED",
            doc="metrics on a port of their own (`/metrics` is there anyway)",
        ),
    )
    metrics_port: int = option(
        9090,
        Option(
            at_least=0,
            at_most=65535,
            env="PROMETHEUS_METRICS_PORT",
            argument="metrics_port",
            doc="that port; 0: a free one",
        ),
    )
    grafana_dashboard_enabled: bool = option(
        True,
        Option(
            env="GRAFANA_DASHBOARD_ENABLED",
            without_effect="no dashboards come with this version: build yours on the metrics of "
            "/metrics",
            doc="(see [not in effect](#read-but-without-effect))",
        ),
    )
    gateways: int = option(
        0,
        Option(
            at_least=0,
            at_most=256,
            env="TUNEPROOF_GATEWAYS",
            argument="gateways",
            doc="processes that answer applications beside the service, which may then restart "
            "unseen; 0: the service's own process does",
        ),
    )
    gateway_port: int = option(
        8687,
        Option(
            at_least=0,
            at_most=65535,
            env="TUNEPROOF_GATEWAY_PORT",
            argument="gateway_port",
            doc="where they listen; 0: a free one",
        ),
    )
    drain_seconds: float = option(
        0,
        Option(
            at_least=0,
            at_most=600,
            env="TUNEPROOF_DRAIN_SECONDS",
            doc="for how long after SIGTERM `/ready` says no while requests are still answered, so "
            "that [a load balancer](../how-to/postgresql.md#restart-one-after-another) goes "
            "elsewhere; 0: it ends at once. The chart sets 5",
        ),
    )
    allowed_hosts: tuple[str, ...] = option(
        (),
        Option(
            rule=checks.host_names,
            doc="names by which it is called, `*.example.com` for all below one; others are "
            "refused, addresses in numbers are not. None: [any, with a "
            "token](../how-to/tokens.md#names)",
        ),
    )
    require_token: bool | None = option(None, Option(doc="none: on any bind but loopback"))

    def __post_init__(self) -> None:
        fields.check(self)
        if self.require_token is False and not self.loopback:
            rule = f"must be true where host ({self.host}) is not loopback"
            raise checks.refuse("require_token", False, rule)
        if self.gateways and self.gateway_port and self.gateway_port == self.port:
            rule = f"must be another than port ({self.port}): gateways listen beside the service"
            raise checks.refuse("gateway_port", self.gateway_port, rule)

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

    webhook_url: WebhookUrl | None = option(
        None,
        Option(schemes=HTTP, doc="gets a [message](../how-to/alerts.md) when a person should look"),
    )
    webhook_kind: str = option(
        WEBHOOK_KINDS[0],
        Option(
            choices=WEBHOOK_KINDS,
            doc="what it gets: `standard`, the whole message; `slack`, a text as Slack, Mattermost "
            "and others take it",
        ),
    )
    webhook_secret_env: str = option(
        "TUNEPROOF_ALERTS_SECRET", Option(doc="the variable with the secret that signs it")
    )
    prometheus_url: Url | None = option(
        None,
        Option(
            schemes=HTTP,
            doc="whose rules are looked for, so that it is known whether alerts are configured",
        ),
    )

    def __post_init__(self) -> None:
        fields.check(self)


@dataclass(frozen=True, kw_only=True)
class OutgoingConfig:
    """Which addresses providers, webhooks and targets may have. Of a name, each address that is
    connected to is looked at; those of the own link and of a cloud's metadata are refused always.
    """

    private_addresses: bool = option(
        True,
        Option(
            env="TUNEPROOF_PRIVATE_ADDRESSES",
            doc="whether providers, webhooks and targets may be at [private "
            "addresses](../how-to/tokens.md#addresses-that-are-called): RFC 1918, loopback, ULA. "
            "Your own trainers are there",
        ),
    )
    allowed_networks: tuple[str, ...] = option(
        (),
        Option(
            rule=checks.networks,
            doc="private networks that may be called all the same: `127.0.0.1/32` for the embedded "
            "trainer",
        ),
    )

    def __post_init__(self) -> None:
        fields.check(self)


@dataclass(frozen=True, kw_only=True)
class RemoteConfig:
    """The service that the command line speaks to, where it is not the local one."""

    url: Url | None = option(
        None,
        Option(
            schemes=HTTP,
            env="TUNEPROOF_URL",
            argument="url",
            doc="the service that the command line speaks to",
        ),
    )
    token: Secret | None = option(
        None, Option(env="TUNEPROOF_TOKEN", argument="token", doc="its token")
    )

    def __post_init__(self) -> None:
        fields.check(self)


@dataclass(frozen=True, kw_only=True)
class KubernetesConfig:
    """What targets in a cluster share that their own options don't say.

    `namespace` comes from the pod when it is not set. `cluster_name` is the kubeconfig's context,
    outside a pod. The other two: connections are kept, and a breaker guards the calls.
    """

    cluster_name: str | None = option(
        None,
        Option(
            env="K8S_CLUSTER_NAME",
            doc="the kubeconfig's context of [targets](../how-to/route-traffic.md) that name none, "
            "outside a pod",
        ),
    )
    namespace: str | None = option(
        None,
        Option(
            env="K8S_NAMESPACE",
            doc="of targets that name none; the pod's, where it runs in one",
        ),
    )
    connection_pool_enabled: bool = option(
        True,
        Option(
            env="K8S_CONNECTION_POOL_ENABLED",
            doc="connections to the API server are kept for the next call",
        ),
    )
    circuit_breaker_enabled: bool = option(
        True,
        Option(
            env="K8S_CIRCUIT_BREAKER_ENABLED",
            doc="after 5 failures in a row the API server is left alone for a minute",
        ),
    )

    def __post_init__(self) -> None:
        fields.check(self)
