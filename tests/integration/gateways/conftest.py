"""One service with gateways for the tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.chat import Chat, chat_server
from tests.gateways import Place, placed, settings


@pytest.fixture(scope="package")
def provider() -> Iterator[Chat]:
    with chat_server() as chat:
        yield chat


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, provider: Chat) -> Iterator[Place]:
    with placed(tmp_path_factory.mktemp("place"), settings(provider.url)) as made:
        made.serve()
        yield made
