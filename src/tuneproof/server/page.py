"""`/dashboard/deployment/{id}`: a rollout as one plain page, made here, with no script.

What pages have in common (style, headers, tables) is here, too.

Every text is escaped; the policy allows nothing but this page's own style sheet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response

from tuneproof.rollout import DeploymentState
from tuneproof.server.auth import Reader
from tuneproof.server.deployment import triggers
from tuneproof.server.models import utc
from tuneproof.server.problems import RESPONSES
from tuneproof.server.state import TheApp

if TYPE_CHECKING:
    from tuneproof.rollout import Deployment
    from tuneproof.store import HistoryEntry

POLICY = (
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

STYLE = """\
:root { color-scheme: light dark; --line: #d5dae1; --base: #7e8b99; --cand: #2440b5; }
@media (prefers-color-scheme: dark) {
  :root { --line: #2a313b; --base: #b3bbd0; --cand: #6c86f0; }
}
body { font: 14px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 22px; } h2 { font-size: 17px; }
code { font-family: ui-monospace, monospace; font-size: 13px; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: break-word; }
meter { width: 100%; height: 16px; }
.quiet { color: var(--base); }
"""


def router() -> APIRouter:
    """The page and its style sheet."""
    routes = APIRouter(prefix="/dashboard", tags=["dashboard"], responses=RESPONSES)

    @routes.get("/style.css", include_in_schema=False)
    async def style() -> Response:
        headers = {"Cache-Control": "max-age=300", "X-Content-Type-Options": "nosniff"}
        return Response(STYLE, media_type="text/css", headers=headers)

    @routes.get(
        "/deployment/{deployment_id}", response_class=HTMLResponse, summary="A rollout as a page"
    )
    async def page(app: TheApp, _: Reader, deployment_id: str) -> HTMLResponse:
        deployment = await app.store.deployments.get(deployment_id)
        history = await app.rollouts.history(deployment_id)
        config = app.settings.pipelines.get(deployment.pipeline)
        limits = [] if config is None else triggers(config)
        html = render(deployment, history, limits, now=app.clock.now())
        return HTMLResponse(html, headers=HEADERS)

    return routes


HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def render(
    deployment: Deployment,
    history: Iterable[HistoryEntry],
    limits: Iterable[str],
    *,
    now: datetime,
) -> str:
    """The page of a rollout as it stands at `now`."""
    body = f"""<p><meter min="0" max="1" value="{deployment.share:.4f}" \
aria-label="The candidate's share of traffic">{percent(deployment.share)}</meter></p>
{_facts(deployment, limits)}
{_evidence(deployment)}
<h2>History</h2>
{_history(history)}
{_ways(deployment)}"""
    title = verdict(deployment, now)
    return document(deployment.id, title, body, now=now, changes=not deployment.state.final)


def document(name: str, heading: str, body: str, *, now: datetime, changes: bool) -> str:
    """A whole page around `body`, which is HTML already; loaded anew where it `changes`."""
    refresh = '<meta http-equiv="refresh" content="10">' if changes else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">{refresh}
<title>{escape(name)} · TuneProof</title>
<link rel="stylesheet" href="/dashboard/style.css"></head>
<body><main>
<h1>{escape(heading)}</h1>
{body}
<p class="quiet">As of {instant(now)}.</p>
</main></body></html>
"""


def verdict(deployment: Deployment, now: datetime) -> str:
    """One sentence: what holds, what happens next, and when."""
    share = percent(deployment.share)
    state = deployment.state
    if state is DeploymentState.ROLLED_BACK:
        return f"Rolled back: {_sentence(deployment.cause or 'no cause was given')}"
    if state is DeploymentState.COMPLETE:
        return "Complete: the candidate is the model in use."
    if state is DeploymentState.FAILED:
        return f"Failed: {_sentence(deployment.cause or 'no cause was given')}"
    if state is DeploymentState.PAUSED:
        cause = _sentence(deployment.cause or "waits for a person")
        return f"Paused with the candidate at {share}: {cause}"
    when = "" if deployment.next_at is None else f" in {_span(deployment.next_at, now)}"
    if state is DeploymentState.HOLDING:
        held = percent(deployment.plan.holdback)
        return f"Candidate serves {share}; {held} are held back. Complete{when} if no harm shows."
    steps = deployment.plan.steps
    following = deployment.step + 1
    if following < len(steps):
        goes = f"Next: {percent(steps[following])}{when} if all guardrails hold."
    else:
        goes = f"The holdback begins{when} if all guardrails hold."
    return f"Candidate serves {share}. {goes}"


def _facts(deployment: Deployment, limits: Iterable[str]) -> str:
    rows = [
        ("State", deployment.state),
        ("Candidate", str(deployment.candidate)),
        ("Baseline", str(deployment.previous)),
        ("Tasks", ", ".join(deployment.tasks)),
        ("Strategy", deployment.plan.strategy),
        ("Steps", " → ".join(percent(share) for share in deployment.plan.steps)),
        ("Experiment", deployment.ab_test_id or "none"),
        ("Run", deployment.run_id or "none"),
        ("Rolls back at", ", ".join(limits)),
    ]
    return table(["", ""], rows)


def _evidence(deployment: Deployment) -> str:
    if not deployment.evidence:
        return ""
    rows = [(name, _figure(value)) for name, value in sorted(deployment.evidence.items())]
    return "<h2>Evidence</h2>" + table(["what", "value"], rows)


def _figure(value: Any) -> str:
    """A share as percent with its sign; a list as words."""
    if isinstance(value, float):
        return f"{100 * value:+.1f} %"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _sentence(text: str) -> str:
    return f"{text.rstrip('.')}."


def _history(history: Iterable[HistoryEntry]) -> str:
    rows = [(instant(x.at), x.kind, x.who, x.reason) for x in history]
    return table(["when", "what", "who", "why"], rows) if rows else "<p>Nothing yet.</p>"


def _ways(deployment: Deployment) -> str:
    if deployment.state.final:
        return ""
    task = deployment.tasks[0] if deployment.tasks else deployment.id
    command = f"tuneproof rollback {task} --reason TEXT"
    return f"<h2>Roll back</h2><p><code>{escape(command)}</code></p>"


@dataclass(frozen=True)
class Link:
    """A cell that leads somewhere."""

    text: str
    address: str


def table(head: list[str], rows: Iterable[tuple[Any, ...]]) -> str:
    """Rows of text and links under their heads; everything is escaped."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head) if any(head) else ""
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table>{f'<thead><tr>{top}</tr></thead>' if top else ''}<tbody>{body}</tbody></table>"


def _cell(cell: Any) -> str:
    if isinstance(cell, Link):
        return f'<a href="{escape(cell.address)}">{escape(cell.text)}</a>'
    return escape(str(cell))


def percent(share: float) -> str:
    """A share in percent."""
    return f"{share * 100:.2f}".rstrip("0").rstrip(".") + " %"


def instant(at: datetime) -> str:
    """An instant as people read it."""
    return f"{utc(at):%Y-%m-%d %H:%M:%S} UTC"


def _span(until: datetime, now: datetime) -> str:
    seconds = max(0, int((until - now).total_seconds()))
    if seconds >= 2 * 86_400:
        return f"{seconds // 86_400} days"
    if seconds >= 2 * 3_600:
        return f"{seconds // 3_600} h"
    return f"{max(1, seconds // 60)} min"
