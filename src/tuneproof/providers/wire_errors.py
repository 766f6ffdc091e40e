"""What an error of the wire means for the caller: retry, mend, or stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tuneproof.errors import (
    ConflictError,
    CredentialsError,
    DataError,
    NotFoundError,
    ProviderUnavailableError,
    QuotaExhaustedError,
    RateLimitedError,
    TrainingNotAvailableError,
    TuneProofError,
)

if TYPE_CHECKING:
    import openai


def translate(error: openai.OpenAIError, *, provider: str, address: str) -> TuneProofError:
    """The error of our tree that says what `error` of the SDK means for the caller."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return _from_status(error, provider, address)
    if isinstance(error, openai.APITimeoutError):
        return ProviderUnavailableError(
            f"Provider {provider!r} at {address} did not answer in time.",
            mend="The call is made again later; check the server and the network.",
            timed_out=True,
        )
    return ProviderUnavailableError(
        f"Provider {provider!r} at {address} cannot be reached: {_cause(error)}.",
        mend=f"Check that a server listens there and `base_url` of providers.{provider} is right.",
    )


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An answer with an error status, whichever wire it came over. Header names in lower case."""

    status: int
    code: str | None = None
    type: str | None = None
    message: str = ""
    param: str | None = None
    request_id: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def _from_status(error: openai.APIStatusError, provider: str, address: str) -> TuneProofError:
    refusal = Refusal(
        status=error.status_code,
        code=error.code,
        type=error.type,
        message=_message(error),
        param=error.param,
        request_id=error.request_id,
        headers={name.lower(): value for name, value in error.response.headers.items()},
    )
    return from_refusal(refusal, provider=provider, address=address)


def from_refusal(error: Refusal, *, provider: str, address: str) -> TuneProofError:
    """The error of our tree that says what this refusal means for the caller."""
    who = f"Provider {provider!r} at {address}"
    answer = f"{error.status} {error.code or error.type or ''}".strip()
    details: dict[str, Any] = {
        "status": error.status,
        "code": error.code,
        "request_id": error.request_id,
    }
    text = error.message.rstrip(".")
    match error.status:
        case 401:
            return _credentials(who, answer, text, provider, details)
        case 403 if error.code == "training_not_available":
            return TrainingNotAvailableError(
                f"{who} has closed fine-tuning for this account ({answer}: {text}).",
                mend=f"Point `base_url` of providers.{provider} (or OPENAI_BASE_URL) at a server "
                "that trains, such as your own `tuneproof-trainer serve`, and retry the run from "
                "its training stage; datasets and history stay as they are.",
                **details,
            )
        case 403:
            return _credentials(who, answer, text, provider, details)
        case 404:
            return NotFoundError(
                f"{who} does not know what was asked for ({answer}: {text}).",
                mend="Check the id of the model, file or job; it may have been deleted.",
                **details,
            )
        case 402:
            return QuotaExhaustedError(
                f"The account at {who} has no credit left ({answer}: {text}).",
                mend="Add credit to that account or name another provider; waiting does not "
                "help. Then retry the run.",
                **details,
            )
        case 409:
            return ConflictError(f"{who} refused: {text} ({answer}).", **details)
        case 429 if "insufficient_quota" in (error.code, error.type):
            return QuotaExhaustedError(
                f"The quota at {who} is gone ({answer}: {text}).",
                mend="Raise the budget of that account or switch `base_url`; waiting does not "
                "help. Then retry the run.",
                **details,
            )
        case 429:
            return RateLimitedError(
                f"{who} limits the rate of calls ({answer}: {text}).",
                mend="The call is made again after the time that the provider named.",
                retry_after_s=_retry_after_s(error),
                **details,
            )
        case 408 | 425:
            return ProviderUnavailableError(f"{who} did not answer in time ({answer}).", **details)
        case status if status >= 500:
            return ProviderUnavailableError(
                f"{who} failed ({answer}: {text}).",
                mend="The call is made again later.",
                **details,
            )
        case _:
            return DataError(
                f"{who} refused the request ({answer}: {text}).",
                mend="Mend the named parameter or file, then call again.",
                param=error.param,
                **details,
            )


def _credentials(
    who: str, answer: str, text: str, provider: str, details: dict[str, Any]
) -> CredentialsError:
    return CredentialsError(
        f"{who} refused the key ({answer}: {text}).",
        mend=f"Set a valid key for providers.{provider} (OPENAI_API_KEY for the default one).",
        **details,
    )


def _retry_after_s(error: Refusal) -> float | None:
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return float(error.headers[name]) * scale
        except (KeyError, ValueError):
            continue
    return None


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return str(body["message"]).rstrip(".")
    return error.message.rstrip(".")


def _cause(error: BaseException) -> str:
    cause = error.__cause__
    return f"{error} ({cause})" if cause is not None and str(cause) else str(error)
