"""Every error that TuneProof raises on purpose, split by what the caller should do.

    TuneProofError
    ├── InputError                 mend the input, then call again
    │   ├── ConfigError              a setting is malformed or out of range
    │   ├── DataError                posts, files or columns are not as described
    │   ├── NotFoundError            no object has this id
    │   ├── ConflictError            the object changed since it was read, or the name is taken
    │   ├── StateError               the object's state does not allow this
    │   └── DeniedError              the token is absent, wrong, or lacks the scope
    ├── RetryableError             wait, then call again
    │   ├── ProviderUnavailableError the provider did not answer, or answered 5xx
    │   ├── NotDeployedError         the model answers once somebody has deployed it
    │   ├── RateLimitedError         the provider said 429; carries `retry_after_s`
    │   ├── StoreUnavailableError    the database did not answer
    │   ├── TrackingUnavailableError MLflow did not answer
    │   ├── FilesUnavailableError    the object store did not answer, or refused
    │   └── CircuitBreakerError      the breaker is open; never retried at once
    └── StopError                  this run cannot go on; a person decides
        ├── TrainingNotAvailableError the provider no longer trains for this account (403)
        ├── CredentialsError         the provider refused the key (401, 403)
        ├── QuotaExhaustedError      429 `insufficient_quota`
        ├── BudgetExceededError      the pipeline's own budget has no room for this
        ├── TrainingFailedError      the job ended as failed; carries the provider's code
        ├── SafetyCheckError         the deployment's safety checks failed
        └── AbortedError             somebody aborted the run

A message names the value, the rule and the mend. Policy reads the type, never the text.
All of them pickle and survive JSON (`to_dict`, `from_dict`), so a replayed step raises what
the first execution raised.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "AbortedError",
    "BudgetExceededError",
    "CircuitBreakerError",
    "ConfigError",
    "ConflictError",
    "CredentialsError",
    "DataError",
    "DeniedError",
    "FilesUnavailableError",
    "InputError",
    "NotDeployedError",
    "NotFoundError",
    "ProviderUnavailableError",
    "QuotaExhaustedError",
    "RateLimitedError",
    "RetryableError",
    "SafetyCheckError",
    "StateError",
    "StopError",
    "StoreUnavailableError",
    "TrackingUnavailableError",
    "TrainingFailedError",
    "TrainingNotAvailableError",
    "TuneProofError",
]


class TuneProofError(Exception):
    """Base of all errors raised on purpose.

    `message` says what is wrong with which value by which rule, `mend` what to do about it
    (often a command to run), and `details` carries values for programs (JSON types only).
    """

    status: ClassVar[int] = 500
    """The HTTP status under which the REST interface reports this error."""

    def __init__(self, message: str, *, mend: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend
        self.details = details

    def __str__(self) -> str:
        return f"{self.message} {self.mend}".rstrip() if self.mend else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self).__name__, self.to_dict())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TuneProofError) or type(self) is not type(other):
            return False
        return self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.message))

    @property
    def slug(self) -> str:
        """The problem `type` of this class, e.g. `training-not-available` (RFC 9457)."""
        name = type(self).__name__.removesuffix("Error")
        return "".join(f"-{c.lower()}" if c.isupper() else c for c in name).lstrip("-")

    def to_dict(self) -> dict[str, Any]:
        """This error as JSON types; `from_dict` makes it again."""
        return {"message": self.message, "mend": self.mend, "details": self.details}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TuneProofError:
        """The error of this class that `to_dict` described."""
        return cls(data["message"], mend=data["mend"], **data["details"])


class InputError(TuneProofError, ValueError):
    """The caller's input is at fault: mend it and call again."""

    status = 422


class ConfigError(InputError):
    """A setting is malformed, unknown or out of range; names the field."""


class DataError(InputError):
    """Posts, events, files, tables or columns are not as described."""


class NotFoundError(InputError):
    """No object has this id."""

    status = 404


class ConflictError(InputError):
    """The object changed since the caller read it; `details` show what changed."""

    status = 409


class StateError(InputError):
    """The object's state does not allow what was asked for."""

    status = 409


class DeniedError(InputError):
    """The token is absent or wrong (401), or lacks the scope (`details["status"]` 403)."""

    status = 401


class RetryableError(TuneProofError):
    """Nothing is wrong with the input: wait, then call again."""

    status = 503


class ProviderUnavailableError(RetryableError):
    """The provider did not answer in time (`details["timed_out"]`), or answered 5xx."""


class NotDeployedError(RetryableError):
    """The model exists and answers only once somebody has deployed it; `mend` says how."""


class RateLimitedError(RetryableError):
    """The provider said 429; `details["retry_after_s"]` where it said how long."""


class StoreUnavailableError(RetryableError):
    """The database did not answer."""


class TrackingUnavailableError(RetryableError):
    """The MLflow server did not answer; the outbox keeps what it should have got."""


class FilesUnavailableError(RetryableError):
    """The object store did not answer, or refused: a bucket or a right is not there yet."""


class CircuitBreakerError(RetryableError):
    """The breaker is open: the call was not made. `details["retry_after_s"]` says when."""


class StopError(TuneProofError):
    """This run cannot go on by itself: a person decides."""

    status = 409


class TrainingNotAvailableError(StopError):
    """The provider closed fine-tuning for this account (403 `training_not_available`)."""


class CredentialsError(StopError):
    """The provider refused the key."""


class QuotaExhaustedError(StopError):
    """The provider's quota is gone (429 `insufficient_quota`); waiting does not help."""


class BudgetExceededError(StopError):
    """What this would cost is more than the pipeline's budget has left; nothing was spent."""


class TrainingFailedError(StopError):
    """The job ended as failed; `details["code"]` is the provider's error code."""


class SafetyCheckError(StopError):
    """A safety check failed, so nothing is deployed; `details["checks"]` names each."""


class AbortedError(StopError):
    """Somebody aborted the run; `details["reason"]` says why."""


def by_name() -> dict[str, type[TuneProofError]]:
    """Each error class by its name, the base included."""
    found: dict[str, type[TuneProofError]] = {}
    queue: list[type[TuneProofError]] = [TuneProofError]
    while queue:
        cls = queue.pop()
        found[cls.__name__] = cls
        queue.extend(cls.__subclasses__())
    return found


def _restore(name: str, data: dict[str, Any]) -> TuneProofError:
    return by_name()[name].from_dict(data)
