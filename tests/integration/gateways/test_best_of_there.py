"""Gateway processes pick among answers by the model that their service keeps, also without it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import sqlite3
from contextlib import closing

from tests.chat import Chat
from tests.gateways import Place, placed, settings
from tests.liked import disliked, learnt, liked
from tests.waiting import until

from tuneproof.app import App
from tuneproof.settings import Settings

DRAW = random.Random(3)
GOOD, BAD = liked(DRAW), disliked(DRAW)


def keep_model(place: Place) -> None:
    """Have the database hold a model, as a run leaves it."""

    async def keep() -> None:
        found = Settings.load(
            dir=place.folder / "data", file=place.folder / "tuneproof.toml", env={}
        )
        async with App.open(found, engine=False) as app:
            await app.best_of.keep("hook", learnt(), "run-1")

    asyncio.run(keep())


def picks(place: Place, unit: str) -> bool:
    """Whether the process that is reached picks; then it must pick well."""
    answer = place.ask(unit)
    assert answer.status_code == 200, answer.text
    if "x-tuneproof-best-of" not in answer.headers:
        return False
    assert answer.json()["choices"][0]["message"]["content"] == GOOD
    return True


def tokens(place: Place) -> list[int]:
    """What the service recorded of answers that were picked."""
    database = place.folder / "data" / "tuneproof.db"
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
        rows = opened.execute("SELECT tokens, attributes FROM exposures").fetchall()
    return [row[0] for row in rows if row[1] and json.loads(row[1]) == {"best_of": "3"}]


def test_they_pick_with_their_service_without_it_and_after_it(provider: Chat, tmp_path):
    turn = itertools.cycle([BAD, GOOD, BAD])
    said = settings(provider.url).replace("[tasks.hook]", "[tasks.hook]\nbest_of = 3")
    with placed(tmp_path / "place", said) as place:
        provider.answer("base", lambda _: next(turn))
        try:
            keep_model(place)
            place.serve()
            until(lambda: all(picks(place, f"u{n}") for n in range(10)))
            killed = place.service_pid()
            os.kill(killed, signal.SIGKILL)
            assert all(picks(place, f"without-{n}") for n in range(10))
            place.back()
            until(lambda: place.service_pid() != killed)
            assert all(picks(place, f"again-{n}") for n in range(10))
            until(lambda: len(tokens(place)) >= 30)
            assert set(tokens(place)) == {30}
        finally:
            provider.answers.clear()
