"""What schemathesis is told beside a document: ids that exist, so that requests find something.

Loaded by its command line, in a process of its own (`SCHEMATHESIS_HOOKS`). `FUZZ_IDS` is a file
with the ids by the name of the parameter or field that takes them, and changes as they do.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import schemathesis

IDS = Path(os.environ["FUZZ_IDS"])
LONGEST_ID = 200
"""What is longer, or empty, was made to be refused, and stays."""

LONGEST_WAIT_S = 0.05
"""What a request asks to be waited for is made as short as this: waiting finds nothing."""

Values = dict[str, Any] | None


def known(name: str, chosen: object) -> str | None:
    """An id of this name for three of four of what was generated, the same for the same."""
    if not isinstance(chosen, str) or not 0 < len(chosen) <= LONGEST_ID:
        return None
    ids: list[str] = json.loads(IDS.read_text()).get(name, [])
    number = sum(repr(chosen).encode())
    return ids[number // 4 % len(ids)] if ids and number % 4 else None


def with_ids(given: Values) -> Values:
    """These values, with ids that exist in the place of most that were made up."""
    if not isinstance(given, dict):
        return given
    return {name: known(name, value) or value for name, value in given.items()}


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Values) -> Values:
    """Ids in paths."""
    return with_ids(path_parameters)


@schemathesis.hook
def map_query(context: Any, query: Values) -> Values:
    """Ids in queries; waits that are short."""
    found = with_ids(query)
    if found and isinstance(found.get("wait"), int | float) and found["wait"] > LONGEST_WAIT_S:
        found["wait"] = LONGEST_WAIT_S
    return found


@schemathesis.hook
def filter_body(context: Any, body: Any) -> bool:
    """No empty list in a form: it is sent as no field at all, which is not the mistake it was."""
    forms = any("multipart" in one.media_type for one in context.operation.body)
    return not (forms and isinstance(body, dict) and [] in body.values())


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Ids in bodies, and in the objects of their lists."""
    if not isinstance(body, dict):
        return body
    found = with_ids({k: v for k, v in body.items() if isinstance(v, str)}) or {}
    lists = {k: [with_ids_in(one) for one in v] for k, v in body.items() if isinstance(v, list)}
    return {**body, **found, **lists}


def with_ids_in(one: Any) -> Any:
    """An object of a list, with ids in the place of its texts."""
    if not isinstance(one, dict):
        return one
    return {**one, **(with_ids({k: v for k, v in one.items() if isinstance(v, str)}) or {})}
