"""Secrets and addresses show what is secret in them to nobody who does not ask."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import pickle

import pytest

from tuneproof.errors import ConfigError
from tuneproof.settings import (
    Options,
    ProviderConfig,
    Secret,
    Settings,
    TargetConfig,
    Url,
    WebhookUrl,
    revealed,
)

CANARY = "canary-7f3a"


def shown(value: object) -> list[str]:
    record = logging.LogRecord("x", logging.INFO, "f", 1, "%s %r", (value, value), None)
    return [str(value), repr(value), f"{value}", f"{[value]}", record.getMessage()]


@pytest.mark.parametrize(
    "value",
    [
        Secret(CANARY),
        Url(f"postgresql://me:{CANARY}@host/db?sslmode=require"),
        Url(f"https://{CANARY}@host/path"),
        Url(f"https://host/path?x=1&api_key={CANARY}"),
        Url(f"https://me:{CANARY}@[broken"),
        Url(f"postgresql://me:a/{CANARY}@host/db"),
        Url(f"postgresql://me:{CANARY}#1@host:5432/db"),
        Url(f"redis://:{CANARY}?1@host:6379/0"),
        Url(f"https://me:a/{CANARY}@host/path"),
        WebhookUrl(f"https://hooks.example.com/services/{CANARY}"),
        WebhookUrl(f"https://me:{CANARY}@hooks.example.com?x={CANARY}"),
        Options({"secret": CANARY, "headers": {"Authorization": CANARY}}),
        Options({"url": f"https://me:{CANARY}@host", "api_tokens": [CANARY]}),
    ],
)
def test_a_secret_does_not_show_itself(value):
    for text in shown(value):
        assert CANARY not in text
        assert "***" in text
    with pytest.raises(TypeError) as refused:
        json.dumps({"value": value})
    assert CANARY not in str(refused.value)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(value)


def test_what_is_no_secret_in_an_address_is_shown():
    url = Url(f"postgresql+asyncpg://me:{CANARY}@host:5432/db?sslmode=require")
    assert str(url) == "postgresql+asyncpg://me:***@host:5432/db?sslmode=require"
    assert (url.scheme, url.host) == ("postgresql", "host")
    assert str(Url("postgresql://me@host/db")) == "postgresql://me@host/db"
    assert str(Url("posts.csv")) == "posts.csv"
    assert Url("posts.csv").scheme == ""


def test_a_port_is_no_password():
    for address in ("http://host:8080/a@b", "https://host:443/x?to=a@b", "http://host/a@b"):
        assert str(Url(address)) == address


def test_a_secret_is_read_by_reveal_alone():
    assert Secret(CANARY).reveal() == CANARY
    assert revealed(None) is None
    assert revealed(Secret(Secret(CANARY))) == CANARY
    assert Secret(CANARY) == CANARY
    assert Secret(CANARY) != Secret("other")
    assert hash(Secret(CANARY)) == hash(CANARY)
    assert not Secret("")
    assert f"{Secret(CANARY):>5}" == "  ***"
    assert Options({"secret": CANARY})["secret"] == CANARY


def test_copies_of_a_record_keep_its_secrets_hidden():
    provider = ProviderConfig(api_key=CANARY)
    for text in (repr(dataclasses.asdict(provider)), repr(copy.deepcopy(provider))):
        assert CANARY not in text
    assert copy.deepcopy(provider) == provider
    assert dataclasses.replace(provider, kind="azure").api_key == CANARY


def test_a_refused_secret_is_not_told():
    for fields in ({"api_key": 4711}, {"base_url": f"ftp://me:{CANARY}@host"}):
        with pytest.raises(ConfigError) as caught:
            ProviderConfig(**fields)
        told = str(caught.value) + repr(caught.value.to_dict())
        assert CANARY not in told
        assert "4711" not in told


SECRET_PATHS = {
    "providers.default.api_key": CANARY,
    "providers.default.webhook_secret": CANARY,
    "providers.default.base_url": f"http://me:{CANARY}@127.0.0.1:1/v1",
    "sources.posts.url": f"postgresql://me:{CANARY}@127.0.0.1:1/db",
    "outcome_sources.x.url": f"postgresql://me:{CANARY}@127.0.0.1:1/db",
    "outcome_sources.x.query": "select :since, :until",
    "store.url": f"postgresql://me:{CANARY}@127.0.0.1:1/db",
    "cache.url": f"redis://:{CANARY}@127.0.0.1:1/0",
    "files.url": f"memory://me:{CANARY}@store",
    "tracking.uri": f"http://me:{CANARY}@127.0.0.1:1",
    "server.public_url": f"https://me:{CANARY}@host",
    "alerts.webhook_url": f"https://hooks.example.com/services/{CANARY}",
    "alerts.prometheus_url": f"http://me:{CANARY}@127.0.0.1:1",
    "remote.url": f"http://me:{CANARY}@127.0.0.1:1",
    "remote.token": CANARY,
    "targets.x.kind": "webhook",
    "targets.x.options": {"url": f"http://127.0.0.1:1/?token={CANARY}", "secret": CANARY},
}


def test_a_canary_in_each_setting_that_takes_a_secret_shows_nowhere(tmp_path):
    settings = Settings.load(dir=tmp_path, env={}, **SECRET_PATHS)
    described = settings.describe()
    for text in (repr(settings), json.dumps(settings.to_dict()), repr(described)):
        assert CANARY not in text
    masked = {path for path, value, _ in described if "***" in value}
    secret = {path for path, value in SECRET_PATHS.items() if CANARY in str(value)}
    nested = {"targets.x.options.url", "targets.x.options.secret"}
    assert masked == secret - {"targets.x.options"} | nested


def test_every_setting_that_holds_a_secret_is_in_the_canarys_list():
    from tuneproof.settings.tables import NAMED, SINGLE

    tried = {tuple(path.split(".")[:: 2 if path.count(".") == 2 else 1]) for path in SECRET_PATHS}
    for table, record in {**NAMED, **SINGLE}.items():
        for field in dataclasses.fields(record):
            if "Secret" in str(field.type) or "Url" in str(field.type):
                assert (table, field.name) in tried


def test_options_reach_their_part_as_they_were_given():
    options = TargetConfig(name="x", kind="webhook", options={"url": "u", "secret": CANARY}).options
    assert {**options} == {"url": "u", "secret": CANARY}
    assert options == {"url": "u", "secret": CANARY}
