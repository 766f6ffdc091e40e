"""`/`: what is served, and what runs, on one plain page with links to the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from tuneproof.server.auth import Reader
from tuneproof.server.page import HEADERS, Link, document, instant, percent, table
from tuneproof.server.problems import RESPONSES
from tuneproof.server.state import TheApp

if TYPE_CHECKING:
    from tuneproof.app import App
    from tuneproof.experiments import ABTest
    from tuneproof.resilience import TaskHealth
    from tuneproof.rollout import Deployment, Routing
    from tuneproof.store import Run

Cells = tuple[str, ...]

NEWEST = 10
"""How many of each kind are shown."""


def router() -> APIRouter:
    """The page at the root."""
    routes = APIRouter(tags=["dashboard"], responses=RESPONSES)

    @routes.get("/", response_class=HTMLResponse, summary="What is served and what runs, as a page")
    async def home(app: TheApp, _: Reader) -> HTMLResponse:
        body = _body(
            app.routing.board.snapshot.routing,
            (await app.store.runs.page(limit=NEWEST)).items,
            (await app.store.experiments.page(limit=NEWEST)).items,
            (await app.store.deployments.page(limit=NEWEST)).items,
            app.supervisor.tasks,
            await _shutdowns(app),
        )
        page = document("Overview", "TuneProof", body, now=app.clock.now(), changes=True)
        return HTMLResponse(page, headers=HEADERS)

    return routes


def _body(
    routing: Iterable[Routing],
    runs: Sequence[Run],
    tests: Sequence[ABTest],
    rollouts: Sequence[Deployment],
    tasks: Sequence[TaskHealth],
    shutdowns: Sequence[Cells],
) -> str:
    near = ["pipeline", "model", "shuts down", "what to do"]
    sections = {
        **({"Shutdowns": table(near, shutdowns)} if shutdowns else {}),
        "Models in use": table(
            ["task", "model", "candidate", "its share"], [_routing_cells(one) for one in routing]
        ),
        "Runs": table(
            ["run", "status", "began", "reason"],
            [(r.id, r.status.value, instant(r.created_at), r.reason or _at(r)) for r in runs],
        ),
        "Experiments": table(
            ["experiment", "status", "began", "verdict"],
            [
                (
                    Link(t.id, f"/evaluation/report/{t.id}"),
                    t.status,
                    instant(t.start_at),
                    " ".join(filter(None, (t.verdict and f"{t.verdict}:", t.reason))),
                )
                for t in tests
            ],
        ),
        "Rollouts": table(
            ["rollout", "state", "began", "share", "candidate", "reason"],
            [
                (
                    Link(d.id, f"/dashboard/deployment/{d.id}"),
                    d.state,
                    instant(d.created_at),
                    percent(d.share),
                    str(d.candidate),
                    d.cause or "",
                )
                for d in rollouts
            ],
        ),
        "Background tasks": table(
            ["task", "state", "last success", "restarts", "last error"],
            [
                (
                    task.name,
                    str(task.state).replace("_", " "),
                    "" if task.last_success is None else instant(task.last_success),
                    str(task.restarts),
                    task.last_error,
                )
                for task in tasks
            ],
        ),
    }
    return "\n".join(f"<h2>{name}</h2>{shown}" for name, shown in sections.items())


async def _shutdowns(app: App) -> list[Cells]:
    """The models that go, as last heard: when, and what to do until then."""
    now = app.clock.now()
    known = [(config, await app.shutdowns.known(config)) for config in app.pipelines.running]
    return [
        (
            config.name,
            found.model,
            f"{found.at:%Y-%m-%d}, in {found.left(now).days} days",
            found.mend(config, now),
        )
        for config, found in known
        if found is not None
    ]


def _at(run: Run) -> str:
    """What a run is at, and how far."""
    return ": ".join(filter(None, (run.current_stage, run.note or run.progress)))


def _routing_cells(routing: Routing) -> Cells:
    names = ", ".join(str(model) for model in routing.candidates)
    share = percent(routing.candidates_share or 0.0) if names else ""
    return routing.task, str(routing.baseline), names, share
