"""From a target's settings to the target."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tuneproof.errors import ConfigError
from tuneproof.outgoing import ANYWHERE, Rules, told
from tuneproof.rollout import Target
from tuneproof.settings import Url
from tuneproof.targets.cluster import Cluster
from tuneproof.targets.config_map import ConfigMapTarget
from tuneproof.targets.env_file import EnvFileTarget
from tuneproof.targets.istio import IstioTarget
from tuneproof.targets.webhook import WebhookTarget

KINDS: Mapping[str, Callable[..., Target]] = {
    "configmap": ConfigMapTarget,
    "istio": IstioTarget,
    "webhook": WebhookTarget,
    "envfile": EnvFileTarget,
}


class Described(Protocol):
    """What `open_target` needs to know; `settings.TargetConfig` is one."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def options(self) -> Mapping[str, Any]: ...


def open_target(config: Described, *, outgoing: Rules = ANYWHERE) -> Target:
    """The target that `config` describes, calling where `outgoing` lets it; nothing is called yet.

    Options of the cluster (`server`, `token_file`, `kubeconfig`, ...) stand beside the target's
    own. Raises `ConfigError` for an unknown kind or option, and for a missing one.
    """
    if config.kind not in KINDS:
        raise ConfigError(
            f"Target {config.name!r} has kind {config.kind!r}, which is unknown.",
            mend=f"Use one of {', '.join(sorted(KINDS))}.",
        )
    make = KINDS[config.kind]
    options = dict(config.options)
    own = _names(make) - {"name", "cluster", "outgoing"}
    of_cluster = _names(Cluster) - {"outgoing"} if "cluster" in _names(make) else set()
    unknown = sorted(set(options) - own - of_cluster)
    if unknown:
        raise ConfigError(
            f"Target {config.name!r} has an unknown option {unknown[0]!r}.",
            mend=f"A {config.kind} target knows {', '.join(sorted(own | of_cluster))}.",
        )
    if of_cluster:
        given = {key: options.pop(key) for key in sorted(of_cluster & set(options))}
        options["cluster"] = Cluster(**given, outgoing=outgoing)
    missing = sorted(_required(make) - set(options))
    if missing:
        raise ConfigError(
            f"Target {config.name!r} needs the option {missing[0]!r}.",
            mend=f"Set it in [targets.{config.name}].",
        )
    _check_written(config, outgoing)
    return make(name=config.name, **options, **told(make, outgoing))


def _check_written(config: Described, outgoing: Rules) -> None:
    """Refuse an address that is written as a number that must not be called."""
    for key in ("url", "observe_url", "server"):
        given = config.options.get(key)
        if isinstance(given, str):
            outgoing.check_written(f"targets.{config.name}.{key}", Url(given))


def _names(make: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(make).parameters)


def _required(make: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(make).parameters.items()
    return {name for name, p in parameters if p.default is inspect.Parameter.empty}
