"""What is declared of a test before its first unit: the one place where such an option is written.

A pipeline's settings are a `Declaration` and more; a test and a rollout hold the one that they
began with. It knows neither models nor identities: those are facts of the test, not declared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from tuneproof.errors import ConfigError
from tuneproof.settings import checks, fields
from tuneproof.settings.fields import YEAR_HOURS, Option, option, options

VERSION = 1
"""Of the stored form."""

evaluation = partial(Option, section="evaluation")


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What a test is told before it begins, and what does not change while it runs.

    Raises `ConfigError`, which names the field, its value, the rule and the mend.
    """

    traffic_split: float = option(
        0.1,
        evaluation(
            above=0,
            at_most=0.5,
            flag="share",
            doc="the candidate's share in the test, at most 0.5",
        ),
    )
    a_b_test_duration_hours: float = option(
        168,
        evaluation(
            key="duration_hours",
            aliases=("evaluation.a_b_test_duration_hours",),
            above=0,
            at_most=YEAR_HOURS,
            flag="hours",
            unit="h",
            doc="how long the test enrols units",
        ),
    )
    significance_threshold: float = option(
        0.05,
        evaluation(
            aliases=("evaluation.success_criteria.significance_threshold",),
            within="success_criteria",
            above=0,
            at_most=0.5,
            doc="two-sided error of the test",
        ),
    )
    min_engagement_lift: float = option(
        0.15,
        evaluation(
            aliases=("evaluation.success_criteria.min_engagement_lift",),
            within="success_criteria",
            told_with="criteria",
            at_least=-1,
            at_most=100,
            doc="the lift that the test asks for; `decision` says [how](../statistics.md)",
        ),
    )
    min_cost_efficiency_gain: float = option(
        0.10,
        evaluation(
            aliases=("evaluation.success_criteria.min_cost_efficiency_gain",),
            within="success_criteria",
            told_with="criteria",
            at_least=-10,
            at_most=1,
            doc="how much cheaper it must be, by `cost_metric`",
        ),
    )
    criteria: tuple[str, ...] = option(
        (),
        evaluation(
            rule=checks.criteria,
            flag="criterion",
            doc='criteria of your own instead of lift and cost, as `"quality non_inferior 0.02"`',
        ),
    )
    cost_metric: str = option(
        "per_engagement",
        evaluation(
            choices=("per_engagement", "per_token"),
            label="cost",
            doc='what costs are compared by: `"per_engagement"` or `"per_token"`',
        ),
    )
    decision: str = option(
        "spec",
        evaluation(
            choices=("spec", "confirmed"),
            doc='`"spec"`: promote at declared looks (3/7, 5/7 and the end); `"confirmed"`: at any '
            "look after 7 full days",
        ),
    )
    maturation_hours: float = option(
        24,
        evaluation(
            at_least=0,
            at_most=YEAR_HOURS,
            label="outcomes mature after",
            unit="h",
            doc="how long outcomes have to come in before a unit counts",
        ),
    )
    min_units: int = option(
        100,
        evaluation(
            at_least=12,  # below, bounds are wrong too often: 6 % at 2 units, 2 % at 12
            at_most=10**9,
            label="least units",
            unit="an arm",
            doc="units of each arm before anything is estimated",
        ),
    )
    min_units_phase: int = option(
        50,
        evaluation(
            at_least=2,
            at_most=10**9,
            label="least units of a phase",
            unit="an arm",
            doc="units of each arm before a phase is used",
        ),
    )
    segments: tuple[str, ...] = option(
        (),
        evaluation(
            empty=True,
            flag="segment",
            doc="attributes of exposures to look into, exploratory",
        ),
    )
    segment_guardrail: bool = option(
        False,
        evaluation(told_with="segments", doc="whether a segment that is harmed ends the test"),
    )
    allocation: str = option(
        "fixed",
        evaluation(
            choices=("fixed", "thompson"),
            doc='`"fixed"`, or `"thompson"`: the candidate\'s share follows what is known so far, '
            "phase by phase",
        ),
    )
    analysis_unit: str = option(
        "unit",
        evaluation(
            choices=("unit", "item"),
            label="counted",
            doc='`"unit"`, or `"item"`: outcomes are of items of a unit (an author\'s posts), and '
            "[each item counts](../statistics.md#what-is-compared)",
        ),
    )
    cuped: bool = option(
        False,
        evaluation(
            told_with="analysis_unit",
            doc="adjust the lift by the `covariate` of the exposures, known before the test; not "
            'with `"item"`',
        ),
    )

    missing: str = option(
        "exclude",
        evaluation(
            choices=("exclude", "zero", "worst"),
            label="absent outcomes",
            doc='units without an outcome: `"exclude"` leaves them out, and a test whose arms lack '
            'unlike shares is invalid; `"zero"` counts them as 0; `"worst"` those of the candidate '
            "as 0, and leaves the baseline's out",
        ),
    )
    cap: float | None = option(
        None,
        evaluation(
            above=0,
            at_most=9e9,
            label="outcomes capped at",
            doc="what an outcome counts at most, in both arms: for [heavy "
            "tails](../statistics.md#heavy-tails), where a few units carry the sum",
        ),
    )

    planned_units: float | None = option(
        None,
        evaluation(
            above=0,
            at_most=1e12,
            label="units expected",
            doc="units that the test is expected to enrol, both arms together: its bounds are "
            "tightest at half of them; none: as its plan says, from the posts or the history",
        ),
    )

    def __post_init__(self) -> None:
        fields.check(self)
        if self.analysis_unit == "item":
            self._refuse_of_items()

    def _refuse_of_items(self) -> None:
        where = 'where analysis_unit is "item"'
        if self.cuped:
            mend = "A covariate adjusts the mean over units: choose one of the two."
            raise checks.refuse("cuped", True, f"must be false {where}", mend=mend)
        if self.missing != "exclude":
            mend = "A unit without an outcome has no item that could be absent."
            raise checks.refuse("missing", self.missing, f'must be "exclude" {where}', mend=mend)
        if self.cap is not None:
            mend = "Cap the values of the items before you send them."
            raise checks.refuse("cap", self.cap, f"must be left out {where}", mend=mend)

    @property
    def declaration(self) -> Declaration:
        """The declaration by itself, without what a pipeline's settings add."""
        names = [f.name for f in dataclasses.fields(Declaration)]
        return Declaration(**{name: getattr(self, name) for name in names})

    def to_stored(self) -> dict[str, Any]:
        """The declaration as JSON types, with the version of this form; `from_stored` reads it."""
        values = fields.plain(self.declaration)
        return {"version": VERSION, **values}

    @staticmethod
    def from_stored(data: Mapping[str, Any]) -> Declaration:
        """The declaration that `to_stored` described.

        Raises `ConfigError` for another version, and for an option that is not known here.
        """
        version = data.get("version")
        if version != VERSION:
            raise ConfigError(
                f"A stored declaration has version {version!r}, but this TuneProof reads "
                f"{VERSION}.",
                mend="Run the version of TuneProof that stored it, or a later one.",
            )
        values = {name: value for name, value in data.items() if name != "version"}
        fields.refuse_unknown(Declaration, values)
        return Declaration.restored(**values)

    @classmethod
    def restored(cls, **values: Any) -> Self:
        """The record that was stored with these fields, also where bounds came later."""
        return cls(**fields.within_bounds(cls, values))


def declared_rows(
    values: Mapping[str, Any],
    texts: Mapping[str, str],
    *,
    record: type[Declaration] = Declaration,
) -> list[tuple[str, str]]:
    """What was declared, for people: a label and words for each option that has a row.

    `values` and `texts` are by the names of the options; a value without a text is told as its
    option tells it.
    """
    return [
        (known.row_label, texts.get(known.name) or known.readable(values[known.name]))
        for known in options(record)
        if not known.told_with
    ]
