"""Before anything is spent: does the key work, may the account train, can this model be tuned?

What can be asked depends on the wire, so a provider that can say more is a `Prober`; of any
other one only its list of models is read, and the first refusal of a job says the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, cast, runtime_checkable

from tuneproof.errors import ConfigError, TrainingNotAvailableError
from tuneproof.training.records import ModelInfo, Provider


@dataclass(frozen=True, kw_only=True)
class TrainingReadiness:
    """What a provider says of tuning one model. None: its wire cannot say before a job is made.

    `offered` are base models that could be named instead.
    """

    model: str
    account: bool | None = None
    """Whether the account may train."""
    tunable: bool | None = None
    """Whether this model can be tuned by this method."""
    shutdown_at: datetime | None = None
    detail: str = ""
    offered: tuple[str, ...] = ()


@runtime_checkable
class Prober(Protocol):
    """A provider that can be asked whether it would train, at no cost."""

    async def readiness(self, model: str, method: str) -> TrainingReadiness:
        """Ask; makes no job and uploads nothing. Raises `CredentialsError` and the like."""


@runtime_checkable
class Catalogue(Protocol):
    """A provider that can be asked about one model, also one that it does not list."""

    async def model(self, model: str) -> ModelInfo | None:
        """What the provider says of this model; None for one that it does not know."""


async def find_model(provider: Provider, model: str) -> ModelInfo | None:
    """What a provider says of a model, with its shutdown date; None where it knows none."""
    if isinstance(provider, Catalogue):
        return await cast(Catalogue, provider).model(model)
    return next((m for m in await provider.models() if m.id == model), None)


async def preflight(
    provider: Provider, model: str, method: str, *, now: datetime
) -> TrainingReadiness:
    """Ask all that can be asked before the first upload.

    Raises `CredentialsError`, `QuotaExhaustedError`, `TrainingNotAvailableError` where the
    account is closed, and `ConfigError` where the model cannot be tuned by this method or is
    shut down already. Retryable errors say that the provider is away.
    """
    if isinstance(provider, Prober):
        found = await cast(Prober, provider).readiness(model, method)
    else:
        found = _listed(model, {m.id: m for m in await provider.models()})
    if found.account is False:
        raise TrainingNotAvailableError(
            f"{provider.name} does not train for this account: {found.detail or 'it is closed'}.",
            mend="Name another provider in the pipeline's training.provider, such as your own "
            "tuneproof-trainer; nothing was uploaded, and the dataset stays as it is.",
        )
    if found.tunable is False:
        offered = ", ".join(found.offered[:8])
        raise ConfigError(
            f"{model!r} cannot be tuned by {method} at {provider.name}: "
            f"{found.detail or 'it is not offered'}.",
            mend=f"Set training.base_model to {f'one of: {offered}' if offered else 'another'}.",
            field="training.base_model",
            value=model,
        )
    if found.shutdown_at is not None and found.shutdown_at <= now:
        raise ConfigError(
            f"{model!r} was shut down by {provider.name} on {found.shutdown_at:%Y-%m-%d}.",
            mend="Set training.base_model to its successor.",
            field="training.base_model",
            value=model,
        )
    return found


def _listed(model: str, models: dict[str, ModelInfo]) -> TrainingReadiness:
    if model not in models:
        return TrainingReadiness(
            model=model
        )  # servers list what answers, not all that can be tuned
    return TrainingReadiness(model=model, shutdown_at=models[model].shutdown_at)
