"""The names of a run's durable steps: `stage.verb`, each written once.

**A promise.** What a run has recorded is found again by these names, in this order, also by a
later version. A name never changes and is never given to something else; a step that is added,
taken away or moved is so by `DBOS.patch_async` only.
"""

from __future__ import annotations

from enum import StrEnum


class StepName(StrEnum):
    """Each step and transaction of the durable functions, in the order in which a run meets them.

    A *transaction* writes our own tables and is recorded in the same commit. A *step* is at least
    once: the comment says by what it finds its effect again.
    """

    COLLECT_BEGIN = "collect.begin"  # transaction
    COLLECT_BUILD = "collect.build"  # DIR/datasets/HASH and its copy on the shelf: by that hash
    COLLECT_END = "collect.end"  # transaction

    PLAN_MAKE = "plan.make"  # none: it reads posts
    PLAN_END = "plan.end"  # transaction

    TRAIN_BEGIN = "train.begin"  # transaction
    TRAIN_CONFIGURE = "train.configure"  # none: it reads the settings
    TRAIN_RESOLVE = "train.resolve"  # none: it asks which base model is meant
    TRAIN_CHECK = "train.check"  # none: it asks the provider, and counts
    TRAIN_DECLARE = "train.declare"  # transaction
    TRAIN_FIND = "train.find"  # none: it looks for an earlier attempt's job
    TRAIN_SUGGEST = "train.suggest"  # none: it computes the next trial
    TRAIN_START = "train.start"  # file: by its content's hash; job: by metadata.tuneproof_run
    TRAIN_RECORD = "train.record"  # transaction
    TRAIN_POLL = "train.poll"  # none: it reads
    TRAIN_GIVE_UP = "train.give_up"  # a job that took too long is cancelled: idempotent
    TRAIN_CANCEL = "train.cancel"  # the job of an aborted run is cancelled: idempotent
    TRAIN_SCORE = "train.score"  # none: it asks the model
    TRAIN_RECORD_TRIAL = "train.record_trial"  # transaction
    TRAIN_END = "train.end"  # transaction
    TRAIN_DECLARE_OTHERS = "train.declare_others"  # transaction
    TRAIN_OPTIMISE = "train.optimise"  # DIR/gepa/RUN-recipe-N goes on; budget: the store
    TRAIN_TAKE = "train.take"  # transaction: candidates that are not trained

    GATE_BEGIN = "gate.begin"  # transaction
    GATE_CHECK = "gate.check"  # none: it asks the models, and deploys where it must: idempotent
    GATE_IN_USE = "gate.in_use"  # none: it reads; of runs with recipes alone
    GATE_END = "gate.end"  # transaction

    EXPERIMENT_BEGIN = "experiment.begin"  # transaction
    EXPERIMENT_SUPERSEDE = "experiment.supersede"  # transaction
    EXPERIMENT_WAKE = "experiment.wake"  # a signal: who is woken twice looks twice
    EXPERIMENT_DECLARE = "experiment.declare"  # transaction: tests, phase, routing
    EXPERIMENT_ROUTE = "experiment.route"  # targets: same routing, same state
    EXPERIMENT_READ = "experiment.read"  # none: it reads
    EXPERIMENT_LOOK = "experiment.look"  # transaction
    EXPERIMENT_END = "experiment.end"  # transaction

    ROLLOUT_BEGIN = "rollout.begin"  # transaction
    ROLLOUT_CHECK = "rollout.check"  # none: it asks the models
    ROLLOUT_DECLARE = "rollout.declare"  # transaction: rollout, first step, routing
    ROLLOUT_ROUTE = "rollout.route"  # targets: same routing, same state
    ROLLOUT_READ = "rollout.read"  # none: it reads
    ROLLOUT_LOOK = "rollout.look"  # transaction: step, history line, routing
    ROLLOUT_END = "rollout.end"  # transaction

    RUN_CLEAN = "run.clean"  # temporary files: gone is gone
    RUN_END = "run.end"  # transaction
    RUN_ROUTE = "run.route"  # targets: same routing, same state

    COLLECT_NOTE = "collect.note"  # transaction: why a stage waits, or what it could not do
    TRAIN_NOTE = "train.note"  # transaction
    GATE_NOTE = "gate.note"  # transaction
    EXPERIMENT_NOTE = "experiment.note"  # transaction
    ROLLOUT_NOTE = "rollout.note"  # transaction
