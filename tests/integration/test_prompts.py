"""Candidates that are prompts: made by a recipe, gated, tested, rolled out, taken back."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
from tests.integration.loop import QUICK, Loop, open_loop
from tests.servers import PostgresServer
from tests.waiting import eventually

from tuneproof.collection import Task
from tuneproof.errors import ConfigError, InputError, RetryableError
from tuneproof.experiments import Variant
from tuneproof.prompts import Prompt
from tuneproof.rollout import Routing
from tuneproof.server.models import Model
from tuneproof.settings import BODY, Settings, TargetConfig, TaskConfig
from tuneproof.store import RunStatus
from tuneproof.targets import EnvFileTarget
from tuneproof.testing import MemoryProvider
from tuneproof.training import VersionStatus
from tuneproof.workflow import LOCK_SPACE

HOOK = TaskConfig(
    name="hook",
    prompt="A hook about {original_input}.",
    system="You write.",
    completion="hook",
    prompt_owner="variant",
)
FIRST = Task.of(HOOK).first_prompt
BETTER = {"make": "prompt", "prompt": "About {original_input}, a question.", "system": "You ask."}
WARMER = {"make": "prompt", "parameters": '{"temperature": 0.9, "max_tokens": 60}'}

LOOKED_FOR: dict[str, Any] = {
    "make": "prompt",
    "optimise": "outcomes",
    "reflection": "thinker@default",
    "budget_usd": 2,
}


def made(recipe: dict[str, str]) -> Prompt:
    """What a recipe makes of the first prompt."""
    messages = FIRST.messages
    if "prompt" in recipe:
        messages = (("system", recipe["system"]), ("user", recipe["prompt"]))
    parameters = orjson.loads(recipe.get("parameters", "{}"))
    return Prompt(
        messages=messages,
        parameters=parameters,
        variables=FIRST.variables,
        empty_prompt=FIRST.empty_prompt,
    )


def opened(
    folder: Path, database: str, *recipes: dict[str, str], split: float = 0.5, **more: Any
) -> AbstractAsyncContextManager[Loop]:
    changes = {"recipes": recipes, "traffic_split": split, "tasks": ("hook",), "base_model": "base"}
    return open_loop(folder, database, tasks={"hook": HOOK, "body": BODY}, changes=changes, **more)


async def in_use(loop: Loop) -> Variant:
    await loop.app.routing.all()
    return loop.app.routing.board.snapshot.by_task["hook"].baseline


async def test_a_better_prompt_is_promoted_and_nothing_is_trained(
    tmp_path: Path, database_url: str
) -> None:
    """The model stays; examples of the next run are made by the prompt that won."""
    trainer = MemoryProvider(base_models=("base",))
    async with opened(tmp_path, database_url, BETTER, provider=trainer) as loop:
        loop.traffic.lifts = {made(BETTER).hash: 0.8}
        run = await loop.turn()
        assert run.status is RunStatus.SUCCESS, run.reason
        assert not {"create_job", "upload"} & set(trainer.calls)
        [version] = await loop.app.store.versions.list(run_id=run.id)
        assert (version.model_id, version.prompt) == ("base", made(BETTER).hash)
        assert (version.recipe, version.status) == ("prompt", VersionStatus.LIVE)
        [test] = await loop.app.store.experiments.family(run.result["ab_test_id"])
        assert test.baseline.prompt == FIRST.hash
        assert test.candidate.prompt == made(BETTER).hash
        assert test.identity == (f"variant:base with {made(BETTER).hash}",)
        assert (await in_use(loop)).prompt == made(BETTER).hash
        again = await loop.turn()
        assert again.status is RunStatus.SKIPPED
        assert "in use" in (again.reason or "")
        folder = tmp_path / "datasets" / again.result["training_data"]["hash"]
        line = orjson.loads((folder / "hook" / "train.jsonl").read_bytes().splitlines()[0])
        assert line["messages"][0]["content"] == "You ask."
        assert line["messages"][1]["content"].endswith(", a question.")


async def test_a_worse_prompt_is_rejected(tmp_path: Path, database_url: str) -> None:
    async with opened(
        tmp_path, database_url, BETTER, provider=MemoryProvider(base_models=("base",))
    ) as loop:
        loop.traffic.lifts = {made(BETTER).hash: -0.3}
        run = await loop.turn()
        assert run.status is RunStatus.REJECTED, run.reason
        assert (await in_use(loop)).prompt == FIRST.hash
        [version] = await loop.app.store.versions.list(run_id=run.id)
        assert await Model(model_id="base").ref(loop.app) == Variant(model_id="base")
        named = await Model(model_id="base", prompt=made(BETTER).hash).ref(loop.app)
        assert (named.version, named.prompt) == (version.id, made(BETTER).hash)


async def test_prompts_and_a_fine_tune_are_one_family(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    """What is trained is served by the prompt that its examples were made by."""
    trainer = MemoryProvider(base_models=("base",))
    async with opened(
        tmp_path, sqlite_store_url, {"make": "train"}, BETTER, WARMER, split=0.25, provider=trainer
    ) as loop:
        loop.traffic.lift, loop.traffic.lifts = 0.0, {made(WARMER).hash: 0.9}
        run = await loop.turn()
        assert run.status is RunStatus.SUCCESS, run.reason
        tests = await loop.app.store.experiments.family(run.result["family"])
        assert [t.candidate.prompt for t in tests] == [
            FIRST.hash,
            made(BETTER).hash,
            made(WARMER).hash,
        ]
        assert tests[0].candidate.model_id.startswith("ft:")
        assert (await in_use(loop)).prompt == made(WARMER).hash


async def test_the_gate_asks_as_users_would_be_answered(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    """The same inputs by the candidate's own messages and parameters."""
    asked = []

    class Noting(MemoryProvider):
        async def complete(self, model: str, messages: Any, **how: Any) -> Any:
            asked.append((messages, how))
            return await super().complete(model, messages, **how)

    both = {**BETTER, "parameters": '{"temperature": 0.9, "max_tokens": 60, "top_p": 0.5}'}
    async with opened(
        tmp_path, sqlite_store_url, both, provider=Noting(base_models=("base",))
    ) as loop:
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.SUCCESS, run.reason
    sampled = [one for one in asked if one[1].get("temperature") == 0.9]
    assert len(sampled) >= QUICK.gate_samples
    for messages, how in sampled:
        assert messages[0]["content"] == "You ask."
        assert messages[1]["content"].startswith("About topic number ")
        assert messages[1]["content"].endswith(", a question.")
        assert (how["max_tokens"], how["parameters"]) == (60, {"top_p": 0.5})


