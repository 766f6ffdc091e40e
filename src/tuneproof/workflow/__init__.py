"""Durable runs: steps that are recorded, waits that survive, signals that wake.

The one package that knows the engine (DBOS Transact). A durable function is module-level and
async; its effects go through `step` and `transaction`, its pauses through `wait`. After a kill
it is called again, and every step that had ended answers what it answered then.

`clocks` is time, `codec` what crosses a step, `signals` what wakes a run, `ownership` who may
go on with it, `engine` the rest.
"""

from tuneproof.workflow.clocks import Clock, SystemClock
from tuneproof.workflow.codec import RecordSerializer, Upgrade, register, register_as, registered
from tuneproof.workflow.engine import (
    APPLICATION_VERSION,
    ENGINE_CONNECTIONS,
    TAKEOVER_S,
    Engine,
    EngineError,
    Moment,
    StepHook,
    Tx,
    durable,
    engine,
    now,
    resources,
    step,
    transaction,
    wait,
)
from tuneproof.workflow.ownership import LOCK_SPACE, DirectoryLock
from tuneproof.workflow.signals import CONTROL, TICK, RunStatus, Signal

__all__ = [
    "APPLICATION_VERSION",
    "CONTROL",
    "ENGINE_CONNECTIONS",
    "LOCK_SPACE",
    "TAKEOVER_S",
    "TICK",
    "Clock",
    "DirectoryLock",
    "Engine",
    "EngineError",
    "Moment",
    "RecordSerializer",
    "RunStatus",
    "Signal",
    "StepHook",
    "SystemClock",
    "Tx",
    "Upgrade",
    "durable",
    "engine",
    "now",
    "register",
    "register_as",
    "registered",
    "resources",
    "step",
    "transaction",
    "wait",
]
