"""ConfigMaps and VirtualServices, patched over real HTTP as the API server speaks it."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.kubernetes import ApiServer, api_server
from tests.servers import free_port

from tuneproof import errors
from tuneproof.experiments import Variant
from tuneproof.rollout import Lane, Routing
from tuneproof.settings import Settings
from tuneproof.targets import Cluster, ConfigMapTarget, IstioTarget, open_target

CONFIG_MAP = "/api/v1/namespaces/prod/configmaps/models"
DEPLOYMENT = "/apis/apps/v1/namespaces/prod/deployments/api"
SERVICE = "/apis/networking.istio.io/v1/namespaces/prod/virtualservices/llm"

LANE = Lane(
    subject="deploy-1",
    candidate=Variant(model_id="ft:base:org::1", version="ver-1"),
    share=0.1,
)
ROUTING = Routing(
    task="hook",
    baseline=Variant(model_id="gpt-base"),
    lanes=(LANE,),
    salt="salt-1",
    version=3,
)


def at_share(share: float, **changes: Any) -> Routing:
    """The routing with this share for its candidate."""
    return replace(ROUTING, lanes=(replace(LANE, share=share),), **changes)


@pytest.fixture
def cluster() -> Iterator[ApiServer]:
    with api_server() as found:
        found.put(CONFIG_MAP, {"metadata": {"name": "models"}, "data": {"LOG_LEVEL": "info"}})
        found.put(DEPLOYMENT, {"metadata": {"name": "api"}, "spec": {"template": {"spec": {}}}})
        found.put(SERVICE, {"metadata": {"name": "llm"}, "spec": {"http": _routes()}})
        yield found


def _routes() -> list[dict[str, Any]]:
    def route(name: str) -> dict[str, Any]:
        return {
            "name": name,
            "timeout": "5s",
            "route": [
                {"destination": {"host": "llm", "subset": "baseline"}, "weight": 100},
                {"destination": {"host": "llm", "subset": "candidate"}, "weight": 0},
            ],
        }

    return [route("hook"), route("body"), {"name": "rest", "route": [{"destination": {}}]}]


def _connection(cluster: ApiServer) -> Cluster:
    return Cluster(server=cluster.url, token=cluster.token)


def _config_map(cluster: ApiServer, **options: Any) -> ConfigMapTarget:
    return ConfigMapTarget("models", namespace="prod", cluster=_connection(cluster), **options)


def _istio(cluster: ApiServer, **options: Any) -> IstioTarget:
    return IstioTarget("llm", namespace="prod", cluster=_connection(cluster), **options)


async def test_config_map_gets_the_variables_and_keeps_its_others(cluster: ApiServer) -> None:
    target = _config_map(cluster)
    await target.apply(ROUTING)
    found = cluster.objects[CONFIG_MAP]
    assert found["data"] == {
        "LOG_LEVEL": "info",
        "HOOK_MODEL": "gpt-base",
        "HOOK_BASELINE_MODEL": "gpt-base",
        "HOOK_CANDIDATE_MODEL": "ft:base:org::1",
        "HOOK_CANDIDATE_SHARE": "0.1000",
        "HOOK_SALT": "salt-1",
        "HOOK_ROUTING_VERSION": "3",
    }
    assert found["metadata"]["annotations"] == {"tuneproof.io/hook-version": "3"}
    assert await target.observe("hook") == {
        "model": "gpt-base",
        "baseline": "gpt-base",
        "candidate": "ft:base:org::1",
        "share": 0.1,
        "version": 3,
    }
    assert await target.observe("body") is None


async def test_model_in_use_switches_with_the_share_and_back(cluster: ApiServer) -> None:
    target = _config_map(cluster)
    for share, model in ((0.4, "gpt-base"), (0.5, "ft:base:org::1"), (0.0, "gpt-base")):
        await target.apply(at_share(share))
        assert cluster.objects[CONFIG_MAP]["data"]["HOOK_MODEL"] == model


async def test_applying_the_same_again_writes_nothing(cluster: ApiServer) -> None:
    target = _config_map(cluster, restart=["api"])
    await target.apply(ROUTING)
    patches = cluster.count("PATCH")
    await target.apply(ROUTING)
    assert cluster.count("PATCH") == patches == 2


async def test_change_by_somebody_else_is_kept(cluster: ApiServer) -> None:
    cluster.meddle = 2
    await _config_map(cluster).apply(ROUTING)
    data = cluster.objects[CONFIG_MAP]["data"]
    assert (data["OTHER"], data["HOOK_CANDIDATE_SHARE"]) == ("0", "0.1000")
    assert cluster.count("PATCH") == 3


async def test_endless_conflict_is_given_up_for_now(cluster: ApiServer) -> None:
    cluster.meddle = 1000
    with pytest.raises(errors.RetryableError, match="changed by somebody else 5 times"):
        await _config_map(cluster).apply(ROUTING)


async def test_two_tasks_at_once_lose_nothing(cluster: ApiServer) -> None:
    target = _config_map(cluster)
    await asyncio.gather(target.apply(ROUTING), target.apply(replace(ROUTING, task="body")))
    assert {"HOOK_MODEL", "BODY_MODEL"} <= set(cluster.objects[CONFIG_MAP]["data"])


async def test_absent_config_map_is_refused_or_made(cluster: ApiServer) -> None:
    del cluster.objects[CONFIG_MAP]
    with pytest.raises(errors.NotFoundError, match="models"):
        await _config_map(cluster).apply(ROUTING)
    assert await _config_map(cluster).observe("hook") is None
    await _config_map(cluster, create=True).apply(ROUTING)
    assert cluster.objects[CONFIG_MAP]["data"]["HOOK_MODEL"] == "gpt-base"


async def test_pods_restart_once_for_each_change(cluster: ApiServer) -> None:
    target = _config_map(cluster, restart=["api"])
    marks = []
    for routing in (ROUTING, ROUTING, replace(ROUTING, version=4), at_share(0.5)):
        await target.apply(routing)
        template = cluster.objects[DEPLOYMENT]["spec"]["template"]
        marks.append(template["metadata"]["annotations"]["tuneproof.io/models"])
    assert marks[0] == marks[1] == marks[2] != marks[3]


async def test_restart_that_was_cut_off_is_made_up_for(cluster: ApiServer) -> None:
    target = _config_map(cluster, restart=["api"])
    kept = cluster.objects.pop(DEPLOYMENT)
    with pytest.raises(errors.NotFoundError):
        await target.apply(ROUTING)
    cluster.objects[DEPLOYMENT] = kept
    await target.apply(ROUTING)
    assert cluster.objects[DEPLOYMENT]["spec"]["template"]["metadata"]["annotations"]


async def test_missing_right_names_the_verb(cluster: ApiServer) -> None:
    cluster.forbidden.add("PATCH")
    with pytest.raises(errors.DeniedError, match="cannot patch") as caught:
        await _config_map(cluster).apply(ROUTING)
    assert "right to patch" in caught.value.mend
    assert caught.value.details["status"] == 403


async def test_wrong_token_is_denied(cluster: ApiServer) -> None:
    target = ConfigMapTarget(
        "models", namespace="prod", cluster=Cluster(server=cluster.url, token="wrong")
    )
    with pytest.raises(errors.DeniedError):
        await target.apply(ROUTING)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_failing_api_server_is_called_again_later(cluster: ApiServer, status: int) -> None:
    cluster.status = status
    with pytest.raises(errors.RetryableError):
        await _config_map(cluster).apply(ROUTING)
    assert len(cluster.calls) == 1


async def test_absent_api_server_is_called_again_later() -> None:
    cluster = Cluster(server=f"http://127.0.0.1:{free_port()}", token="x")
    with pytest.raises(errors.RetryableError, match="did not answer"):
        await ConfigMapTarget("models", cluster=cluster).apply(ROUTING)


async def test_token_is_read_from_its_file(cluster: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    connection = Cluster(server=cluster.url, token_file=str(tmp_path / "token"))
    await ConfigMapTarget("models", namespace="prod", cluster=connection).apply(ROUTING)
    assert "HOOK_MODEL" in cluster.objects[CONFIG_MAP]["data"]


async def test_no_cluster_at_all_is_a_clear_error(tmp_path: Path) -> None:
    cluster = Cluster(kubeconfig=str(tmp_path / "none"))
    with pytest.raises(errors.ConfigError, match="No Kubernetes cluster"):
        await ConfigMapTarget("models", cluster=cluster).apply(ROUTING)


async def test_istio_weights_follow_the_share_of_their_route_only(cluster: ApiServer) -> None:
    before = copy.deepcopy(cluster.objects[SERVICE]["spec"]["http"])
    target = _istio(cluster)
    for share, weights in ((0.1, [90, 10]), (0.954, [5, 95]), (1.0, [0, 100]), (0.0, [100, 0])):
        await target.apply(at_share(share))
        http = cluster.objects[SERVICE]["spec"]["http"]
        assert [entry["weight"] for entry in http[0]["route"]] == weights
        assert http[1:] == before[1:]
        observed = await target.observe("hook")
        assert observed is not None
        assert observed["share"] == weights[1] / 100
    assert http == before


async def test_istio_writes_nothing_when_nothing_changes(cluster: ApiServer) -> None:
    target = _istio(cluster)
    await target.apply(ROUTING)
    await target.apply(ROUTING)
    assert cluster.count("PATCH") == 1


async def test_istio_without_a_candidate_sends_all_to_the_baseline(cluster: ApiServer) -> None:
    target = _istio(cluster)
    await target.apply(ROUTING)
    await target.apply(replace(ROUTING, lanes=()))
    http = cluster.objects[SERVICE]["spec"]["http"]
    assert [entry["weight"] for entry in http[0]["route"]] == [100, 0]


async def test_istio_route_that_does_not_fit_is_refused(cluster: ApiServer) -> None:
    with pytest.raises(errors.DataError, match=r"no HTTP route 'title'.*hook, body, rest"):
        await _istio(cluster).apply(replace(ROUTING, task="title"))
    with pytest.raises(errors.DataError, match="could not sum to 100"):
        await _istio(cluster, routes={"title": "rest"}).apply(replace(ROUTING, task="title"))
    assert await _istio(cluster).observe("title") is None
    assert cluster.count("PATCH") == 0


async def test_settings_of_kubernetes_hold_for_targets_that_say_nothing(
    cluster: ApiServer, tmp_path: Path
) -> None:
    file = tmp_path / "tuneproof.toml"
    file.write_text(
        f"""
        [kubernetes]
        namespace = "prod"
        cluster_name = "east"
        [targets.here]
        kind = "configmap"
        config_map = "models"
        server = "{cluster.url}"
        token = "{cluster.token}"
        [targets.there]
        kind = "configmap"
        config_map = "models"
        namespace = "other"
        """
    )
    settings = Settings.load(file=file, env={"K8S_CIRCUIT_BREAKER_ENABLED": "false"})
    here, there = settings.target("here").options, settings.target("there").options
    assert (here["namespace"], there["namespace"]) == ("prod", "other")
    assert "context" not in here  # it names its server
    assert there["context"] == "east"
    assert (here["circuit_breaker"], here["connection_pool"]) == (False, True)
    await open_target(settings.target("here")).apply(ROUTING)
    assert cluster.objects[CONFIG_MAP]["data"]["HOOK_MODEL"] == "gpt-base"


async def test_breaker_leaves_an_api_server_alone_that_keeps_failing(cluster: ApiServer) -> None:
    cluster.status = 503
    guarded = Cluster(server=cluster.url, token=cluster.token)
    plain = Cluster(server=cluster.url, token=cluster.token, circuit_breaker=False)
    for _ in range(6):
        for connection in (guarded, plain):
            with pytest.raises(errors.RetryableError):
                await connection.get(CONFIG_MAP)
    assert len(cluster.calls) == 5 + 6
    with pytest.raises(errors.CircuitBreakerError):
        await guarded.get(CONFIG_MAP)


async def test_connections_are_made_anew_where_no_pool_is_wanted(cluster: ApiServer) -> None:
    bare = Cluster(server=cluster.url, token=cluster.token, connection_pool=False)
    await bare.get(CONFIG_MAP)
    first = bare._api
    await bare.get(CONFIG_MAP)
    assert bare._api is not first
    pooled = _connection(cluster)
    await pooled.get(CONFIG_MAP)
    first = pooled._api
    await pooled.get(CONFIG_MAP)
    assert pooled._api is first
