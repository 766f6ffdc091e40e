"""`tuneproof migrate`: the database to this version's schema, or the loop to another model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from tuneproof.cli import output
from tuneproof.cli.options import NONE, CommonOptions
from tuneproof.cli.output import OK
from tuneproof.cli.service import connect, private_files, usable
from tuneproof.errors import ConfigError


async def migrate(
    *,
    to: Annotated[
        list[str] | None,
        Parameter(
            help="A successor as it is: MODEL@PROVIDER. May be given several times.", negative=""
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        Parameter(help="Test each successor with this kept prompt, too (its hash)."),
    ] = None,
    optimise: Annotated[
        str | None,
        Parameter(
            help="Test each successor with a prompt that is looked for, too, by this scorer or by "
            '"outcomes".'
        ),
    ] = None,
    reflection: Annotated[
        str | None, Parameter(help="Who proposes prompts for --optimise: MODEL@PROVIDER.")
    ] = None,
    budget_usd: Annotated[
        float | None, Parameter(help="What looking for a prompt of each may cost.")
    ] = None,
    train: Annotated[
        str | None, Parameter(help="A base to fine-tune beside them: BASE@PROVIDER.")
    ] = None,
    plan: Annotated[
        bool, Parameter(help="Say what it would take, and start nothing.", negative="")
    ] = False,
    pipeline: str = "default",
    margin: Annotated[
        float | None, Parameter(help="How much engagement may be below, at most [0.05].")
    ] = None,
    cheaper: Annotated[
        float | None, Parameter(help="How much less it must cost; 0: that is no reason [0.1].")
    ] = None,
    late: Annotated[
        bool,
        Parameter(help="Start even if it cannot be over before the shutdown.", negative=""),
    ] = False,
    options: CommonOptions = NONE,
) -> int:
    """Test what may take the place of a model, and roll the best of it out.

    Without a place to go it brings the database to this version's schema, and ends: for an init
    container, whose failure shows before a pod that serves is replaced.
    """
    successors = [_place(one, "--to") for one in to or []]
    search = {"optimise": optimise, "reflection": reflection, "budget_usd": budget_usd}
    recipes: list[dict[str, Any]] = [{**one, "make": "as_is"} for one in successors]
    if prompt is not None:
        recipes += [{**one, "make": "prompt", "hash": prompt} for one in successors]
    if any(value is not None for value in search.values()):
        _ensure_whole(search, successors)
        recipes += [{**one, "make": "prompt", **search} for one in successors]
    if train is not None:
        recipes.append({**_place(train, "--train"), "make": "train"})
    if not recipes:
        if plan or late or prompt or margin is not None or cheaper is not None:
            raise ConfigError(
                "There is nowhere to move.",
                mend="Name a successor (--to MODEL@PROVIDER), or what is to be trained (--train).",
            )
        return await _schema(options)
    asked = {"margin": margin, "cheaper": cheaper}
    body: dict[str, Any] = {"pipeline": pipeline, "recipes": recipes}
    body |= {name: value for name, value in asked.items() if value is not None}
    async with connect(options, engine=not plan, scratch=plan, makes=not plan) as service:
        found = await service.post("/migration/plan", body)
        if plan and options.json:
            output.data(found)
            return OK
        for sentence in found["sentences"]:
            output.say(sentence)
        if plan:
            return OK
        begun = await service.post("/migration/start", {**body, "late": late})
        if options.json:
            output.data(begun)
        output.say(
            f"Run {begun['pipeline_id']} began. It goes on with `tuneproof serve`; see where it "
            "stands with: tuneproof status"
        )
    return OK


def _ensure_whole(search: Mapping[str, Any], successors: Sequence[object]) -> None:
    """A prompt is looked for by all that it needs, and for somebody."""
    lacking = [name for name, value in search.items() if value is None]
    lacking += [] if successors else ["to"]
    if lacking:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in lacking)
        raise ConfigError(
            f"A prompt cannot be looked for without {options}.",
            mend="For example --to gpt-5-mini@openai --optimise outcomes --reflection "
            "gpt-5@openai --budget-usd 5.",
        )


def _place(text: str, option: str) -> dict[str, str]:
    """MODEL@PROVIDER, or MODEL at the pipeline's own; a model's name may have an @ itself."""
    model, mark, provider = text.rpartition("@")
    if not mark:
        model, provider = provider, ""
    if not model.strip() or (mark and not provider.strip()):
        raise ConfigError(
            f"{option} {text!r} names no model.", mend=f"For example {option} gpt-5-mini@openai"
        )
    return {"model": model, **({"provider": provider} if provider else {})}


async def _schema(options: CommonOptions) -> int:
    """Bring the database to this version's schema. Several at once wait for each other."""
    from tuneproof.standalone import opened_store
    from tuneproof.store.migrate import HEAD
    from tuneproof.workflow import SystemClock

    settings = options.settings()
    usable(settings.dir)
    with private_files():
        async with opened_store(settings, SystemClock()):
            pass
    if options.json:
        output.data({"schema": HEAD})
    output.say(f"The database {settings.store.url} has schema {HEAD}.")
    return OK
