"""Settings: precedence, origins, validation that names the mend, and secrets that stay hidden."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneproof.errors import ConfigError
from tuneproof.settings import (
    PipelineConfig,
    ProviderConfig,
    RelayConfig,
    ServerConfig,
    Settings,
    SourceConfig,
    StoreConfig,
    TaskConfig,
)
from tuneproof.settings.fields import from_table, options


def load(tmp_path: Path, text: str = "", env: dict[str, str] | None = None, **arguments: Any):
    file = tmp_path / "tuneproof.toml"
    file.write_text(text)
    return Settings.load(dir=tmp_path / "data", file=file, env=env or {}, **arguments)


def test_arguments_win_over_environment_over_file_over_defaults(tmp_path):
    text = """
        [pipelines.default.data_collection]
        engagement_threshold = 0.01
        training_data_threshold = 10
        days_back = 30
    """
    env = {"FINE_TUNING_ENGAGEMENT_THRESHOLD": "0.02", "FINE_TUNING_MIN_EXAMPLES": "20"}
    settings = load(tmp_path, text, env, engagement_threshold=0.03)
    config = settings.pipeline()
    assert config.engagement_threshold == 0.03
    assert config.training_data_threshold == 20
    assert config.days_back == 30
    assert config.traffic_split == 0.1
    origin = {path: source for path, _, source in settings.describe()}
    assert origin["pipelines.default.engagement_threshold"] == "argument"
    assert origin["pipelines.default.training_data_threshold"] == (
        "environment FINE_TUNING_MIN_EXAMPLES"
    )
    assert origin["pipelines.default.days_back"].endswith("tuneproof.toml")
    assert origin["pipelines.default.traffic_split"] == "default"


def test_arguments_that_are_none_set_nothing(tmp_path):
    assert load(tmp_path, traffic_split=None, host=None) == load(tmp_path)


def test_defaults_are_those_of_the_original(tmp_path):
    settings = load(tmp_path)
    config = settings.pipeline()
    assert (config.training_data_threshold, config.engagement_threshold) == (100, 0.06)
    assert (config.weekly_schedule, config.a_b_test_duration_hours) == ("0 2 * * 0", 168)
    assert (config.min_engagement_lift, config.min_cost_efficiency_gain) == (0.15, 0.10)
    assert settings.store.pool_size == 10
    assert settings.store.max_overflow == 0
    assert settings.cache.url == "mem://"
    assert settings.tracking.uri is None
    assert settings.tracking.experiment_name == "fine_tuning_pipeline"
    assert settings.server.metrics_port == 9090
    assert list(settings.tasks) == ["hook", "body"]


def test_every_variable_of_the_reference_is_read(tmp_path):
    env = {
        "FINE_TUNING_ENABLED": "false",
        "FINE_TUNING_MIN_EXAMPLES": "7",
        "FINE_TUNING_ENGAGEMENT_THRESHOLD": "0.5",
        "FINE_TUNING_SCHEDULE": "0 3 * * 1",
        "OPENAI_API_KEY": "sk-1",
        "OPENAI_ORG_ID": "org",
        "OPENAI_BASE_URL": "http://127.0.0.1:1/v1",
        "HOOK_MODEL": "hook-model",
        "BODY_MODEL": "body-model",
        "DATABASE_URL": "postgresql://h/db",
        "DATABASE_POOL_SIZE": "3",
        "DATABASE_MAX_OVERFLOW": "4",
        "DATABASE_POOL_TIMEOUT": "5",
        "REDIS_URL": "redis://h:1/0",
        "REDIS_MAX_CONNECTIONS": "6",
        "REDIS_SOCKET_KEEPALIVE": "no",
        "MLFLOW_TRACKING_URI": "http://h:2",
        "MLFLOW_EXPERIMENT_NAME": "name",
        "MLFLOW_AUTOLOG_ENABLED": "0",
        "K8S_CLUSTER_NAME": "cluster",
        "K8S_NAMESPACE": "space",
        "K8S_CONNECTION_POOL_ENABLED": "off",
        "K8S_CIRCUIT_BREAKER_ENABLED": "off",
        "PROMETHEUS_METRICS_ENABLED": "False",
        "PROMETHEUS_METRICS_PORT": "9999",
        "GRAFANA_DASHBOARD_ENABLED": "0",
    }
    s = load(tmp_path, env=env)
    config, provider = s.pipeline(), s.providers["default"]
    assert (config.enabled, config.training_data_threshold) == (False, 7)
    assert (config.engagement_threshold, config.weekly_schedule) == (0.5, "0 3 * * 1")
    assert (provider.api_key, provider.organization) == ("sk-1", "org")
    assert (provider.kind, provider.base_url) == ("openai", "http://127.0.0.1:1/v1")
    assert (s.tasks["hook"].model, s.tasks["body"].model) == ("hook-model", "body-model")
    assert s.store == StoreConfig(
        url="postgresql://h/db", pool_size=3, max_overflow=4, pool_timeout=5
    )
    assert (s.cache.url, s.cache.max_connections, s.cache.keepalive) == ("redis://h:1/0", 6, False)
    assert (s.tracking.uri, s.tracking.experiment_name) == ("http://h:2", "name")
    assert s.tracking.autolog is False
    assert (s.kubernetes.cluster_name, s.kubernetes.namespace) == ("cluster", "space")
    assert not s.kubernetes.connection_pool_enabled
    assert not s.kubernetes.circuit_breaker_enabled
    assert (s.server.metrics_enabled, s.server.metrics_port) == (False, 9999)
    assert s.server.grafana_dashboard_enabled is False


def test_without_key_and_address_the_provider_is_our_own_trainer(tmp_path):
    assert load(tmp_path).providers["default"].embedded
    assert not load(tmp_path, env={"OPENAI_API_KEY": "sk"}).providers["default"].embedded
    assert not load(tmp_path, base_url="http://h/v1").providers["default"].embedded


def test_keys_come_from_the_variable_that_the_provider_names(tmp_path):
    text = '[providers.nebius]\nbase_url = "https://h/v1"\napi_key_env = "NEBIUS_KEY"\n'
    settings = load(tmp_path, text, {"NEBIUS_KEY": "secret-1"})
    assert settings.providers["nebius"].api_key == "secret-1"
    assert settings.providers["default"].embedded


def test_secrets_and_passwords_show_nowhere(tmp_path):
    env = {
        "OPENAI_API_KEY": "sk-very-secret",
        "DATABASE_URL": "postgresql://user:very-secret@host/db",
        "REDIS_URL": "rediss://:very-secret@host:6379/0",
        "MLFLOW_TRACKING_URI": "https://user:very-secret@mlflow",
        "TUNEPROOF_TOKEN": "very-secret",
    }
    settings = load(tmp_path, env=env)
    for shown in (
        repr(settings),
        str(settings),
        json.dumps(settings.to_dict()),
        str(settings.describe()),
    ):
        assert "very-secret" not in shown
        assert "***" in shown
    assert settings.store.url.reveal() == env["DATABASE_URL"]
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, database_url="mysql://user:very-secret@host/db")
    assert "very-secret" not in str(caught.value) + str(caught.value.details)


def test_nested_sections_and_original_names_are_read(tmp_path):
    text = """
        [pipelines.weekly]
        tasks = ["hook"]
        [pipelines.weekly.training.hyperparameters]
        n_epochs = 3
        [pipelines.weekly.evaluation]
        duration_hours = 24
        [pipelines.weekly.evaluation.success_criteria]
        min_engagement_lift = 0.2
        [pipelines.weekly.deployment]
        strategy = "canary"
        [pipelines.weekly.deployment.rollout_config]
        holdback = 0.0
        [pipelines.weekly.schedule]
        driver = "external"
    """
    config = load(tmp_path, text).pipeline("weekly")
    assert config.tasks == ("hook",)
    assert (config.n_epochs, config.a_b_test_duration_hours) == (3, 24)
    assert (config.min_engagement_lift, config.holdback) == (0.2, 0.0)
    assert (config.deployment_strategy, config.schedule_driver) == ("canary", "external")


def test_several_pipelines_tasks_sources_and_targets(tmp_path):
    text = """
        [pipelines.mail]
        tasks = ["subject"]
        [pipelines.mail.data_collection]
        source = "mails"
        [tasks.subject]
        prompt = "Subject for {topic}"
        completion = "subject"
        [sources.mails]
        url = "postgresql://h/mails"
        table = "mails"
        where = "lang = 'en'"
        [sources.mails.columns]
        engagement_rate = "open_rate"
        [targets.cluster]
        kind = "configmap"
        name_in_cluster = "models"
    """
    settings = load(tmp_path, text)
    assert set(settings.pipelines) == {"default", "mail"}
    assert settings.tasks["subject"].columns == ("topic",)
    assert settings.sources["mails"].columns == {"engagement_rate": "open_rate"}
    assert settings.targets["cluster"].options == {"name_in_cluster": "models"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[pipelines.default]\ntreffic = 1", ["pipelines.default.treffic"]),
        ("[pipelines.default.evaluation]\ntraffic_spilt = 0.1", ["traffic_split"]),
        ("[stor]\nurl = 'sqlite:///x'", ['"store"']),
        ("[store]\nurll = 'sqlite:///x'", ["store.urll", '"url"']),
        ("[server]\nport = 70000", ["server.port", "70000", "65535", "tuneproof.toml"]),
        ("[pipelines.default]\ntasks = ['hooks']", ["'hooks'", '"hook"']),
        ("[pipelines.default.data_collection]\nsource = 'post'", ["'post'", '"posts"']),
        ("[tasks.subject]\nprompt = 'x'", ["tasks.subject.completion", "not set"]),
        ("[tasks.hook]\nprompt = '{broken'", ["tasks.hook.prompt", "braces"]),
        ("[pipelines.default]\ndata_collection = 3", ["must be a table"]),
        ("nonsense", ["tuneproof.toml", "TOML"]),
        ("[pipelines.default.schedule]\ntime_zone = 'Mars/Base'", ["'Mars/Base'", "IANA"]),
        ("[pipelines.default.schedule]\nweekly_schedule = '61 * * * *'", ["cron", "02:00"]),
        ("[sources.posts]\ntime_format = '%H:%M'", ["year, month and day", "strptime"]),
        ("[sources.posts]\ntime_format = 'DD/MM/YYYY'", ["year, month and day", "%d/%m/%Y"]),
        ("[sources.posts]\ntime_zone = 'Berlin'", ["IANA time zone", "Europe/Berlin"]),
        ("[pipelines.default.data_collection]\nlate_days = 0", ["late_days", "above 0"]),
        ("[targets.x]\nkind = 'istios'", ["targets.x.kind", '"istio"']),
    ],
)
def test_a_malformed_file_is_refused_with_name_and_mend(tmp_path, text, said):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    for part in said:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("training_data_threshold", 0),
        ("training_data_threshold", 1.5),
        ("training_data_threshold", True),
        ("engagement_threshold", 1.2),
        ("engagement_threshold", -0.1),
        ("engagement_threshold", float("nan")),
        ("engagement_threshold", "0.06"),
        ("days_back", 0),
        ("chunk_size", 0),
        ("max_records", 0),
        ("n_epochs", "many"),
        ("batch_size", 0),
        ("learning_rate_multiplier", 0),
        ("timeout_seconds", float("inf")),
        ("traffic_split", 0.0),
        ("traffic_split", 0.6),
        ("a_b_test_duration_hours", -1),
        ("significance_threshold", 0),
        ("cost_metric", "per_post"),
        ("decision", "maybe"),
        ("deployment_strategy", "yolo"),
        ("steps", [0.5, 0.1]),
        ("steps", []),
        ("steps", [0.5, 1.5]),
        ("initial_traffic", 0),
        ("max_traffic", 1.01),
        ("holdback", 0.9),
        ("max_error_rate", 0),
        ("weekly_schedule", "every sunday"),
        ("weekly_schedule", "0 0 2 * * 0"),
        ("overlap", "parallel"),
        ("tasks", []),
        ("tasks", ["hook", "hook"]),
        ("tasks", "hook"),
        ("name", ""),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_field(field, value):
    with pytest.raises(ConfigError) as caught:
        PipelineConfig(**{field: value})
    assert caught.value.details["field"] == field
    assert str(caught.value).startswith(f"{field} is ")
    assert caught.value.mend
    json.dumps(caught.value.to_dict(), allow_nan=False)


def test_initial_traffic_must_not_exceed_the_most():
    with pytest.raises(ConfigError, match="initial_traffic"):
        PipelineConfig(initial_traffic=0.5, max_traffic=0.3)


def test_a_request_may_set_thresholds_but_no_addresses_or_models():
    config = PipelineConfig().override(engagement_threshold=0.1, a_b_test_duration_hours=24)
    assert (config.engagement_threshold, config.a_b_test_duration_hours) == (0.1, 24)
    for field in ("source", "provider", "base_model", "tasks", "name"):
        with pytest.raises(ConfigError, match=field):
            PipelineConfig().override(**{field: "x"})
    with pytest.raises(ConfigError, match="engagement_threshold"):
        PipelineConfig().override(engagement_treshold=0.1)


shares = st.floats(0.001, 0.5)


@given(
    threshold=st.floats(0, 1),
    split=shares,
    steps=st.none() | st.lists(shares, min_size=1, unique=True).map(sorted),
    epochs=st.just("auto") | st.integers(1, 50),
    records=st.none() | st.integers(1, 10**6),
)
def test_a_config_survives_json_and_pickle(threshold, split, steps, epochs, records):
    config = PipelineConfig(
        engagement_threshold=threshold,
        traffic_split=split,
        steps=steps,
        n_epochs=epochs,
        max_records=records,
    )
    assert PipelineConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_sections_make_the_config_that_their_fields_make():
    sections = {"data_collection": {"days_back": 3}, "evaluation": {"duration_hours": 5}}
    made = PipelineConfig.from_sections("x", sections)
    assert made == PipelineConfig(name="x", days_back=3, a_b_test_duration_hours=5)


def test_every_field_but_the_name_can_be_set_in_the_file():
    known = {option.name: option.default for option in options(PipelineConfig)}
    assert set(known) == {f.name for f in dataclasses.fields(PipelineConfig)}
    for option in options(PipelineConfig):
        for path in option.paths if option.name != "name" else ():
            table: Any = option.default
            for key in reversed(path.split(".")):
                table = {key: table}
            made = from_table(PipelineConfig, table, "pipelines.x")
            assert made == {option.name: option.default}, path


def test_the_store_is_a_file_in_the_data_directory_unless_set(tmp_path):
    settings = load(tmp_path)
    assert settings.dir == tmp_path / "data"
    assert settings.store.url == f"sqlite+aiosqlite:///{tmp_path / 'data' / 'tuneproof.db'}"
    assert Settings(dir=tmp_path).store.url.reveal().endswith("/tuneproof.db")


def test_the_directory_in_the_file_is_relative_to_the_file(tmp_path):
    (tmp_path / "tuneproof.toml").write_text('dir = "state"')
    settings = Settings.load(file=tmp_path / "tuneproof.toml", env={})
    assert settings.dir == tmp_path / "state"


def test_the_file_is_found_in_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tuneproof.toml").write_text("[server]\nport = 1234\n")
    assert Settings.load(env={}).server.port == 1234
    with pytest.raises(ConfigError, match="tuneproof init"):
        Settings.load(env={}, file="absent.toml")


def test_a_folder_is_read_as_the_first_users_mount_it(tmp_path):
    """It was refused: "The settings file is a directory", and neither form was read."""
    sections = {"data_collection": {"engagement_threshold": 0.05, "days_back": 9}}
    (tmp_path / "training_config.json").write_text(json.dumps(sections))
    (tmp_path / "pipeline_config.yaml").write_text(
        "training_data_threshold: 120\nengagement_threshold: 0.06\na_b_test_duration_hours: 48\n"
    )
    (tmp_path / "tuneproof.json").write_text(json.dumps({"store": {"pool_size": 7}, "dir": "d"}))
    (tmp_path / "tuneproof.toml").write_text("[store]\npool_size = 8\n")
    settings = Settings.load(env={"TUNEPROOF_CONFIG": str(tmp_path)})
    config = settings.pipeline()
    assert (config.training_data_threshold, config.a_b_test_duration_hours) == (120, 48)
    assert (config.engagement_threshold, config.days_back) == (0.06, 9)
    assert (settings.store.pool_size, settings.dir) == (8, tmp_path / "d")
    assert settings.origins["store.pool_size"] == str(tmp_path / "tuneproof.toml")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("training_config.json", "{", "is not valid JSON"),
        ("training_config.json", "[]", "is a list"),
        ("training_config.json", '{"training": {"days": 3}}', "training.days"),
        ("pipeline_config.yaml", "a: b: c", "is not valid YAML"),
        ("pipeline_config.yaml", "engagement_treshold: 0.1", "engagement_threshold"),
        ("pipeline_config.yaml", "engagement_threshold: high", "pipeline_config.yaml"),
        ("tuneproof.json", '{"store": {"pool_sise": 1}}', "pool_size"),
    ],
)
def test_each_form_of_a_settings_file_is_refused_with_its_fault(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as raised:
        Settings.load(file=tmp_path, env={})
    assert said in f"{raised.value} {raised.value.details}"


def test_a_folder_without_settings_is_refused_with_what_may_be_in_it(tmp_path):
    with pytest.raises(ConfigError, match=r"a directory without any of training_config\.json"):
        Settings.load(file=tmp_path, env={})


def test_pools_and_breakers_follow_the_settings(tmp_path):
    """Both were constants: the documented values of a chart could not be told to the service."""
    text = """
        [store]
        pool_min_size = 3
        max_queries = 10
        max_idle_seconds = 5
        [cache]
        health_check_interval = 15
        [breakers.openai]
        failure_threshold = 4
        timeout = 90
        [breakers.mlflow]
        failure_threshold = 6
        timeout = 400
    """
    settings = load(tmp_path, text)
    assert settings.breakers.of("openai") == {
        "failure_threshold": 4,
        "timeout": 90,
        "max_timeout": 300.0,
    }
    assert settings.breakers.of("mlflow")["max_timeout"] == 400
    assert (settings.store.pool_min_size, settings.store.max_queries) == (3, 10)
    assert settings.cache.health_check_interval == 15
    with pytest.raises(ConfigError, match=r"store\.pool_min_size is 11.*at most pool_size \(10\)"):
        load(tmp_path, "[store]\npool_min_size = 11")


def test_adapters_are_resolved_from_dotted_names(tmp_path):
    settings = load(tmp_path, '[adapters]\ncache = "collections:OrderedDict"\nmine = "json:loads"')
    assert settings.adapter("cache").__name__ == "OrderedDict"
    assert settings.adapter("mine") is json.loads
    assert settings.adapters["store"] == "tuneproof.store:open_store"
    with pytest.raises(ConfigError, match="no adapter 'cash'"):
        settings.adapter("cash")
    broken = load(tmp_path, '[adapters]\ncache = "absent_package:Cache"')
    with pytest.raises(ConfigError, match=r"adapters\.cache.*absent_package"):
        broken.adapter("cache")


@pytest.mark.parametrize(
    ("host", "needed"),
    [("127.0.0.1", False), ("localhost", False), ("::1", False), ("0.0.0.0", True), ("host", True)],
)
def test_any_bind_but_loopback_needs_a_token(host, needed):
    assert ServerConfig(host=host).token_needed is needed


def test_tokens_cannot_be_switched_off_on_an_open_bind():
    with pytest.raises(ConfigError, match="require_token"):
        ServerConfig(host="0.0.0.0", require_token=False)
    assert ServerConfig(require_token=True).token_needed
    with pytest.raises(ConfigError, match="gateway_port is 8686, but must be another than port"):
        ServerConfig(gateways=2, port=8686, gateway_port=8686)
    assert ServerConfig(port=8686, gateway_port=8686).gateways == 0


def test_the_address_is_one_that_people_can_open(tmp_path):
    assert load(tmp_path).address == "http://127.0.0.1:8686"
    assert load(tmp_path, host="0.0.0.0", port=1).address == "http://127.0.0.1:1"
    assert load(tmp_path, host="::1", port=1).address == "http://[::1]:1"
    assert load(tmp_path, public_url="https://tp.example/").address == "https://tp.example"


def test_the_environment_is_refused_with_the_variable_named():
    for env, said in (
        ({"FINE_TUNING_MIN_EXAMPLES": "many"}, "FINE_TUNING_MIN_EXAMPLES"),
        ({"FINE_TUNING_ENABLED": "perhaps"}, "FINE_TUNING_ENABLED"),
        ({"DATABASE_POOL_SIZE": "0"}, "environment DATABASE_POOL_SIZE"),
    ):
        with pytest.raises(ConfigError, match=said):
            Settings.load(env=env)


def test_an_empty_variable_sets_nothing():
    settings = Settings.load(env={"FINE_TUNING_MIN_EXAMPLES": "", "OPENAI_API_KEY": " "})
    assert settings.pipeline().training_data_threshold == 100
    assert settings.providers["default"].embedded


def test_an_unknown_argument_names_the_closest_one():
    with pytest.raises(ConfigError, match='"traffic_split"'):
        Settings.load(env={}, trafic_split=0.1)


def test_whole_paths_are_arguments_too(tmp_path):
    settings = load(tmp_path, **{"pipelines.weekly.seed": 3, "server.port": 1})
    assert settings.pipeline("weekly").seed == 3
    assert settings.server.port == 1


def test_prices_are_pairs_of_numbers():
    assert ProviderConfig(prices={"m": [1, 2]}).prices == {"m": (1.0, 2.0)}
    with pytest.raises(ConfigError, match=r"prices\.m"):
        ProviderConfig(prices={"m": 1})


def test_records_check_themselves():
    with pytest.raises(ConfigError, match="table"):
        SourceConfig(table=" ")
    with pytest.raises(ConfigError, match="completion"):
        TaskConfig(name="x", prompt="p", completion="")


@pytest.mark.parametrize(("expression", "good"), [("0 0 31 2 *", False), ("0 0 29 2 *", True)])
def test_schedule_that_never_fires_is_refused(expression: str, good: bool) -> None:
    if good:
        assert PipelineConfig(weekly_schedule=expression).weekly_schedule == expression
        return
    with pytest.raises(ConfigError, match="must name an instant that comes"):
        PipelineConfig(weekly_schedule=expression)


def test_unknown_kind_of_provider_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="azur"):
        Settings(providers={"default": ProviderConfig(kind="azur")})


@pytest.mark.parametrize("name", ["days_back", "maturation_hours", "timeout_seconds"])
def test_duration_that_no_date_can_be_moved_by_is_refused(name: str) -> None:
    """Seen: a run with `days_back` 1e9 was taken, and failed by `OverflowError`."""
    with pytest.raises(ConfigError, match=f"{name} .* at most"):
        PipelineConfig(**{name: 1e12})


RELAYS = (
    ({"relay.enabled": True}, "budget_usd_per_day"),
    ({"relay.budget_usd_per_day": "much"}, "budget_usd_per_day"),
    ({"relay.budget_usd_per_day": -1}, "budget_usd_per_day"),
    ({"relay.paths": ["/v1/models"]}, "paths"),
    ({"relay.paths": ["/v1/*"]}, "paths"),
    ({"relay.paths": ["/admin"]}, "paths"),
    ({"relay.paths": ["PUT /v1/files"]}, "paths"),
    ({"relay.provider": "nobody"}, "provider"),
)


SHADOWS = (
    ({"shadow_model": "m"}, "shadow_budget_usd_per_day"),
    ({"shadow_model": "m", "shadow_budget_usd_per_day": "much"}, "shadow_budget_usd_per_day"),
    ({"shadow_share": 10}, "shadow_share"),
    ({"shadow_concurrency": 0}, "shadow_concurrency"),
    ({"shadow_provider": "nobody"}, "shadow_provider"),
    (
        {
            "shadow_model": "m",
            "shadow_budget_usd_per_day": 5,
            "served_by": "application",
        },
        "shadow_model",
    ),
)


@pytest.mark.parametrize(("said", "field"), SHADOWS)
def test_shadow_traffic_is_bounded_and_has_somebody_to_go_to(
    tmp_path: Path, said: Any, field: str
) -> None:
    given = {f"tasks.hook.{name}": value for name, value in said.items()}
    with pytest.raises(ConfigError) as caught:
        Settings.load(dir=tmp_path, env={}, **given)
    assert str(caught.value.details["field"]).endswith(field)


def test_a_shadow_is_served_by_whoever_serves_its_task_unless_it_is_said(tmp_path: Path) -> None:
    more = {"shadow_model": "m", "shadow_budget_usd_per_day": "unlimited"}
    given = {f"tasks.hook.{name}": value for name, value in more.items()}
    others = {"providers.other.kind": "compatible", "providers.other.base_url": "http://o/v1"}
    for said, provider in (
        ({}, "default"),
        ({"tasks.hook.model_provider": "other"}, "other"),
        ({"tasks.hook.shadow_provider": "other"}, "other"),
    ):
        found = Settings.load(dir=tmp_path, env={}, **given, **others, **said)
        assert found.shadows["hook"].provider == provider
        assert found.shadows["hook"].budget_usd is None
        assert found.counts_spending
    assert not Settings.load(dir=tmp_path, env={}).counts_spending


@pytest.mark.parametrize("alias", ["tuneproof/body", "ours"])
def test_an_alias_that_means_something_else_is_refused(tmp_path: Path, alias: str) -> None:
    """Seen: `tuneproof/body` was taken for an alias, and had no effect."""
    said = {"tasks.hook.aliases": [alias], "tasks.body.aliases": ["ours"]}
    with pytest.raises(ConfigError, match=alias) as caught:
        Settings.load(dir=tmp_path / "data", env={}, **said)
    assert str(caught.value.details["field"]).endswith(".aliases")


@pytest.mark.parametrize(("said", "field"), RELAYS)
def test_what_is_passed_on_is_said_with_care(tmp_path: Path, said: Any, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.load(dir=tmp_path / "data", env={}, **said)
    assert caught.value.details["field"] == f"relay.{field}"


def test_only_listed_requests_are_passed_on() -> None:
    paths = ("/v1/embeddings", "/v1/audio/*", "GET /v1/responses/*")
    relay = RelayConfig(enabled=True, budget_usd_per_day=1, paths=paths)
    for method, path, entry in (
        ("POST", "/v1/embeddings", "/v1/embeddings"),
        ("POST", "/v1/audio/speech", "/v1/audio/*"),
        ("GET", "/v1/responses/r", "/v1/responses/*"),
        ("GET", "/v1/embeddings", ""),
        ("POST", "/v1/embeddings/x", ""),
        ("POST", "/v1/audio/", ""),
        ("POST", "/v1/audio", ""),
        ("POST", "/v1/responses/r", ""),
        ("PUT", "/v1/audio/speech", ""),
    ):
        assert relay.passes(method, path) == entry, (method, path)
    assert dataclasses.replace(relay, enabled=False).passes("POST", "/v1/embeddings") == ""


def test_a_share_or_a_threshold_chooses_the_posts_and_never_both() -> None:
    both = {"data_collection": {"top_share": 0.1, "engagement_threshold": 0.05}}
    with pytest.raises(ConfigError, match="exactly one of them") as refused:
        PipelineConfig.from_sections("default", both)
    assert refused.value.details["field"] == "top_share"
    config = PipelineConfig(top_share=0.1)
    assert config.override(days_back=3).top_share == 0.1
    assert config.override(engagement_threshold=0.05).top_share is None
    back = config.override(engagement_threshold=0.05).override(top_share=0.2)
    assert (back.top_share, back.engagement_threshold) == (0.2, 0.06)
    with pytest.raises(ConfigError, match="exactly one of them"):
        config.override(top_share=0.2, engagement_threshold=0.05)
    with pytest.raises(ConfigError, match="top_share"):
        PipelineConfig(top_share=0)


# --- what a pipeline goes on with where its model goes ------------------------------------------

LATE = {"make": "train", "model": "late", "provider": "other"}
FORMER_TABLE = """
[providers.other]
kind = "trainer"
[pipelines.default.training]
successor_model = "late"
n_epochs = 2
"""


def test_a_successor_s_settings_of_before_are_read_as_a_recipe_and_told_of(tmp_path, caplog):
    path = tmp_path / "tuneproof.toml"
    path.write_text(FORMER_TABLE + 'successor_provider = "other"\n')
    config = Settings.load(dir=tmp_path, file=path, env={}).pipeline()
    assert (config.successors, config.n_epochs) == ((LATE,), 2)
    assert "[[pipelines.default.successors]] with make" in caplog.text
    assert PipelineConfig.from_sections("x", {"training": {"successor_model": "late"}}) == (
        PipelineConfig(name="x", successors=({"make": "train", "model": "late"},))
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            FORMER_TABLE + '[[pipelines.default.successors]]\nmodel = "next"',
            "says what pipelines.default.successors says",
        ),
        (
            FORMER_TABLE + 'successor_provider = "none"',
            "successors names the provider 'none', which is not set",
        ),
        (
            '[[pipelines.default.successors]]\nmake = "prompt"\nprompt = "Say {original_input}"',
            "model is None, but must be named: the model in use is the one that goes",
        ),
        (
            "[pipelines.default]\n"
            'successors = [{ make = "as_is", model = "a" }, { make = "as_is", model = "b" }]\n'
            "[pipelines.default.evaluation]\ntraffic_split = 0.4",
            "pipelines.default.successors: no run could go by them: traffic_split is 0.4",
        ),
    ],
)
def test_successors_that_no_run_could_go_by_are_refused(tmp_path, text, said):
    path = tmp_path / "tuneproof.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Settings.load(dir=tmp_path, file=path, env={})
    assert said in caught.value.message
    assert caught.value.mend


def test_a_successor_s_settings_of_before_are_read_from_wherever_they_were(tmp_path):
    """Each file may say a part, in each of its forms; nulls say nothing."""

    def read(**files: str) -> Any:
        for path in tmp_path.iterdir():
            path.unlink()
        for name, text in files.items():
            (tmp_path / name.replace("__", ".")).write_text(text)
        return Settings.load(dir=tmp_path / "data", file=tmp_path, env={}).pipeline().successors

    late = {"make": "train", "model": "late"}
    nested = '{"pipelines": {"default": {"training": {"successor_model": %s}}}}'
    provider = '[pipelines.default.training]\nsuccessor_provider = "default"\n'
    assert read(pipeline_config__yaml="successor_model: late") == (late,)
    assert read(tuneproof__json=nested % '"late"') == (late,)
    halves = read(tuneproof__json=nested % '"late"', tuneproof__toml=provider)
    assert halves == ({**late, "provider": "default"},)
    assert read(tuneproof__json=nested % "null") == ()
    assert read(tuneproof__toml=provider) == ()  # of no model, so of nothing
    newer = '[[pipelines.default.successors]]\nmake = "as_is"\nmodel = "newer"\n'
    both = read(tuneproof__json=nested % '"late"', tuneproof__toml=newer)
    assert both == ({"make": "as_is", "model": "newer"},)
    for said in ({"successor_model": "late"}, {"pipelines.default.successor_model": "late"}):
        assert Settings.load(dir=tmp_path / "data", env={}, **said).pipeline().successors == (late,)


def test_a_stored_config_is_restored_whatever_its_successors_would_be_refused_for():
    """It runs, or is replayed, by its own recipes; of its successors the settings of now tell."""
    stored = PipelineConfig(traffic_split=0.5, allocation="thompson").to_dict()
    stored["successors"] = [{"make": "as_is", "model": name} for name in "abc"]
    config = PipelineConfig.from_dict(stored)
    assert len(config.successors) == 3
    assert config.override(traffic_split=0.4).traffic_split == 0.4
    with pytest.raises(ConfigError, match="no run could go by them"):
        Settings(pipelines={"default": config})


def test_a_config_that_a_version_before_stored_has_its_successor():
    stored = PipelineConfig(base_model="b").to_dict()
    del stored["successors"]
    stored |= {"successor_model": None, "successor_provider": None}
    assert PipelineConfig.from_dict(stored) == PipelineConfig(base_model="b")
    stored |= {"successor_model": "late", "successor_provider": "other"}
    assert PipelineConfig.from_dict(stored).successors == (LATE,)
