"""What a caller may declare of one test; the pipeline's settings say the rest.

Everything goes into the test's own `PipelineConfig`, so a declaration is held to the rules of the
settings and a refusal names field, value, rule and mend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from tuneproof.errors import InputError
from tuneproof.experiments.records import Criteria, Criterion
from tuneproof.settings import Declaration, PipelineConfig, options

__all__ = ["Declared", "declare", "told_by"]


Declared = Mapping[str, object]
"""What is said of one test beside its models, share and duration, by the names of `Declaration`.

What is absent or None is as the settings say. `criteria` are texts
("quality non_inferior 0.02"), records, or mappings of `metric`, `kind`, `margin`;
`success_criteria` are the first users' three thresholds, any of them.
"""

_OPTIONS = frozenset(option.name for option in options(Declaration))

_THRESHOLDS = ("min_engagement_lift", "min_cost_efficiency_gain")


def told_by(config: PipelineConfig, declaration: Declaration | None) -> PipelineConfig:
    """The settings of a pipeline, with a declaration in place of theirs where one is given."""
    if declaration is None:
        return config
    return replace(config, **{name: getattr(declaration, name) for name in _OPTIONS})


def declare(config: PipelineConfig, declared: Declared) -> PipelineConfig:
    """The settings of one test: the pipeline's, with what is declared in their place.

    Thresholds in `success_criteria` replace a list of criteria in the settings. Raises
    `ConfigError` for values that no setting may have, `InputError` for an option that no
    declaration has, where a list of criteria and
    such thresholds are both given, or a guardrail for segments without segments.
    """
    given: dict[str, object] = {name: v for name, v in declared.items() if v is not None}
    for name in given:
        if name not in _OPTIONS and name != "success_criteria":
            raise InputError(
                f"A test declares no {name!r}.",
                mend=f"Known are: {', '.join(sorted(_OPTIONS))}.",
                field=name,
            )
    thresholds = _thresholds(given.pop("success_criteria", {}))
    named = [name for name in _THRESHOLDS if name in thresholds]
    if "criteria" in given:
        if named:
            raise _said_twice(named[0], thresholds[named[0]])
        given["criteria"] = _criteria(given["criteria"])
    elif named:
        given["criteria"] = ()
    found = config.override(**thresholds, **given)
    if given.get("segment_guardrail") and not found.segments:
        raise InputError(
            "segment_guardrail is true, but the test has no segments to guard.",
            mend='Name the attributes as well, such as segments = ["persona"].',
            field="segment_guardrail",
        )
    return found


def _thresholds(given: object) -> dict[str, object]:
    fields = asdict(given) if isinstance(given, Criteria) else given
    if not isinstance(fields, Mapping):
        raise InputError(
            f"success_criteria is {given!r}, but must be a mapping.",
            mend='For example {"min_engagement_lift": 0.15}.',
            field="success_criteria",
        )
    known = tuple(Criteria.__dataclass_fields__)
    for name in fields:
        if name not in known:
            raise InputError(
                f"success_criteria has no field {name!r}.", mend=f"Known are: {', '.join(known)}."
            )
    return {name: value for name, value in fields.items() if value is not None}


def _criteria(given: object) -> tuple[object, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InputError(
            f"criteria is {given!r}, but must be a list.",
            mend='For example ["engagement superior 0.15", "quality non_inferior 0.02"].',
            field="criteria",
        )
    return tuple(_text(criterion) for criterion in given)


def _text(given: object) -> object:
    """A criterion as the settings write it; what is none stays as it is, for them to refuse."""
    if isinstance(given, Criterion):
        return f"{given.metric} {given.kind} {given.margin!r}"
    if isinstance(given, Mapping):
        if set(given) != {"metric", "kind", "margin"}:
            raise InputError(
                f"{dict(given)!r} is no criterion: it must have metric, kind and margin.",
                mend='For example {"metric": "quality", "kind": "non_inferior", "margin": 0.02}.',
                field="criteria",
            )
        return f"{given['metric']} {given['kind']} {given['margin']}"
    return given


def _said_twice(name: str, value: object) -> InputError:
    return InputError(
        f"success_criteria.{name} is {value:g}, but a list of criteria is given as well.",
        mend="Say in one of them what must hold; beside a list, success_criteria may only have "
        "significance_threshold.",
        field=f"success_criteria.{name}",
    )
