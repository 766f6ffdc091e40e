"""`tuneproof prompt`: what models are asked, where variants own that."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from tuneproof.cli import output
from tuneproof.cli.options import NONE, CommonOptions
from tuneproof.cli.output import OK
from tuneproof.cli.service import connect, path_to
from tuneproof.errors import InputError

SHOWN = 60
"""How many characters of a prompt a row shows."""

MEND = """Write for example:
  system = "You write hooks that ask."
  prompt = "A hook about {original_input}."
  [parameters]
  temperature = 0.4"""


async def add(
    file: Path,
    /,
    *,
    task: Annotated[str, Parameter(help="The task that it is for.")],
    options: CommonOptions = NONE,
) -> int:
    """Keep a prompt (a TOML file) under the hash of its content, which is its name."""
    async with connect(options, makes=True) as service:
        kept = await service.post("/prompts", {"task": task, **read(file)})
        if options.json:
            output.data(kept)
            return OK
        output.out().print(kept["hash"], soft_wrap=True)
        output.say(f"Test it with: tuneproof run start --recipe make=prompt,hash={kept['hash']}")
    return OK


async def list_(*, options: CommonOptions = NONE) -> int:
    """All prompts, newest first."""
    async with connect(options) as service:
        found = (await service.get("/prompts"))["prompts"]
    if options.json:
        output.data(found)
        return OK
    if not found:
        output.say("No prompts yet. A run of a task whose prompt variants own keeps the first.")
        return OK
    rows = [
        (
            one["hash"],
            one["origin"],
            one["parent"] or "",
            " ".join(one["messages"][-1]["content"].split())[:SHOWN],
            json.dumps(one["parameters"]) if one["parameters"] else "",
            output.moment(one["created_at"]),
        )
        for one in found
    ]
    output.table(["prompt", "from", "follows", "asks", "parameters", "kept"], rows)
    return OK


async def show(hash: str, /, *, options: CommonOptions = NONE) -> int:
    """A prompt, whole."""
    async with connect(options) as service:
        found = await service.get(path_to("/prompts", hash))
    if options.json:
        output.data(found)
        return OK
    for message in found["messages"]:
        output.out().print(f"{message['role']}: {output.clean(message['content'])}")
    if found["parameters"]:
        output.out().print(f"parameters: {json.dumps(found['parameters'])}")
    if found["empty_prompt"]:
        output.out().print(f"where all variables are blank: {output.clean(found['empty_prompt'])}")
    return OK


def read(file: Path) -> dict[str, Any]:
    """The prompt that a file describes. Raises `InputError`."""
    try:
        told = tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as TOML: {error}.", mend=MEND) from error
    unknown = told.keys() - {"system", "prompt", "parameters", "empty_prompt", "messages"}
    if unknown or ("prompt" in told) == ("messages" in told):
        said = f"has {', '.join(sorted(unknown))}" if unknown else "needs prompt, or messages"
        raise InputError(f"{file} {said}.", mend=MEND)
    for name in told.keys() & {"system", "prompt", "empty_prompt"}:
        if not isinstance(told[name], str):
            raise InputError(f"{name} in {file} is {told[name]!r}, no text.", mend=MEND)
    if not isinstance(told.get("parameters", {}), dict):
        raise InputError(f"parameters in {file} is {told['parameters']!r}, no table.", mend=MEND)
    try:
        json.dumps(told, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{file} has what JSON has not: {error}.",
            mend="Use texts, finite numbers, lists and tables; write a time in quotes.",
        ) from error
    system, prompt = told.pop("system", None), told.pop("prompt", None)
    if prompt is not None:
        before = [{"role": "system", "content": system}] if system else []
        told["messages"] = [*before, {"role": "user", "content": prompt}]
    return told
