"""Texts as vectors: what a model makes of their tokens, in the mean."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import BadRequestError, OpenAI
from tests.trainer.lora.tiny import make_model

from tuneproof_trainer.embedded import EmbeddedTrainer
from tuneproof_trainer.engines.lora.loading import load_conversations, load_model
from tuneproof_trainer.engines.lora.options import LoraOptions, named_bases
from tuneproof_trainer.settings import TrainerSettings

pytestmark = pytest.mark.lora
TEXTS = ["red", "green apple pear", "", "red apple", "pear " * 30, "green"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[OpenAI]:
    folder = tmp_path_factory.mktemp("trainer")
    settings = TrainerSettings(dir=folder, engine="lora", models=(f"tiny={model}",), device="cpu")
    with EmbeddedTrainer(settings) as trainer:
        yield OpenAI(base_url=trainer.base_url, api_key="any", max_retries=0)


def test_a_vector_is_the_mean_of_the_states_whatever_is_beside_it(
    client: OpenAI, model: Path
) -> None:
    import torch

    texts = [text for text in TEXTS if text]
    answer = client.embeddings.create(model="tiny", input=texts)
    [base] = named_bases([str(model)])
    talk = load_conversations(base)
    network = load_model(base, LoraOptions(bases=(base,), device="cpu")).eval()
    for text, found in zip(texts, answer.data, strict=True):
        ids = torch.tensor([talk.ids(text)])
        with torch.no_grad():
            states = network(ids, output_hidden_states=True).hidden_states[-1][0]
        mean = states.mean(0)
        assert found.embedding == pytest.approx((mean / mean.norm()).tolist(), abs=1e-4)
    assert answer.usage.prompt_tokens == sum(len(talk.ids(text)) for text in texts)
    alone = client.embeddings.create(model="tiny", input=texts[1])
    assert alone.data[0].embedding == pytest.approx(answer.data[1].embedding, abs=1e-4)


def test_a_text_that_is_too_long_is_refused(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.embeddings.create(model="tiny", input=["red", "pear " * 400])
    assert refused.value.code == "context_length_exceeded"
