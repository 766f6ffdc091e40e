"""Runs the machine over many stories, each on a database of its own."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.machine.machine import Machine
from tests.machine.world import World
from tests.servers import PostgresServer

STEPS = 30
"""How long a story is."""


def assert_holds(
    new_world: Callable[[], World], *, stories: int, steps: int = STEPS, begin: int | None = None
) -> None:
    """Tell so many stories; what breaks a rule is shrunk to the shortest one that does.

    The same stories each time; others by each `begin`, which is told where one fails.
    """

    def machine() -> Machine:
        return Machine(new_world())

    told = settings(
        max_examples=stories,
        stateful_step_count=steps,
        derandomize=begin is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    try:
        run_state_machine_as_test(machine if begin is None else seed(begin)(machine), settings=told)
    except BaseException as error:
        if begin is not None:
            error.add_note(f"TUNEPROOF_MACHINE_SEED={begin} tells these stories again.")
        raise


def worlds_on_sqlite(folder: Path, template: Path) -> Callable[[], World]:
    """Worlds, each on a SQLite file of its own."""
    numbers = itertools.count()

    def new() -> World:
        directory = folder / str(next(numbers))
        directory.mkdir()
        shutil.copy(template, directory / "store.db")
        return World(directory, f"sqlite:///{directory / 'store.db'}")

    return new


def worlds_on_postgresql(
    folder: Path, server: PostgresServer, template: str
) -> Callable[[], World]:
    """Worlds, each on a PostgreSQL database of its own."""
    numbers = itertools.count()

    def new() -> World:
        directory = folder / str(next(numbers))
        directory.mkdir()
        return World(directory, server.create_database(template=template))

    return new
