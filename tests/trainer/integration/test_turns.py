"""Answers beside each other: clients that leave, places that run out, a server that stops."""

from __future__ import annotations

import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from openai import InternalServerError
from tests.trainer.integration.conftest import BASE, client_of
from tests.trainer.integration.process import Process
from tests.trainer.integration.test_engines import Scripted, served
from tests.waiting import until

from tuneproof_trainer.embedded import EmbeddedTrainer
from tuneproof_trainer.engines.protocol import Generation, Message, Token

ASKED: dict[str, Any] = {
    "model": "scripted-1",
    "messages": [{"role": "user", "content": "x"}],
    "max_tokens": 4096,
}


class Talker(Scripted):
    """An engine that talks without end, a word every few milliseconds, until it is told to stop
    or nobody listens."""

    def __init__(self, *, quick: bool) -> None:
        super().__init__()
        self.quick = quick
        self.talking = self.most_talking = self.said = self.loads = self.begun = 0
        self.enough = threading.Event()
        self.ready = threading.Event()
        self.ready.set()
        self._loaded = False
        self._count = threading.Lock()

    def load(self, model: str, path: Path | None) -> None:
        self.loads += 1
        self.ready.wait(30)
        self._loaded = True

    def loaded(self, model: str) -> bool:
        return self._loaded

    def generate(self, model: str, messages: Sequence[Message], how: Generation) -> Iterator[Token]:
        with self._count:
            self.begun += 1
            self.talking += 1
            self.most_talking = max(self.most_talking, self.talking)
        try:
            while not self.enough.is_set():
                self.enough.wait(0.0002 if self.quick else 0.002)
                self.said += 1
                yield Token("word ")
            yield Token("", finish="stop")
        finally:
            with self._count:
                self.talking -= 1


def leave(trainer: EmbeddedTrainer, after: Callable[[], bool], **how: Any) -> None:
    """Ask, and hang up once `after` holds."""
    url = urlsplit(trainer.base_url)
    body = json.dumps(ASKED | how).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((str(url.hostname), int(url.port or 0))) as line:
        line.sendall(head.encode() + body)
        until(after)


def _asked(trainer: EmbeddedTrainer) -> None:
    httpx2.post(f"{trainer.base_url}/chat/completions", json=ASKED, timeout=30)


def places(trainer: EmbeddedTrainer) -> int:
    """How many answers could be begun now."""
    assert trainer.app is not None
    return trainer.app.turns.free


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("quick", [False, True])
def test_a_client_that_leaves_ends_its_answer(tmp_path: Path, quick: bool, stream: bool) -> None:
    engine = Talker(quick=quick)
    with served(tmp_path, engine) as trainer:
        leave(trainer, lambda: engine.said > 40, stream=stream, n=3)
        until(lambda: engine.talking == 0)
        begun = engine.begun
        engine.enough.set()
        _asked(trainer)
        assert engine.begun == begun + 1, "nothing of the old answer stood in line before this one"


def test_those_who_left_the_queue_free_it_for_others(tmp_path: Path) -> None:
    engine = Talker(quick=False)
    with served(tmp_path, engine, answers_at_once=1, answers_waiting=1) as trainer:
        holding = threading.Thread(target=_asked, args=(trainer,))
        holding.start()
        until(lambda: engine.talking == 1)
        for _ in range(3):
            assert trainer.app is not None
            turns = trainer.app.turns
            leave(trainer, lambda turns=turns: turns.waiting == 1)  # type: ignore[misc]
            until(lambda turns=turns: turns.waiting == 0)  # type: ignore[misc]
        engine.enough.set()
        holding.join(20)
    assert engine.most_talking == 1


def test_beyond_the_queue_answers_are_refused_and_told_when_to_come_back(tmp_path: Path) -> None:
    engine = Talker(quick=False)
    with served(tmp_path, engine, answers_at_once=2, answers_waiting=3) as trainer:
        lines = [threading.Thread(target=_asked, args=(trainer,)) for _ in range(5)]
        for line in lines:
            line.start()
        assert trainer.app is not None
        turns = trainer.app.turns
        until(lambda: engine.talking == 2 and turns.waiting == 3)
        client = client_of(trainer)
        with pytest.raises(InternalServerError) as refused:
            client.chat.completions.create(**ASKED)
        assert (refused.value.status_code, refused.value.code) == (503, "engine_overloaded")
        assert refused.value.response.headers["retry-after"] == "1"
        assert client.models.list().data, "other routes answer while the engine is busy"
        engine.enough.set()
        for line in lines:
            line.join(20)
        assert client.chat.completions.create(**ASKED).choices[0].finish_reason == "stop"
    assert engine.most_talking == 2


def test_a_model_that_is_being_loaded_is_loaded_once_though_its_first_client_leaves(
    tmp_path: Path,
) -> None:
    engine = Talker(quick=False)
    engine.ready.clear()
    engine.enough.set()
    with served(tmp_path, engine) as trainer:
        free = places(trainer)
        leave(trainer, lambda: engine.loads == 1)
        until(lambda: places(trainer) == free)
        second = threading.Thread(target=_asked, args=(trainer,))
        second.start()
        until(lambda: places(trainer) == free - 1)
        engine.ready.set()
        second.join(20)
        answer = client_of(trainer).chat.completions.create(**ASKED)
        assert answer.choices[0].finish_reason == "stop"
    assert engine.loads == 1


def test_a_stop_lets_answers_that_have_begun_end(tmp_path: Path) -> None:
    process = Process(tmp_path / "trainer")
    process.start()
    asked = {
        "model": BASE,
        "messages": [{"role": "user", "content": "Slow bread\n\nWrite a detailed post:"}],
        "n": 128,
        "stream": True,
    }
    stopping = threading.Thread(target=process.stop)
    url = f"http://127.0.0.1:{process.port}/v1/chat/completions"
    with httpx2.stream("POST", url, json=asked, timeout=30) as answer:
        events = (line for line in answer.iter_lines() if line)
        first = list(itertools.islice(events, 5))
        stopping.start()
        rest = list(events)
    stopping.join(30)
    assert rest[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in [*first, *rest[:-1]]]
    finishes = [c["choices"][0]["finish_reason"] for c in chunks]
    assert sum(finish is not None for finish in finishes) == 128
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"http://127.0.0.1:{process.port}/health")
