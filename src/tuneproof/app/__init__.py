"""App: the use cases, and the only place that builds adapters.

`async with App.open(settings) as app` starts everything: database, cache, trainer, engine,
schedule, tracking. `app` opens and closes, in one list; each other module is a service, which
gets what it needs by its constructor. What can be asked of them is asked by the command line, the
HTTP service and Python alike: `app.runs.start()`, `app.store.experiments.get(id)`.
"""

from tuneproof.app.app import App, AppAdapters
from tuneproof.app.best_of import BestOf, Picker, read_picker
from tuneproof.app.board import Board, RoutingSnapshot
from tuneproof.app.doctor import Doctor, Finding
from tuneproof.app.endpoints import (
    ChatEndpoint,
    ProviderEndpoint,
    answer_cost_usd,
    breaker_of,
    endpoint_at,
)
from tuneproof.app.events import EventService
from tuneproof.app.experiments import ExperimentService, Sibling
from tuneproof.app.health import HealthService, Ready
from tuneproof.app.live import Live, LiveEvent
from tuneproof.app.migrating import CHEAPER, MARGIN, MigrationPlan
from tuneproof.app.receipts import ReceiptKey
from tuneproof.app.rollouts import RolloutService
from tuneproof.app.routing import RoutingService
from tuneproof.app.runs import AbortedRun, LogEntry, RunService
from tuneproof.app.schedule import Schedule, newest_tick, next_tick
from tuneproof.app.scoring import Scoring, ScoringService

__all__ = [
    "CHEAPER",
    "MARGIN",
    "AbortedRun",
    "App",
    "AppAdapters",
    "BestOf",
    "Board",
    "ChatEndpoint",
    "Doctor",
    "EventService",
    "ExperimentService",
    "Finding",
    "HealthService",
    "Live",
    "LiveEvent",
    "LogEntry",
    "MigrationPlan",
    "Picker",
    "ProviderEndpoint",
    "Ready",
    "ReceiptKey",
    "RolloutService",
    "RoutingService",
    "RoutingSnapshot",
    "RunService",
    "Schedule",
    "Scoring",
    "ScoringService",
    "Sibling",
    "answer_cost_usd",
    "breaker_of",
    "endpoint_at",
    "newest_tick",
    "next_tick",
    "read_picker",
]
