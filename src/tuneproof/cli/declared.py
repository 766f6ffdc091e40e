"""The options of `tuneproof experiment create` that declare a test, made from `Declaration`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import make_dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tuneproof.cli.options import finite
from tuneproof.settings import Declaration, Option, options


def options_of(record: type[Declaration]) -> type[Any]:
    """A dataclass whose fields are CLI options, one for each option of a declaration.

    None is as the settings say.
    """
    fields = [(known.name, _annotated(known), None) for known in options(record)]
    here = {"__module__": __name__}  # cyclopts reads no fields of a class of the standard library
    made = make_dataclass("DeclaredOptions", fields, namespace=here, frozen=True, kw_only=True)
    return Parameter(name="*")(made)


def _annotated(known: Option) -> Any:
    if known.is_list:
        again = f"{known.sentence[:-1]}; again for more."
        return Annotated[list[str] | None, Parameter(name=known.cli_flag, help=again, negative="")]
    about = Parameter(name=known.cli_flag, help=known.sentence, validator=finite)
    return Annotated[known.kind | None, about]


if TYPE_CHECKING:

    class DeclaredOptions:
        """As it is made below."""

else:
    DeclaredOptions = options_of(Declaration)

NOTHING_DECLARED = DeclaredOptions()


def asked_of(declared: object, record: type[Declaration] = Declaration) -> dict[str, Any]:
    """The fields of a request that declare what was given on the command line."""
    asked: dict[str, Any] = {}
    for known in options(record):
        value = getattr(declared, known.name)
        if value is not None:
            holder = asked.setdefault(known.within, {}) if known.within else asked
            holder[known.request_key] = value
    return asked


def flag_of(field: str, record: type[Declaration] = Declaration) -> str:
    """The option of the command line that sets a field of a request: "query.limit"."""
    place, _, rest = field.partition(".")
    if place == "path":
        return rest
    named = field.removeprefix("query.").removeprefix("body.")
    for known in options(record):
        if named in (known.request_key, f"{known.within}.{known.request_key}"):
            return known.cli_flag
    return f"--{named.replace('_', '-')}"


def answered_values(
    test: Mapping[str, Any], record: type[Declaration] = Declaration
) -> dict[str, Any]:
    """What an answer shows of a declaration, by the names of the options."""
    shown = {**test, "traffic_split": test["traffic_allocation"]["candidate"]}
    return {
        known.name: (shown[known.within] if known.within else shown)[known.request_key]
        for known in options(record)
    }
