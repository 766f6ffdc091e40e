"""What a run keeps of a version and of a verdict, as its page and REST show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tuneproof.experiments import ABTest, Look
from tuneproof.training import ModelVersion


@dataclass(frozen=True, kw_only=True)
class VersionDetail:
    """The version that stands for a run: `model_version` of its result."""

    id: str
    model_id: str | None
    version: str
    training_job_id: str | None
    base_model: str
    status: str

    @classmethod
    def of(cls, version: ModelVersion) -> VersionDetail:
        """What is shown of a version."""
        return cls(
            id=version.id,
            model_id=version.model_id,
            version=version.version,
            training_job_id=version.training_job_id,
            base_model=version.base_model,
            status=str(version.status),
        )

    def to_dict(self) -> dict[str, object]:
        """As JSON types."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class VerdictDetail:
    """How one candidate's test ended."""

    ab_test_id: str
    model_id: str
    verdict: str | None
    reason: str | None
    lift: float | None = None
    lower: float | None = None
    upper: float | None = None
    looks: int = 0

    @classmethod
    def of(cls, test: ABTest, looks: Sequence[Look]) -> VerdictDetail:
        """A test with its own among these looks; none where it was ended before its first."""
        look = next((look for look in looks if look.experiment_id == test.id), None)
        return cls(
            ab_test_id=test.id,
            model_id=test.candidate.model_id,
            verdict=None if test.verdict is None else str(test.verdict),
            reason=test.reason,
            lift=look.lift if look else None,
            lower=look.lower if look else None,
            upper=look.upper if look else None,
            looks=look.number if look else 0,
        )

    def of_stage(self) -> dict[str, object]:
        """What the experiment's stage says of the test that decided it."""
        shown = asdict(self)
        del shown["model_id"]
        return shown

    def of_candidate(self) -> dict[str, object]:
        """What it says of each of several candidates."""
        return {k: v for k, v in asdict(self).items() if k not in ("lower", "upper", "looks")}
