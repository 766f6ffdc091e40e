"""Which server of the wire an address belongs to, and what a provider refuses to start with."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tuneproof.errors import ConfigError
from tuneproof.providers import DIALECTS, dialect_for, open_provider


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str = "default"
    kind: str = "openai"
    base_url: str | None = None
    api_key: str | None = None
    organization: str | None = None


@pytest.mark.parametrize(
    ("kind", "base_url", "name"),
    [
        ("openai", None, "openai"),
        ("openai", "https://api.openai.com/v1", "openai"),
        ("openai", "https://eu.api.openai.com/v1", "openai"),
        ("openai", "https://us.openai.azure.com/openai/v1/", "azure"),
        ("openai", "https://api.tokenfactory.nebius.com/v1/", "nebius"),
        ("openai", "https://api.anthropic.com/v1", "anthropic"),
        ("openai", "http://127.0.0.1:8688/v1", "compatible"),
        ("openai", "https://api.openai.com.evil.example/v1", "compatible"),
        ("azure", "http://127.0.0.1:1/v1", "azure"),
    ],
)
def test_address_decides_the_dialect_unless_the_kind_names_it(
    kind: str, base_url: str | None, name: str
) -> None:
    assert dialect_for(kind, base_url).name == name


def test_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError,
        match="anthropic, azure, compatible, fireworks, nebius, openai, together, trainer",
    ):
        dialect_for("vertex", None)


@pytest.mark.parametrize("kind", ["azure", "nebius", "compatible"])
def test_kind_that_lives_nowhere_by_itself_needs_an_address(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"kind {kind} has no base_url"):
        open_provider(Config(kind=kind, base_url=None, api_key="key"))


def test_each_row_is_found_by_its_own_name() -> None:
    assert all(DIALECTS[name].name == name for name in DIALECTS)


def test_malformed_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="not an http"):
        open_provider(Config(base_url="localhost:8688"))


def test_missing_key_is_refused_before_any_call_except_on_this_machine() -> None:
    with pytest.raises(ConfigError, match="has no key"):
        open_provider(Config())
    assert open_provider(Config(base_url="http://127.0.0.1:8688/v1")).name == "default"
