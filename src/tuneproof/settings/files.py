"""The forms in which a settings file may be written; each is read as the tables of TOML.

`tuneproof.toml` is for people, `tuneproof.json` for what writes settings by program, as the Helm
chart does. The other two are those that the first users mount: the sections of a pipeline as JSON,
and its fields, without sections, as YAML.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tuneproof.errors import ConfigError
from tuneproof.settings.checks import unknown_key
from tuneproof.settings.fields import options
from tuneproof.settings.former import FORMER
from tuneproof.settings.pipelines import PipelineConfig


def in_folder(folder: Path) -> list[Path]:
    """The settings files of a folder, in the order in which they are laid over each other."""
    return [folder / name for name in NAMES if (folder / name).is_file()]


def read(path: Path) -> Mapping[str, Any]:
    """The tables of a file. Raises `ConfigError` for one that is not what its name says."""
    form, parse, meant = _FORMS.get(path.name) or _FORMS_BY_ENDING.get(path.suffix, _TOML)
    try:
        found = parse(path.read_text("utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is not valid {form}: {error}.", mend="Correct that line."
        ) from error
    if not isinstance(found, Mapping):
        raise ConfigError(
            f"{path} is a {type(found).__name__}, and must have names with values.",
            mend=f"Write it as an object of {form}.",
        )
    return meant(found)


def _yaml(text: str) -> Any:
    import yaml  # only where there is such a file: 20 ms to import

    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _as_it_is(found: Mapping[str, Any]) -> Mapping[str, Any]:
    return found


def _of_pipeline(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The sections of the pipeline `default`."""
    return {"pipelines": {"default": found}}


def _by_field(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of the pipeline `default`, each put where the file has it."""
    known = {option.name: option.paths[0] for option in options(PipelineConfig)}
    known |= {name: f"training.{name}" for name in FORMER}
    table: dict[str, Any] = {}
    for name, value in found.items():
        if name not in known:
            raise unknown_key(name, list(known))
        section, _, key = known[name].rpartition(".")
        inner = table
        for part in section.split(".") if section else ():
            inner = inner.setdefault(part, {})
        inner[key] = value
    return _of_pipeline(table)


_Form = tuple[str, Callable[[str], Any], Callable[[Mapping[str, Any]], Mapping[str, Any]]]

_TOML: _Form = ("TOML", tomllib.loads, _as_it_is)
_FORMS: Mapping[str, _Form] = MappingProxyType(
    {
        "training_config.json": ("JSON", json.loads, _of_pipeline),
        "pipeline_config.yaml": ("YAML", _yaml, _by_field),
        "tuneproof.json": ("JSON", json.loads, _as_it_is),
        "tuneproof.toml": _TOML,
    }
)
_FORMS_BY_ENDING: Mapping[str, _Form] = MappingProxyType({".json": _FORMS["tuneproof.json"]})

NAMES: tuple[str, ...] = tuple(_FORMS)
"""What is read of a folder; a later one wins over an earlier one."""
