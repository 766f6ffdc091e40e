"""One setting, written once: the metadata of a record's field, and what is made of it.

`option(default, Option(…))` stands where a dataclass field has its default. The sections and keys
of `tuneproof.toml`, the environment variables, the validation, `config check`, the reference page,
request models and CLI options are made from `options(record)`; the type is the field's own. It
knows nothing of which settings there are.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from tuneproof.settings import checks
from tuneproof.settings.secrets import Secret, Url

T = TypeVar("T")

_KEY = "option"
"""Where a field's metadata holds its `Option`."""

YEAR_HOURS = 24 * 365
YEAR_SECONDS = 3600 * YEAR_HOURS
CENTURY_DAYS = 365 * 100
CENTURY_HOURS = 24 * CENTURY_DAYS
"""Upper bounds of durations: what is longer is a slip, and too long for a date."""

Rule = Callable[[str, Any], Any]
"""Takes a setting's name and value; returns the value to hold, or raises `ConfigError`."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """What is known of one setting beside its value.

    `name`, `hint` and `default` (`...` where there is none) are those of the field; `options` fills
    them in.
    """

    doc: str
    """One phrase for a reader, in Markdown; links are relative to `docs/reference`."""
    section: str = ""
    """The table of the file, within that of the record, in which it stands; empty: at its top."""
    key: str = ""
    """Its name in that table, and in requests; empty: the field's."""
    aliases: tuple[str, ...] = ()
    """Further paths below the record's table under which it is read."""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    choices: tuple[str, ...] = ()
    """The only values that a text may have."""
    schemes: tuple[str, ...] = ()
    """How an address may begin; empty: as it likes."""
    words: tuple[str, ...] = ()
    """Values that are good beside those that the type and the bounds allow: "auto"."""
    empty: bool = False
    """Whether a text or a list may be empty."""
    rule: Rule | None = None
    """A check of its own instead of the one that the type and the bounds say."""
    mend: str = ""
    """What a refusal proposes; empty: to choose another value."""
    env: str | Mapping[str, str] = ""
    """The environment variable that sets it: of the record with the usual name, or by name."""
    argument: str = ""
    """The short name under which `Settings.load` takes it."""
    by_request: bool = True
    """Whether a request may set it; addresses, tables and models it may not."""
    takes_rest_of: Callable[[Mapping[str, Any]], bool] | None = None
    """Of which tables it takes all further keys, for the settings of a part of the user's own."""
    without_effect: str = ""
    """Why it is read and does nothing in this version, and what to do instead."""
    default_doc: str = ""
    """How the default is told to a reader, where it is no value; empty: as the value."""
    flag: str = ""
    """The CLI option that sets it, without dashes; empty: its key."""
    within: str = ""
    """The object of a request, and of an answer, in which it stands; empty: at its top."""
    label: str = ""
    """What it is called where people read its value; empty: its key in words."""
    unit: str = ""
    """What its number counts, where people read it: "h"."""
    told_with: str = ""
    """The option beside whose value people read it, where it has no row of its own."""

    name: str = ""
    hint: Any = None
    default: Any = ...

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is ...

    @property
    def request_key(self) -> str:
        """What it is called in a request and in an answer."""
        return self.key or self.name

    @property
    def cli_flag(self) -> str:
        """The CLI option that sets it, with dashes."""
        return f"--{(self.flag or self.request_key).replace('_', '-')}"

    @property
    def row_label(self) -> str:
        """What it is called where people read its value."""
        return self.label or self.request_key.replace("_", " ")

    @property
    def is_list(self) -> bool:
        """Whether its values are lists of texts."""
        return get_origin(self.kind) is tuple

    def readable(self, value: Any) -> str:
        """A value for people; `declared_rows` puts it beside `row_label`."""
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, int | float):
            return f"{value:g} {self.unit}".rstrip()
        if isinstance(value, str):
            return value.replace("_", " ")
        return ", ".join(value or ()) or "none"

    @property
    def paths(self) -> tuple[str, ...]:
        """Where the file may set it, below the record's table; the usual place first."""
        key = self.key or self.name
        return (f"{self.section}.{key}" if self.section else key, *self.aliases)

    @property
    def default_text(self) -> str:
        """The default as a reader is told it, in Markdown."""
        if self.required:
            return "required"
        return self.default_doc or f"`{_as_toml(self.default)}`"

    @property
    def optional(self) -> bool:
        """Whether None is a value of it."""
        return type(None) in _members(self.hint)

    @property
    def kind(self) -> Any:
        """Its type without None and without the words: `float`, `tuple[str, ...]`."""
        members = [m for m in _members(self.hint) if m is not type(None)]
        if self.words and len(members) > 1:
            members.remove(str)
        return members[0]

    @property
    def plain_doc(self) -> str:
        """`doc` without Markdown, for a terminal or a schema."""
        return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", self.doc).replace("`", "")

    @property
    def sentence(self) -> str:
        """`plain_doc` as a sentence."""
        return f"{self.plain_doc[0].upper()}{self.plain_doc[1:]}."

    def checked(self, value: Any) -> Any:
        """The value to hold. Raises `ConfigError` for one that breaks the setting's rules."""
        if value is None and self.optional:
            return None
        if self.words and isinstance(value, str) and value in self.words:
            return value
        if self.rule is not None:
            return self.rule(self.name, value)
        return self._checked_by_type(value)

    def _checked_by_type(self, value: Any) -> Any:
        kind = get_origin(self.kind) or self.kind
        if isinstance(kind, type) and issubclass(kind, Secret):
            return self._checked_secret(value)
        if kind is bool:
            checks.truth(self.name, value)
        elif kind in (int, float):
            self._check_number(value, whole=kind is int)
        elif self.choices:
            checks.choice(self.name, value, self.choices)
        elif kind is str:
            checks.text(self.name, value, empty=self.empty)
        elif kind is tuple:
            return () if self.empty and not value else checks.names(self.name, value)
        return value

    def _checked_secret(self, value: Any) -> Secret:
        kind: type[Secret] = self.kind
        text = value.reveal() if isinstance(value, Secret) else value
        if self.schemes and not (self.empty and text == ""):
            checks.address(self.name, text, self.schemes)
        else:
            checks.secret(self.name, text, empty=self.empty)
        if issubclass(kind, Url):
            checks.port(self.name, text)
        return value if type(value) is kind else kind(text)

    def _check_number(self, value: Any, *, whole: bool) -> None:
        checks.number(
            self.name,
            value,
            at_least=self.at_least,
            above=self.above,
            at_most=self.at_most,
            whole=whole,
            mend=self.mend,
        )


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union; a type by itself is one of one."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def option(default: T, about: Option) -> T:
    """A field of a record of settings, with its default and what is known of it."""
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata(about))  # type: ignore[return-value]
    return field(default=default, metadata=metadata(about))


def metadata(about: Option) -> Mapping[str, Option]:
    """What `dataclasses.field` gets for a setting without a default."""
    return MappingProxyType({_KEY: about})


_known: dict[type[Any], tuple[Option, ...]] = {}


def options(record: type[Any]) -> tuple[Option, ...]:
    """What is known of each setting of a record, in the order of its fields."""
    if record not in _known:
        hints = get_type_hints(record)
        _known[record] = tuple(
            dataclasses.replace(
                f.metadata[_KEY], name=f.name, hint=hints[f.name], default=_default(f)
            )
            for f in dataclasses.fields(record)
            if _KEY in f.metadata
        )
    return _known[record]


def _default(f: dataclasses.Field[Any]) -> Any:
    if f.default_factory is not MISSING:
        return f.default_factory()
    return ... if f.default is MISSING else f.default


def check(record: object) -> None:
    """Hold a frozen record to the rules of its fields; for its `__post_init__`."""
    for known in options(type(record)):
        given = getattr(record, known.name)
        held = known.checked(given)
        if held is not given:
            object.__setattr__(record, known.name, held)


def within_bounds(record: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Stored fields with numbers beyond a bound brought to it.

    A version that stored them may have known no such bound, and what it stored stays readable.
    """
    found = dict(given)
    for known in options(record):
        value = found.get(known.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if known.at_most is not None and value > known.at_most:
            found[known.name] = type(value)(known.at_most)
        if known.at_least is not None and value < known.at_least:
            found[known.name] = type(value)(known.at_least)
    return found


def refuse_unknown(record: type[Any], given: Iterable[str]) -> None:
    """Raise `ConfigError` for the first of these names that is no field of the record."""
    known = [f.name for f in dataclasses.fields(record)]
    for name in given:
        if name not in known:
            raise checks.unknown_key(name, known)


def plain(record: Any) -> dict[str, Any]:
    """The fields of a record as JSON types; the record itself can be made of them again."""
    return {f.name: _plain(getattr(record, f.name)) for f in dataclasses.fields(record)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _places(record: type[Any]) -> tuple[Mapping[str, str], Mapping[str, Mapping[str, str]]]:
    """Where the file sets the fields of a record: key -> field, and section -> key -> field.

    A record's own name is the name of its table. A dot in a key is a table in the section.
    """
    top: dict[str, str] = {}
    sections: dict[str, dict[str, str]] = {}
    for known in options(record):
        for path in () if known.takes_rest_of else known.paths:
            section, _, key = path.partition(".")
            if key:
                sections.setdefault(section, {})[key] = known.name
            elif known.name != "name":
                top[section] = known.name
    return top, sections


def from_table(record: type[Any], table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields, by name, that a record's table in the file sets; unknown keys are refused."""
    top, sections = _places(record)
    found: dict[str, Any] = {}
    rest = next((o.name for o in options(record) if o.takes_rest_of and o.takes_rest_of(table)), "")
    if rest:
        found[rest] = {}
    for key, value in table.items():
        if key in sections:
            found.update(_section(sections[key], value, f"{where}.{key}"))
        elif key in top:
            found[top[key]] = value
        elif rest:
            found[rest][key] = value
        else:
            raise checks.unknown_key(f"{where}.{key}", [*sections, *top], last=key)
    return found


def _section(known: Mapping[str, str], table: Any, where: str) -> dict[str, Any]:
    if not isinstance(table, Mapping):
        mend = f"Write [{where}] above its keys."
        raise checks.refuse(where, table, "must be a table", mend=mend)
    found: dict[str, Any] = {}
    for key, value in table.items():
        nested = isinstance(value, Mapping) and key not in known
        inner = {f"{key}.{k}": v for k, v in value.items()} if nested else {key: value}
        for name, given in inner.items():
            if name not in known:
                raise checks.unknown_key(f"{where}.{name}", known, last=name)
            found[known[name]] = given
    return found


def _as_toml(value: Any) -> str:
    """A value as the file has it; none where it has no such value."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, tuple):
        return f"[{', '.join(_as_toml(v) for v in value)}]"
    return json.dumps(value.masked if isinstance(value, Secret) else value)
