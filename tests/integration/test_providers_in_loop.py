"""Runs and their providers: asked before spending, budgeted, switched, searched, shut down."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.integration.loop import T0, posts
from tests.integration.providing import Provider, open_providers

from tuneproof.app.succession import command
from tuneproof.collection import Post
from tuneproof.errors import ConfigError, CredentialsError, DeniedError, NotFoundError
from tuneproof.experiments import variant_of
from tuneproof.settings import HOOK, TaskConfig
from tuneproof.store import RunStatus
from tuneproof.training import JobStatus, Score, TrainingReadiness

PRICED = {"training_prices": {"base": 10.0}}


def uploads(provider: Provider) -> int:
    return provider.calls.get("upload", 0)


# --- before anything is spent -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "slug"),
    [
        (TrainingReadiness(model="base", account=False, detail="closed"), "training-not-available"),
        (TrainingReadiness(model="base", tunable=False, offered=("other",)), "config"),
        (TrainingReadiness(model="base", shutdown_at=T0 - timedelta(days=1)), "config"),
    ],
)
async def test_refusal_is_found_before_anything_is_uploaded(
    tmp_path: Path, sqlite_store_url: str, says: TrainingReadiness, slug: str
) -> None:
    provider = Provider(name="p")
    provider.says = says
    async with open_providers(tmp_path, sqlite_store_url, provider) as loop:
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.FAILED
        assert run.error is not None
        assert (run.error["type"], run.error["stage"]) == (slug, "train")
        assert run.error["mend"]
        assert uploads(provider) == 0
        provider.says = None
        await loop.app.runs.retry(run.id)
        assert (await loop.end(run.id)).status is RunStatus.SUCCESS


async def test_wrong_key_is_found_before_anything_is_uploaded(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    provider = Provider(name="p")
    provider.raises["readiness"] = CredentialsError("The key is refused.", mend="Set it.")
    async with open_providers(tmp_path, sqlite_store_url, provider) as loop:
        run = await loop.turn()
        assert (run.error or {})["type"] == "credentials"
        assert uploads(provider) == 0


async def test_doctor_asks_what_a_run_asks(tmp_path: Path, sqlite_store_url: str) -> None:
    provider = Provider(name="p")
    provider.says = TrainingReadiness(model="base", account=False, detail="closed")
    async with open_providers(tmp_path, sqlite_store_url, provider) as loop:
        found = {f.name: f for f in await loop.app.doctor.examine()}
        assert found["default: base model"].status == "failed"
        assert "closed" in found["default: base model"].detail
        provider.says = TrainingReadiness(model="base", shutdown_at=T0 + timedelta(days=30))
        found = {f.name: f for f in await loop.app.doctor.examine()}
        assert found["default: base model"].status == "warning"
        assert "in 30 days" in found["default: base model"].detail


# --- money ------------------------------------------------------------------------------------


async def test_estimate_and_cost_are_kept(tmp_path: Path, database_url: str) -> None:
    provider = Provider(name="p")
    async with open_providers(tmp_path, database_url, provider, more=PRICED) as loop:
        run = await loop.turn(last_stage="gate")
        cost = run.result["cost"]
        [version] = await loop.app.store.versions.list()
        assert version.trained_tokens is not None
        assert cost["spent_usd"] == pytest.approx(version.trained_tokens * 10 / 1e6)
        assert cost["final"] is True
        shown = run.stages["train"]["detail"]["preflight"]
        assert shown["epochs"] == 3
        assert cost["estimated_usd"] == pytest.approx(shown["tokens"] * 3 * 10 / 1e6)
        told = [i.payload for i in await loop.app.store.outbox.due(loop.app.clock.now())]
        assert any("training_cost_usd" in t.get("metrics", {}) for t in told)


async def test_run_above_its_budget_stops_before_anything_is_spent(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    provider = Provider(name="p")
    changes = {"max_cost_usd": 0.01}
    async with open_providers(
        tmp_path, sqlite_store_url, provider, changes=changes, more=PRICED
    ) as loop:
        run = await loop.turn()
        assert run.error is not None
        assert (run.status, run.error["type"]) == (RunStatus.FAILED, "budget-exceeded")
        assert run.error["details"]["rule"] == "max_cost_usd"
        assert "nothing was spent" in (run.reason or "")
        assert "cost" not in run.result
        assert uploads(provider) == 0


async def test_budget_without_a_price_is_refused(tmp_path: Path, sqlite_store_url: str) -> None:
    provider = Provider(name="p")
    changes = {"max_cost_usd": 5.0}
    async with open_providers(tmp_path, sqlite_store_url, provider, changes=changes) as loop:
        run = await loop.turn()
        assert "no price is known" in (run.reason or "")
        assert uploads(provider) == 0


async def test_month_s_budget_counts_the_runs_before(tmp_path: Path, database_url: str) -> None:
    provider = Provider(name="p")
    async with open_providers(
        tmp_path, database_url, provider, more={"training_prices": {"base": 10.0}}
    ) as loop:
        first = await loop.turn(last_stage="gate")
        spent = first.result["cost"]["spent_usd"]
        estimated = first.result["cost"]["estimated_usd"]
        runs = loop.app.store.runs
        assert await runs.spent_usd("default", since=T0.replace(day=1)) == pytest.approx(spent)
        assert await runs.spent_usd("default", since=T0 + timedelta(days=90)) == 0
        config = replace(
            loop.app.pipelines.get("default"), max_cost_usd_month=spent + estimated / 2
        )
        second = await loop.turn(pipeline=config)
        assert second.error is not None
        assert second.error["details"]["rule"] == "max_cost_usd_month"
        room = replace(config, max_cost_usd_month=spent + 2 * estimated)
        assert (await loop.turn(pipeline=room, last_stage="gate")).result["cost"]["spent_usd"] > 0


# --- switching --------------------------------------------------------------------------------


async def test_switch_keeps_the_baseline_where_it_is_served(
    tmp_path: Path, database_url: str
) -> None:
    old, new = Provider(name="old"), Provider(name="new", base_models=("open-base",))
    async with open_providers(tmp_path, database_url, old, new) as loop:
        first = await loop.turn()
        assert first.status is RunStatus.SUCCESS
        switched = replace(
            loop.app.pipelines.get("default"),
            provider="new",
            base_model="open-base",
            gate_compared=0,
        )
        calls = {p.name: dict(p.calls) for p in (old, new)}
        second = await loop.turn(pipeline=switched)
        assert second.status is RunStatus.SUCCESS, second.reason
        after, before = await loop.app.store.versions.list()
        assert (before.version, before.provider) == ("1.0.0", "old")
        assert (after.version, after.provider) == ("2.0.0", "new")
        assert after.parent_id == before.id
        test = await loop.app.store.experiments.get(second.result["ab_test_id"])
        assert test.baseline.model_id == before.model_id
        # The way back was called at the old provider (by the gate, and before the rollout), the
        # candidate at the new one.
        assert old.calls["complete"] == calls["old"]["complete"] + 2
        assert old.calls["create_job"] == calls["old"]["create_job"]
        assert new.calls["create_job"] == 1
        assert before.model_id is not None
        assert after.model_id is not None
        assert (await loop.app.routing.endpoints.of(variant_of(before))).provider == "old"
        assert (await loop.app.routing.endpoints.of(variant_of(after))).provider == "new"


async def test_same_posts_give_the_same_dataset_across_a_switch(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    old, new = Provider(name="old"), Provider(name="new", base_models=("open-base",))
    async with open_providers(tmp_path, sqlite_store_url, old, new) as loop:
        first = await loop.turn(as_of=T0, last_stage="gate")
        switched = replace(
            loop.app.pipelines.get("default"), provider="new", base_model="open-base"
        )
        second = await loop.turn(pipeline=switched, as_of=T0, last_stage="gate")
        hashes = {r.result["training_data"]["hash"] for r in (first, second)}
        assert len(hashes) == 1


async def test_base_in_use_is_looked_for_where_it_was_trained_on(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    old, new = Provider(name="old"), Provider(name="new", base_models=("open-base",))
    async with open_providers(tmp_path, sqlite_store_url, old, new, lift=0.0) as loop:
        assert (await loop.turn()).status is RunStatus.REJECTED
        loop.traffic.lift = 0.5
        switched = replace(
            loop.app.pipelines.get("default"), provider="new", base_model="open-base"
        )
        run = await loop.turn(pipeline=switched)
        assert run.status is RunStatus.SUCCESS, run.reason
        test = await loop.app.store.experiments.get(run.result["ab_test_id"])
        assert test.baseline.model_id == "base"


async def test_doctor_misses_the_provider_of_a_model_in_use(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    old, new = Provider(name="old"), Provider(name="new", base_models=("base",))
    async with open_providers(tmp_path, sqlite_store_url, old, new) as loop:
        assert (await loop.turn()).status is RunStatus.SUCCESS
    async with open_providers(tmp_path, sqlite_store_url, new) as loop:
        found = {f.name: f for f in await loop.app.doctor.examine()}
        assert found["hook: model in use"].status == "failed"
        mend = found["hook: model in use"].mend
        assert '[providers.old]; kind = "compatible"' in mend
        assert 'base_url = "http://127.0.0.1:9/old/v1"' in mend
        [version] = await loop.app.store.versions.list()
        assert version.model_id is not None
        with pytest.raises(ConfigError, match="old, whose models are in use, is not set any more"):
            await loop.app.providers.serves(variant_of(version))


async def test_tasks_that_train_apart_have_runs_versions_and_providers_of_their_own(
    tmp_path: Path, database_url: str
) -> None:
    one, two = Provider(name="one"), Provider(name="two", base_models=("small",))
    tasks = {
        "hook": TaskConfig(name="hook", prompt="{original_input}", completion="hook"),
        "body": TaskConfig(
            name="body",
            prompt="{hook}\n\nWrite a detailed post:",
            completion="body",
            provider="two",
            base_model="small",
        ),
    }
    async with open_providers(
        tmp_path, database_url, one, two, changes={"train_together": False}, tasks=tasks
    ) as loop:
        first = await loop.app.runs.start(last_stage="gate")
        runs = {r.pipeline: r for r in (await loop.app.store.runs.page()).items}
        assert sorted(runs) == ["default.body", "default.hook"]
        assert first.pipeline == "default.hook"
        for run in runs.values():
            assert (await loop.end(run.id)).status is RunStatus.SUCCESS
        made = {v.pipeline: v for v in await loop.app.store.versions.list()}
        assert made["default.hook"].provider == "one"
        assert (made["default.body"].provider, made["default.body"].base_model) == ("two", "small")
        assert {v.version for v in made.values()} == {"1.0.0"}
        shown = (await loop.app.overview.status())["pipelines"]
        assert [p["name"] for p in shown] == ["default.hook", "default.body"]


# --- jobs that misbehave ------------------------------------------------------------------------


async def test_job_that_vanishes_ends_the_run(tmp_path: Path, sqlite_store_url: str) -> None:
    provider = Provider(name="p")
    provider.raises["job"] = NotFoundError("No such job.")
    async with open_providers(tmp_path, sqlite_store_url, provider) as loop:
        run = await loop.turn()
        assert run.error is not None
        assert run.error["details"]["code"] == "job_not_found"
        assert provider.calls["job"] == 3  # not at the first missing: lists lag behind


async def test_job_that_is_lost_for_a_moment_goes_on(tmp_path: Path, sqlite_store_url: str) -> None:
    class Late(Provider):
        async def job(self, job_id: str) -> Any:
            if self.calls.get("job", 0) < 2:
                self._called("job")
                raise NotFoundError("Not yet.")
            return await super().job(job_id)

    async with open_providers(tmp_path, sqlite_store_url, Late(name="p")) as loop:
        assert (await loop.turn(last_stage="gate")).status is RunStatus.SUCCESS


async def test_job_in_an_undocumented_state_is_polled_until_its_timeout(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    class Dreaming(Provider):
        async def job(self, job_id: str) -> Any:
            found = await super().job(job_id)
            if found.status is JobStatus.CANCELLED:
                return found
            return replace(found, status=JobStatus.UNKNOWN, raw_status="dreaming")

    provider = Dreaming(name="p")
    changes = {"timeout_seconds": 120}
    async with open_providers(tmp_path, sqlite_store_url, provider, changes=changes) as loop:
        run = await loop.turn()
        assert run.error is not None
        assert run.error["details"]["code"] == "timeout"
        assert "was still dreaming after 120 s and was cancelled" in (run.reason or "")
        assert provider.calls["cancel_job"] == 1


# --- search -------------------------------------------------------------------------------------


def by_epochs(model: str, messages: Sequence[Mapping[str, str]]) -> Score:
    """The fourth character of a model's number: trial 2 is the best of three."""
    nats = {"0001": 1.7, "0002": 1.4, "0003": 1.6}.get(model[-4:], 2.0)
    return Score(tokens=10, logprob=-nats * 10)


