"""Judging texts: offline before any user sees a version, and online while a test runs.

`gate` checks a trained version on held-out examples; `unsafe` is what nobody should be shown, and
`words` the list of words that it asks. `published` reads what came of posts, `outcomes` learns from
them which of two answers does better (`texts`: what it sees of one, `vectors`: a language model's
part in that; `packing`: the model as bytes), and `comparing` asks that of candidate and baseline;
`form` whether it still writes as the baseline does;
`kept` keeps what they answered, for a check that is broken off. `scorers` is what a scorer is and
the texts that are scored online, `judge` a scorer that asks a model. `optimising` looks for a
better prompt: by which reward (`rewards`), what may be proposed (`proposals`), what it may cost
(`spending`). None of them knows a database.
"""

from tuneproof.evaluation.comparing import Asked, Prediction, predict
from tuneproof.evaluation.form import Form, FormFigure, form_of
from tuneproof.evaluation.gate import Gate, GateReport, HeldOut, Sample, examples_of, inputs_of
from tuneproof.evaluation.judge import Judge, read_score
from tuneproof.evaluation.kept import Kept, together
from tuneproof.evaluation.optimising import Case, Found, PromptSearch, ensure_gepa
from tuneproof.evaluation.outcomes import (
    OutcomeModel,
    OutcomeReport,
    Published,
    WinRate,
    fit_outcomes,
)
from tuneproof.evaluation.packing import packed, unpacked
from tuneproof.evaluation.prompted import Prompted
from tuneproof.evaluation.proposals import Rules
from tuneproof.evaluation.published import Answered, published_answers, published_posts
from tuneproof.evaluation.rewards import Correlation, correlation
from tuneproof.evaluation.scorers import (
    Messages,
    Scored,
    Scorer,
    Text,
    ask,
    failed_usd,
    most_usd,
    sampled,
)
from tuneproof.evaluation.spending import Paid, Purse, paid
from tuneproof.evaluation.unsafe import Endpoint, Moderator
from tuneproof.evaluation.vectors import Embedder
from tuneproof.evaluation.words import listed

__all__ = [
    "Answered",
    "Asked",
    "Case",
    "Correlation",
    "Embedder",
    "Endpoint",
    "Form",
    "FormFigure",
    "Found",
    "Gate",
    "GateReport",
    "HeldOut",
    "Judge",
    "Kept",
    "Messages",
    "Moderator",
    "OutcomeModel",
    "OutcomeReport",
    "Paid",
    "Prediction",
    "PromptSearch",
    "Prompted",
    "Published",
    "Purse",
    "Rules",
    "Sample",
    "Scored",
    "Scorer",
    "Text",
    "WinRate",
    "ask",
    "correlation",
    "ensure_gepa",
    "examples_of",
    "failed_usd",
    "fit_outcomes",
    "form_of",
    "inputs_of",
    "listed",
    "most_usd",
    "packed",
    "paid",
    "predict",
    "published_answers",
    "published_posts",
    "read_score",
    "sampled",
    "together",
    "unpacked",
]
