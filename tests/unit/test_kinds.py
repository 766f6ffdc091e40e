"""What the settings take for a kind, and say of it, is what can be opened."""

from __future__ import annotations

from tuneproof.providers import DIALECTS
from tuneproof.providers.dialects import NATIVE, NATIVE_CHAT
from tuneproof.settings import AlertsConfig, ProviderConfig, TargetConfig, fields
from tuneproof.settings.loading import PROVIDER_KINDS
from tuneproof.settings.records import TARGET_KINDS
from tuneproof.settings.service import WEBHOOK_KINDS
from tuneproof.targets.opening import KINDS
from tuneproof.telemetry.alerts import BODIES


def test_settings_take_the_kinds_that_can_be_opened() -> None:
    assert set(PROVIDER_KINDS) == {*DIALECTS, *NATIVE}
    assert set(NATIVE_CHAT) == set(NATIVE)
    assert all(f"`{kind}`" in doc_of_kind(ProviderConfig) for kind in PROVIDER_KINDS)


def doc_of_kind(record: type[object]) -> str:
    return next(one.doc for one in fields.options(record) if one.name == "kind")


def test_settings_take_the_targets_that_can_be_opened() -> None:
    assert set(TARGET_KINDS) == set(KINDS)
    assert all(f"`{kind}`" in doc_of_kind(TargetConfig) for kind in TARGET_KINDS)


def test_settings_take_the_kinds_of_webhooks_that_are_told() -> None:
    assert set(WEBHOOK_KINDS) == set(BODIES)
    [doc] = [one.doc for one in fields.options(AlertsConfig) if one.name == "webhook_kind"]
    assert all(f"`{kind}`" in doc for kind in WEBHOOK_KINDS)