async def test_the_gate_begins_anew_where_another_model_came_into_use(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    """A gate may wait for days: what is tested was compared with what is in use then."""
    asked: list[str] = []
    loops: list[Loop] = []

    class Moving(MemoryProvider):
        async def complete(self, model: str, messages: Any, **how: Any) -> Any:
            asked.append(model)
            if len(asked) == 5:  # in the middle of the check somebody puts another into use
                await loops[0].app.store.routing.set(
                    Routing(task="hook", baseline=Variant(model_id="other"))
                )
            return await super().complete(model, messages, **how)

    trainer = Moving(base_models=("base", "other"))
    async with opened(
        tmp_path, sqlite_store_url, {**BETTER, "model": "base"}, provider=trainer
    ) as loop:
        loops.append(loop)
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.SUCCESS, run.reason
        first = asked.index("other")
        assert "base" in asked[:first]
        assert set(asked[first:]) >= {"other"}  # the answers of the candidate were kept


async def test_a_rollback_returns_to_the_prompt_before(tmp_path: Path, database_url: str) -> None:
    """The model is the same: what goes back is the prompt."""
    async with opened(
        tmp_path, database_url, BETTER, provider=MemoryProvider(base_models=("base",))
    ) as loop:
        loop.traffic.lifts = {made(BETTER).hash: 0.8}
        run = await loop.turn()
        assert run.status is RunStatus.SUCCESS, run.reason
        done = await loop.app.rollouts.rollback("hook", reason="complaints")
        assert done.restored_model == "base"
        assert (await in_use(loop)).prompt == FIRST.hash
        again = await loop.turn()
        assert again.status is RunStatus.SKIPPED
        assert "was taken back" in (again.reason or "")
        forced = await loop.turn(force=True)
        assert forced.status is RunStatus.SUCCESS, forced.reason


@pytest.mark.postgres
async def test_a_run_waits_for_workers_that_know_no_prompts(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    """In a rolling upgrade one of before would ask the candidate without its prompt: it holds the
    lock of its id, and none of what it knows."""
    url, trainer = postgres.create_database(), MemoryProvider(base_models=("base",))
    async with opened(tmp_path, url, BETTER, provider=trainer) as loop:
        loop.traffic.lifts = {made(BETTER).hash: 0.8}
        older = await psycopg.AsyncConnection.connect(url.replace("+psycopg", ""), autocommit=True)
        await older.execute("SELECT pg_advisory_lock(%s, %s)", [LOCK_SPACE, 7])
        with pytest.raises(RetryableError, match=r"an earlier version still run \(1\)"):
            await loop.app.experiments.create(
                baseline=Variant(model_id="base"), candidates=[Variant(model_id="base")]
            )
        run = await loop.app.runs.start()

        async def waits() -> bool:
            found = await loop.app.store.runs.get(run.id)
            return "an earlier version" in str(found.stages.get("gate"))

        await eventually(waits)
        await older.close()
        ended = await loop.end(run.id)
        assert ended.status is RunStatus.SUCCESS, ended.reason


async def test_a_test_names_the_prompt_in_use_whatever_the_settings_say_later(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    """A model was in use before variants owned its prompt: what it is compared by may not change
    by an edit of the settings while the test runs."""
    trainer = MemoryProvider(base_models=("base",))
    async with opened(tmp_path, sqlite_store_url, provider=trainer) as loop:
        in_use = Routing(task="hook", baseline=Variant(model_id="base"))
        await loop.app.store.routing.set(in_use)
        kept = await loop.app.prompts.add(made(BETTER), task="hook")
        await loop.app.experiments.create(
            baseline=Variant(model_id="base"),
            candidates=[Variant(model_id="base", prompt=kept.prompt.hash)],
        )
    edited = {"hook": replace(HOOK, system="You write otherwise."), "body": BODY}
    changes = {"tasks": ("hook",), "base_model": "base"}
    async with open_loop(
        tmp_path, sqlite_store_url, provider=trainer, tasks=edited, changes=changes
    ) as loop:
        routing = loop.app.routing.board.snapshot.by_task["hook"]
        assert routing.baseline.prompt == FIRST.hash
        assert [model.prompt for model in routing.candidates] == [kept.prompt.hash]


async def test_an_edit_of_the_first_prompt_is_seen_by_who_says_what_it_has(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    """No write tells of it, so the version stays and the tag does not."""
    trainer, seen = MemoryProvider(base_models=("base",)), []
    for system in ("You write.", "You write otherwise."):
        tasks = {"hook": replace(HOOK, system=system, model="base"), "body": BODY}
        async with open_loop(
            tmp_path,
            sqlite_store_url,
            provider=trainer,
            tasks=tasks,
            changes={"tasks": ("hook",), "base_model": "base"},
        ) as loop:
            seen.append(loop.app.routing.board.snapshot)
    assert seen[0].version == seen[1].version
    assert seen[0].tag[False] == seen[1].tag[False]
    assert seen[0].tag[True] != seen[1].tag[True]


async def test_who_may_have_a_prompt(tmp_path: Path, sqlite_store_url: str) -> None:
    """A candidate with a prompt is refused where the application owns that, and one with other
    variables everywhere."""
    trainer = MemoryProvider(base_models=("base", "other"))
    async with opened(tmp_path, sqlite_store_url, provider=trainer) as loop:
        app = loop.app
        base = Variant(model_id="base")
        asked = Variant(model_id="other", prompt=FIRST.hash)
        with pytest.raises(InputError, match="the application owns that of body"):
            await app.experiments.create(baseline=base, candidates=[asked], tasks=["body"])
        with pytest.raises(InputError, match="have one each"):
            await app.experiments.create(baseline=base, candidates=[asked], tasks=["hook", "body"])
        elsewhere = Prompt(messages=(("user", "{topic}"),), variables=("topic",))
        with pytest.raises(InputError, match="has the variables topic, and hook has original_in"):
            await app.prompts.add(elsewhere, task="hook")
        with pytest.raises(InputError, match="own no prompt of a task 'body'"):
            await app.prompts.add(FIRST, task="body")
        kept = await app.prompts.add(made(BETTER), task="hook", actor="token:ci")
        assert kept.origin == "person"
        [test] = await app.experiments.create(
            baseline=base, candidates=[Variant(model_id="base", prompt=kept.prompt.hash)]
        )
        assert (test.baseline.prompt, test.candidate.prompt) == (FIRST.hash, kept.prompt.hash)
        assert (await in_use(loop)).prompt == FIRST.hash


async def test_an_application_that_takes_its_prompt_back_is_asked_by_nobody_elses(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    """What was tested by a prompt is not any more; a later test of models goes on as ever."""
    trainer = MemoryProvider(base_models=("base", "other"))
    async with opened(tmp_path, sqlite_store_url, provider=trainer) as loop:
        kept = await loop.app.prompts.add(made(BETTER), task="hook")
        prompted = Variant(model_id="base", prompt=kept.prompt.hash)
        await loop.app.experiments.create(baseline=Variant(model_id="base"), candidates=[prompted])
    changes = {"tasks": ("hook",), "base_model": "base"}
    async with open_loop(tmp_path, sqlite_store_url, provider=trainer, changes=changes) as loop:
        routing = loop.app.routing.board.snapshot.by_task["hook"]
        assert (routing.lanes, routing.baseline.prompt) == ((), None)
        [test] = (await loop.app.store.experiments.page(limit=1)).items
        await loop.app.experiments.end(test.id, reason="taken back")
        await loop.app.experiments.create(
            baseline=Variant(model_id="base"), candidates=[Variant(model_id="other")]
        )
        stored = await loop.app.store.routing.get("hook")
        assert stored is not None
        for routing in (stored, loop.app.routing.board.snapshot.by_task["hook"]):
            assert [model.model_id for model in routing.candidates] == ["other"]
            assert not routing.prompts
            assert routing.unprompted is routing


async def test_targets_are_told_of_prompts_or_of_the_model_in_use_alone(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    """An env file with its prompts beside it; one that knows none gets no candidate."""
    knows = EnvFileTarget(tmp_path / "knows.env", name="knows", prompts=True)
    plain = EnvFileTarget(tmp_path / "plain.env", name="plain")
    trainer = MemoryProvider(base_models=("base",))
    async with opened(tmp_path, sqlite_store_url, provider=trainer, targets=[knows, plain]) as loop:
        kept = await loop.app.prompts.add(made(BETTER), task="hook")
        prompted = Variant(model_id="base", prompt=kept.prompt.hash)
        await loop.app.experiments.create(
            baseline=Variant(model_id="base"), candidates=[prompted], traffic_split=0.5
        )
        await loop.app.managers.of(loop.app.pipelines.get("default")).apply(["hook"])
        told = dict(
            line.split("=", 1) for line in (tmp_path / "knows.env").read_text().splitlines()
        )
        assert told["HOOK_CANDIDATE_PROMPT"] == kept.prompt.hash
        assert told["HOOK_BASELINE_PROMPT"] == FIRST.hash
        assert told["HOOK_CANDIDATE_SHARE"] == "0.5000"
        for hash in (kept.prompt.hash, FIRST.hash):
            content = orjson.loads((tmp_path / "knows.env.prompts" / f"{hash}.json").read_bytes())
            assert Prompt.of(content).hash == hash
        assert "PROMPT" not in (tmp_path / "plain.env").read_text()
        assert "HOOK_CANDIDATE_SHARE=0.0000" in (tmp_path / "plain.env").read_text()


def test_settings_that_cannot_be() -> None:
    """What no run could make is said when it is read."""

    def read(**more: Any) -> Settings:
        tasks = {"hook": HOOK, "body": BODY}
        changes = {"base_model": "base", "recipes": (BETTER,), "tasks": ("hook",), **more}
        return Settings(tasks=tasks, pipelines={"default": replace(QUICK, **changes)})

    read()
    read(recipes=(LOOKED_FOR,))
    for changes, said in (
        ({"tasks": ("body",)}, "are not one whose prompt variants own"),
        ({"tasks": ("hook", "body"), "recipes": ()}, "train_together = false"),
        ({"recipes": ({**BETTER, "prompt": "About nothing."},)}, "does not say original_input"),
        ({"recipes": ({"make": "prompt"},)}, "must say a prompt, or parameters, or the hash"),
        ({"recipes": ({**BETTER, "hash": "a" * 16},)}, "must say a prompt, or parameters, or"),
        ({"recipes": ({"make": "prompt", "system": "You."},)}, "needs prompt beside it"),
        ({"recipes": ({**BETTER, "provider": "default"},)}, "needs model beside it"),
        ({"recipes": ({**BETTER, "parameters": {"n": 2}},)}, "no parameter n"),
        ({"recipes": ({**BETTER, "parameters": "warm"},)}, "must be parameters"),
        ({"recipes": ({**BETTER, "model": "m", "provider": "nobody"},)}, "nobody"),
        (
            {"recipes": ({"make": "prompt", "optimise": "taste"},)},
            "reflection is None, but must be",
        ),
        ({"recipes": ({**LOOKED_FOR, "reflection": "m@nobody"},)}, "nobody"),
        ({"recipes": ({**LOOKED_FOR, "reflection": "thinker"},)}, "must be MODEL@PROVIDER"),
        ({"recipes": ({**LOOKED_FOR, "budget_usd": "much"},)}, "budget_usd is 'much'"),
        ({"recipes": ({**LOOKED_FOR, "budget_usd": 0},)}, "budget_usd is 0"),
        ({"recipes": ({**LOOKED_FOR, "calls": 3},)}, "calls is 3"),
        ({"recipes": ({**LOOKED_FOR, "calls": 30.5},)}, "calls is 30.5"),
        ({"recipes": ({**LOOKED_FOR, "hash": "a" * 16},)}, "cannot stand beside optimise"),
    ):
        with pytest.raises(ConfigError, match=said):
            read(**changes)
    for kind, more, said in (
        ("envfile", {"path": "x.env"}, "Set prompts = true"),
        ("istio", {}, "take the target out"),
    ):
        target = TargetConfig(name="t", kind=kind, options=more)
        with pytest.raises(ConfigError, match="of models and of no prompts") as refused:
            Settings(
                tasks={"hook": HOOK, "body": BODY},
                pipelines={"default": replace(QUICK, tasks=("hook",))},
                targets={"t": target},
            )
        assert said in refused.value.mend
    with pytest.raises(ConfigError, match="a variable's name is of letters") as refused:
        TaskConfig(
            name="hook",
            prompt='As {"hook": 1}: {topic}',
            completion="hook",
            prompt_owner="variant",
        )
    assert "Double a brace" in refused.value.mend
    with pytest.raises(ConfigError, match="variable in braces"):
        TaskConfig(
            name="hook",
            prompt="{topic}",
            completion="hook",
            system="Not {topic}",
            prompt_owner="variant",
        )
