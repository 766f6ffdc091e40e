"""Requests through gateways and client while everything behind them is killed, stalled, cut and
slowed in turn: none fails for our sake, no event is lost or counted twice.

    python -m tests.chaos --seconds 600 --seed 7      # make chaos

The real service with two gateway processes (PostgreSQL, Redis, MLflow, a provider that answers
at once), an application that asks the gateways and one that asks the client in its own process.
`faults` are what is done to them, `load` is who asks, `run` puts them together and recounts.
"""