SEARCH = {"search": {"n_epochs": (1, 2, 4)}, "search_trials": 3}


async def test_search_makes_a_job_for_each_point_and_one_version_of_the_best(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    provider = Provider(name="p", score=by_epochs)
    async with open_providers(
        tmp_path, sqlite_store_url, provider, changes=SEARCH, more=PRICED
    ) as loop:
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.SUCCESS, run.reason
        assert [r.hyperparameters["n_epochs"] for r in provider.requests.values()] == [1, 2, 4]
        assert uploads(provider) == 2  # training and validation, once for all trials
        keys = {r.metadata["tuneproof_run"] for r in provider.requests.values()}
        assert keys == {f"{run.id}/trial-{i}" for i in range(3)}
        [version] = await loop.app.store.versions.list()
        assert (version.model_id or "").endswith("0002")
        shown = run.stages["train"]["detail"]["trials"]
        assert [t["heldout_loss"] for t in shown] == [1.7, 1.4, 1.6]
        assert run.result["cost"]["spent_usd"] == pytest.approx(sum(t["cost_usd"] for t in shown))


async def test_search_tries_what_its_budget_has_room_for(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    provider = Provider(name="p", score=by_epochs)
    async with open_providers(
        tmp_path, sqlite_store_url, provider, changes=SEARCH, more=PRICED
    ) as loop:
        run = await loop.turn(last_stage="gate")
        whole = run.result["cost"]["estimated_usd"]
        config = replace(loop.app.pipelines.get("default"), max_cost_usd=whole * 3 / 7)
        again = await loop.turn(pipeline=config, last_stage="gate")
        tried = [
            t["hyperparameters"]["n_epochs"] for t in again.stages["train"]["detail"]["trials"]
        ]
        assert tried == [1, 2]


async def test_search_goes_on_after_a_trial_that_failed(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    class Moody(Provider):
        async def job(self, job_id: str) -> Any:
            self.fail_job = ("server_error", "tired") if job_id.endswith("0002") else None
            return await super().job(job_id)

    provider = Moody(name="p", score=by_epochs)
    async with open_providers(tmp_path, sqlite_store_url, provider, changes=SEARCH) as loop:
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.SUCCESS
        shown = run.stages["train"]["detail"]["trials"]
        assert "tired" in shown[1]["error"]
        [version] = await loop.app.store.versions.list()
        assert (version.model_id or "").endswith("0003")


async def test_optuna_suggests_trials(tmp_path: Path, sqlite_store_url: str) -> None:
    pytest.importorskip("optuna")
    provider = Provider(name="p", score=by_epochs)
    changes = {
        "search": {"learning_rate_multiplier": (0.1, 4.0)},
        "search_trials": 3,
        "search_method": "optuna",
    }
    async with open_providers(tmp_path, sqlite_store_url, provider, changes=changes) as loop:
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.SUCCESS, run.reason
        rates = [r.hyperparameters["learning_rate_multiplier"] for r in provider.requests.values()]
        assert len(set(rates)) == 3
        assert all(0.1 <= float(rate) <= 4.0 for rate in rates)


# --- preferences --------------------------------------------------------------------------------


def paired_posts() -> list[Post]:
    """Each topic twice: once liked, once not, a thousand times shown each."""
    return [
        replaced._replace(
            original_input=f"topic {i // 2}",
            impressions=1000,
            clicks=120 if i % 2 else 20,
            engagement_rate=0.12 if i % 2 else 0.02,
        )
        for i, replaced in enumerate(posts(240))
    ]


async def test_preferences_train_by_dpo_and_pass_the_gate(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    liked = {post.text(column) for post in paired_posts()[1::2] for column in ("hook", "body")}

    def score(model: str, messages: Sequence[Mapping[str, str]]) -> Score:
        """Tuned models find all answers less likely, disliked ones the more so."""
        answer = messages[-1]["content"]
        words = len(answer.split())
        tuned = 2.2 if answer in liked else 3.0
        return Score(tokens=words, logprob=-(tuned if model.startswith("ft:") else 2.0) * words)

    provider = Provider(name="p", score=score)
    async with open_providers(
        tmp_path,
        sqlite_store_url,
        provider,
        changes={"method": "dpo", "beta": 0.2},
        source=paired_posts(),
    ) as loop:
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.SUCCESS, run.reason
        [request] = provider.requests.values()
        assert (request.method, request.hyperparameters["beta"]) == ("dpo", 0.2)
        lines = provider.files[request.training_file][1].splitlines()
        line = json.loads(lines[0])
        assert set(line) == {"input", "preferred_output", "non_preferred_output"}
        assert line["preferred_output"][0]["role"] == "assistant"
        assert run.result["training_data"]["examples"]["hook"] > 50
        gate = run.stages["gate"]["detail"]
        assert gate["pair_accuracy"] == 1.0
        assert gate["heldout_loss"] > gate["base_heldout_loss"]


async def test_search_of_preferences_chooses_by_the_pairs_not_by_likelihood(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    """The longer a trial trains, the less likely it finds all answers, and the better it tells
    the liked ones; the longest one has lost its language. By likelihood, the shortest would win."""
    liked = {post.text(column) for post in paired_posts()[1::2] for column in ("hook", "body")}
    nats = {"0001": (2.05, 2.1), "0002": (2.2, 3.0), "0003": (2.9, 9.0)}

    def score(model: str, messages: Sequence[Mapping[str, str]]) -> Score:
        answer = messages[-1]["content"]
        words = len(answer.split())
        better, worse = nats.get(model[-4:], (2.0, 2.0))
        return Score(tokens=words, logprob=-(better if answer in liked else worse) * words)

    provider = Provider(name="p", score=score)
    changes = {"method": "dpo", "beta": 0.2, **SEARCH}
    async with open_providers(
        tmp_path, sqlite_store_url, provider, changes=changes, source=paired_posts()
    ) as loop:
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.SUCCESS, run.reason
        [version] = await loop.app.store.versions.list()
        assert (version.model_id or "").endswith("0002")
        trials = run.stages["train"]["detail"]["trials"]
        assert [t["pair_accuracy"] for t in trials] == [1.0, 1.0, 1.0]
        assert [t["forgot"] for t in trials] == [False, False, True]
        assert trials[2]["pair_loss"] < trials[1]["pair_loss"] < trials[0]["pair_loss"]
        assert trials[0]["heldout_loss"] < trials[1]["heldout_loss"]


async def test_search_of_preferences_believes_a_provider_that_cannot_score(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    class Mute(Provider):
        """Scores nothing, and reports what its jobs lowered: the loss of the pairs."""

        async def events(self, job_id: str) -> Any:
            found = list(await super().events(job_id))
            loss = {"0001": 0.68, "0002": 0.5, "0003": 0.6}[job_id[-4:]]
            return [*found, replace(found[-1], data={"full_valid_loss": loss})]

    provider = Mute(name="p", score=lambda model, messages: None)
    changes = {"method": "dpo", **SEARCH}
    async with open_providers(
        tmp_path, sqlite_store_url, provider, changes=changes, source=paired_posts()
    ) as loop:
        run = await loop.turn(last_stage="gate")
        trials = run.stages["train"]["detail"]["trials"]
        assert [t["pair_loss"] for t in trials] == [0.68, 0.5, 0.6]
        assert (run.result["model_version"]["model_id"] or "").endswith("0002")


# --- would its answers win? ----------------------------------------------------------------------


def judged_posts() -> list[Post]:
    """Of each topic two hooks: readers like the one with a word in it."""
    return [
        one._replace(
            original_input=f"topic {i // 2}",
            hook=f"Hook {i} {'gladly' if i % 2 else 'maybe'} of it",
            impressions=1000,
            engagement_rate=0.12 if i % 2 else 0.08,
        )
        for i, one in enumerate(posts(1600))
    ]


@pytest.mark.parametrize(
    ("word", "passes", "said"),
    [
        ("gladly", True, "hook: expected to do better in "),
        ("maybe", False, "The lower bound may not be below gate.min_win_rate, 45%."),
    ],
)
async def test_gate_asks_both_models_whose_answers_would_win(
    tmp_path: Path, sqlite_store_url: str, word: str, passes: bool, said: str
) -> None:
    def answer(model: str, messages: Sequence[Mapping[str, str]], number: int) -> str:
        return f"An answer {word if model.startswith('ft:') else 'plain'} of it"

    provider = Provider(name="p", answer=answer)
    changes = {
        "gate_compared": 100,
        "gate_allow_drift": ("openings",),
        "engagement_threshold": 0.06,
        "tasks": ("hook",),
    }
    async with open_providers(
        tmp_path, sqlite_store_url, provider, changes=changes, source=judged_posts()
    ) as loop:
        run = await loop.turn(last_stage="gate")
        assert run.status is (RunStatus.SUCCESS if passes else RunStatus.REJECTED), run.reason
        assert said in run.reason
        [found] = run.stages["gate"]["detail"]["predictions"]
        assert found["task"] == "hook"
        assert found["inputs"] >= 50
        assert found["outcomes"]["accuracy"] > 0.9
        assert (found["low"] > 0.5) is passes


async def test_each_run_keeps_the_model_by_which_answers_are_picked(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    """Also one whose candidate the gate refuses: the model knows the posts, not the candidate."""
    provider = Provider(name="p", answer=lambda model, messages, number: "")
    changes = {"engagement_threshold": 0.06, "tasks": ("hook",)}
    records = {"tasks": {"hook": replace(HOOK, best_of=4)}}
    async with open_providers(
        tmp_path, sqlite_store_url, provider, changes=changes, source=judged_posts(), **records
    ) as loop:
        best_of = loop.app.best_of
        await best_of.refresh()
        assert best_of.of("hook") is None
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.REJECTED, run.reason
        await best_of.refresh()
        picker = best_of.of("hook")
        assert picker is not None
        assert picker.answers == 4
        assert picker.pick(["A hook maybe of it", "A hook gladly of it"]) == 1
        [standing] = await best_of.standings()
        assert (standing.asked, run.id in standing.why) == (4, True)


# --- shutdowns ----------------------------------------------------------------------------------


async def test_shutdown_is_warned_of_once_and_counted_down(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    provider = Provider(name="p")
    provider.shutdowns["base"] = T0 + timedelta(days=100)
    async with open_providers(tmp_path, sqlite_store_url, provider) as loop:
        app = loop.app
        assert await app.shutdown_watch.look(T0) == []
        assert (await app.overview.status())["pipelines"][0]["shutdown"]["days"] == 100
        assert not [
            a for a in (await app.store.activity.page()).items if a.action == "model shutdown"
        ]
        for day in (41, 41.2, 43, 50):
            await app.shutdown_watch.look(T0 + timedelta(days=day))
        [warned] = [
            a for a in (await app.store.activity.page()).items if a.action == "model shutdown"
        ]
        assert "in 59 days" in warned.reason
        assert command(app.pipelines.get("default"), ()) in warned.reason
        await app.concerns.refresh()
        text = (app.metrics.render())[0].decode()
        [line] = [x for x in text.splitlines() if x.startswith("tuneproof_model_shutdown_seconds{")]
        assert float(line.split()[-1]) == pytest.approx(100 * 86400)


async def test_successor_is_trained_on_in_an_extra_run_and_ever_after(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    provider = Provider(name="p", base_models=("base", "next"))
    provider.shutdowns["base"] = T0 + timedelta(days=20)
    follows = ({"make": "train", "model": "next"},)
    changes = {"successors": follows, "schedule_driver": "internal"}
    async with open_providers(tmp_path, sqlite_store_url, provider, changes=changes) as loop:
        [run_id] = await loop.app.shutdown_watch.look(T0)
        ended = await loop.end(run_id)
        assert ended.config["base_model"] == "next"
        assert [v.base_model for v in await loop.app.store.versions.list()] == ["next"]
        assert await loop.app.shutdown_watch.look(T0 + timedelta(days=8)) == []
        later = await loop.turn(last_stage="gate")
        assert later.config["base_model"] == "next"
        deeds = [a.action for a in (await loop.app.store.activity.page()).items]
        assert deeds.count("successor run") == 1


async def test_extra_run_waits_for_the_one_under_way(tmp_path: Path, sqlite_store_url: str) -> None:
    provider = Provider(name="p", base_models=("base", "next"))
    provider.shutdowns["base"] = T0 + timedelta(days=20)
    follows = ({"make": "train", "model": "next"},)
    changes = {"successors": follows, "schedule_driver": "internal"}
    async with open_providers(tmp_path, sqlite_store_url, provider, changes=changes) as loop:
        under_way = await loop.app.runs.start(last_stage="gate")
        assert await loop.app.shutdown_watch.look(T0) == []
        await loop.end(under_way.id)
        assert len(await loop.app.shutdown_watch.look(T0 + timedelta(hours=1))) == 1


# --- webhooks -----------------------------------------------------------------------------------

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes!!!!").decode()


def signed(event: Mapping[str, Any], *, secret: str = SECRET, age_s: int = 0) -> tuple[bytes, Any]:
    body = json.dumps(event).encode()
    at = str(int(time.time()) - age_s)
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"wh_1.{at}.".encode() + body, hashlib.sha256).digest()
    headers = {
        "webhook-id": "wh_1",
        "webhook-timestamp": at,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
    return body, headers


def ended(job_id: str) -> dict[str, Any]:
    return {
        "id": "evt_1",
        "object": "event",
        "type": "fine_tuning.job.succeeded",
        "created_at": 1,
        "data": {"id": job_id},
    }


async def test_webhook_wakes_the_run_that_waits_for_its_job(
    tmp_path: Path, database_url: str
) -> None:
    provider = Provider(name="p", polls=10**9)
    more = {"webhook_secret": SECRET}
    changes = {"poll_seconds": 20_000_000, "timeout_seconds": 30_000_000}
    async with open_providers(tmp_path, database_url, provider, changes=changes, more=more) as loop:
        frozen = _Frozen()
        loop.app.clock.participants.append(frozen)  # type: ignore[attr-defined]
        run = await loop.app.runs.start(last_stage="gate")
        await asyncio.wait_for(frozen.reached.wait(), 60)
        [version] = await loop.app.store.versions.list()
        polled, provider._polls = provider.calls["job"], 0
        woken = await loop.app.runs.webhook(*signed(ended(version.training_job_id or "")))
        assert woken == run.id
        assert (await loop.end(run.id)).status is RunStatus.SUCCESS
        assert provider.calls["job"] == polled + 1


class _Frozen:
    """Time that stops before a poll that is days away: only a signal can wake the run."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()

    async def advance(self, since: Any, until: Any) -> None:
        if until > T0 + timedelta(days=1):
            self.reached.set()
            await asyncio.Event().wait()


async def test_webhook_is_believed_only_with_its_signature(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    provider = Provider(name="p")
    async with open_providers(
        tmp_path, sqlite_store_url, provider, more={"webhook_secret": SECRET}
    ) as loop:
        other = "whsec_" + base64.b64encode(b"another secret of 32 bytes......").decode()
        for body, headers in (
            signed(ended("ftjob-1"), secret=other),
            signed(ended("ftjob-1"), age_s=3600),
            (b"{}", {}),
        ):
            with pytest.raises(DeniedError, match="signature"):
                await loop.app.runs.webhook(body, headers)
        assert await loop.app.runs.webhook(*signed(ended("ftjob-unknown"))) is None
        assert await loop.app.runs.webhook(*signed({**ended("x"), "type": "batch.done"})) is None
    async with open_providers(tmp_path, sqlite_store_url, provider) as loop:
        with pytest.raises(ConfigError, match="No provider has a webhook secret"):
            await loop.app.runs.webhook(*signed(ended("ftjob-1")))


async def test_suggested_trials_stay_within_the_budget_whatever_is_suggested(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    pytest.importorskip("optuna")
    provider = Provider(name="p", score=by_epochs)
    changes = {
        "search": {"n_epochs": (1, 12)},
        "search_trials": 6,
        "search_method": "optuna",
    }
    async with open_providers(
        tmp_path, sqlite_store_url, provider, changes=changes, more=PRICED
    ) as loop:
        plain = replace(loop.app.pipelines.get("default"), search=None, n_epochs=12)
        dearest = (await loop.turn(pipeline=plain, last_stage="gate")).result["cost"]
        limit = 2.5 * dearest["estimated_usd"]
        config = replace(loop.app.pipelines.get("default"), max_cost_usd=limit)
        run = await loop.turn(pipeline=config, last_stage="gate")
        assert run.status is RunStatus.SUCCESS, run.reason
        assert len(run.stages["train"]["detail"]["trials"]) == 2
        assert run.result["cost"]["estimated_usd"] <= limit
