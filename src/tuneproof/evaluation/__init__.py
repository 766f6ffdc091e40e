"""Judging texts: offline before any user sees a version, and online while a test runs.

`gate` checks a trained version on held-out examples; `scorers` is what a scorer is and the texts
that are scored online, `judge` a scorer that asks a model. None of them knows a database.
"""

from tuneproof.evaluation.gate import Gate, GateReport, Sample
from tuneproof.evaluation.judge import Judge, read_score
from tuneproof.evaluation.scorers import Messages, Scored, Scorer, Text, ask, sampled

__all__ = [
    "Gate",
    "GateReport",
    "Judge",
    "Messages",
    "Sample",
    "Scored",
    "Scorer",
    "Text",
    "ask",
    "read_score",
    "sampled",
]
