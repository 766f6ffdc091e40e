"""What TuneProof remembers: every SQL statement of the project is here.

`engine` differs by database, `tables` and `migrations` say what there is, one file stands for
each noun, `store` holds them together; events go through `events` into `ingest_sqlite` or
`ingest_postgres`, and are read back as sums by `rollups`.
"""

from tuneproof.store.activity import Activity
from tuneproof.store.alerts import KeptAlert
from tuneproof.store.comments import HeardComment
from tuneproof.store.connections import ServerConnections, server_connections
from tuneproof.store.database import LISTENER_CONNECTIONS
from tuneproof.store.deployments import HistoryEntry
from tuneproof.store.engine import database_url, make_engine, mask, refuse_absent
from tuneproof.store.events import RecentRequest
from tuneproof.store.experiments import Phase, look_document, look_of_document
from tuneproof.store.idempotency import Claim, Idempotency, KeptAnswer
from tuneproof.store.ids import uuid7
from tuneproof.store.migrate import HEAD as SCHEMA
from tuneproof.store.paging import Page
from tuneproof.store.prompts import KeptPrompt
from tuneproof.store.rollups import ArmStratum
from tuneproof.store.runs import Run, RunStatus
from tuneproof.store.scores import ScoringSpend, Tally, Waiting
from tuneproof.store.snapshots import SqliteViews, schema_of
from tuneproof.store.store import Store, open_store, unopened_store
from tuneproof.store.subjects import SubjectKind
from tuneproof.store.tables import metadata
from tuneproof.store.tokens import TokenInfo
from tuneproof.store.watches import WatchedSubject

__all__ = [
    "LISTENER_CONNECTIONS",
    "SCHEMA",
    "Activity",
    "ArmStratum",
    "Claim",
    "HeardComment",
    "HistoryEntry",
    "Idempotency",
    "KeptAlert",
    "KeptAnswer",
    "KeptPrompt",
    "Page",
    "Phase",
    "RecentRequest",
    "Run",
    "RunStatus",
    "ScoringSpend",
    "ServerConnections",
    "SqliteViews",
    "Store",
    "SubjectKind",
    "Tally",
    "TokenInfo",
    "Waiting",
    "WatchedSubject",
    "database_url",
    "look_document",
    "look_of_document",
    "make_engine",
    "mask",
    "metadata",
    "open_store",
    "refuse_absent",
    "schema_of",
    "server_connections",
    "unopened_store",
    "uuid7",
]
