"""Answers in this process: base models with all their adapters in memory."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tuneproof_trainer.engines.lora.adapters import adapter_base
from tuneproof_trainer.engines.lora.batching import Batcher
from tuneproof_trainer.engines.lora.calling import calling
from tuneproof_trainer.engines.lora.conversations import IGNORED, Conversations
from tuneproof_trainer.engines.lora.loading import limit_of, load_conversations, load_model
from tuneproof_trainer.engines.lora.options import Base, LoraOptions
from tuneproof_trainer.engines.lora.sampling import Draw
from tuneproof_trainer.engines.protocol import (
    Embedded,
    EngineError,
    Generation,
    Message,
    Token,
    TokenScore,
)

__all__ = ["LocalAnswers"]

_KEPT_ADAPTERS = 16


class _Network:
    """One base model and the adapters that hang on it."""

    def __init__(self, base: Base, options: LoraOptions) -> None:
        self.conversations: Conversations = load_conversations(base)
        self._model = load_model(base, options).eval()
        self._adapted: Any = None
        self._adapters: OrderedDict[str, str] = OrderedDict()
        self._loads = 0
        tokenizer = self.conversations.tokenizer
        self.batcher = Batcher(self._using, tokenizer.pad_token_id, limit_of(self._model))

    def has(self, model: str) -> bool:
        return model in self._adapters

    def add(self, model: str, path: Path) -> None:
        self.batcher.call(lambda: self._add(model, path))

    def remove(self, model: str) -> None:
        self.batcher.call(lambda: self._remove(model))

    def _add(self, model: str, path: Path) -> None:
        from peft import PeftModel

        if model in self._adapters:
            return
        self._loads += 1
        name = f"adapter_{self._loads}"  # a model's own name may hold dots, which PEFT refuses
        if self._adapted is None:
            self._adapted = PeftModel.from_pretrained(self._model, str(path), adapter_name=name)
        else:
            self._adapted.load_adapter(str(path), adapter_name=name)
        self._adapted.eval()
        self._adapters[model] = name
        while len(self._adapters) > _KEPT_ADAPTERS:
            self._remove(next(iter(self._adapters)))

    def _remove(self, model: str) -> None:
        name = self._adapters.pop(model, None)
        if name is not None and self._adapters:
            self._adapted.delete_adapter(name)
        elif name is not None:
            self._model = self._adapted.unload()
            self._adapted = None

    @contextlib.contextmanager
    def _using(self, model: str) -> Iterator[Any]:
        if not model:
            with self._adapted.disable_adapter() if self._adapted else contextlib.nullcontext():
                yield self._adapted or self._model
            return
        name = self._adapters.get(model)
        if name is None:
            raise EngineError("model_not_found", f"The model `{model}` was deleted.", "model")
        self._adapters.move_to_end(model)
        self._adapted.set_adapter(name)
        yield self._adapted


class LocalAnswers:
    """Generates and scores with Transformers; an adapter is ready as soon as it is loaded."""

    def __init__(self, options: LoraOptions) -> None:
        self._options = options
        self._networks: dict[str, _Network] = {}
        self._bases: dict[str, str] = {}
        self._paths: dict[str, Path] = {}
        self._lock = threading.Lock()

    def load(self, model: str, path: Path | None) -> None:
        """Read a base model, or an adapter and the base that it needs."""
        base = model if path is None else adapter_base(path)
        with self._lock:
            network = self._networks.get(base)
            if network is None:
                network = self._networks[base] = _Network(self._options.base(base), self._options)
            if path is not None:
                network.add(model, path)
                self._paths[model] = path
            self._bases[model] = base

    def unload(self, model: str) -> None:
        """Forget a fine-tune."""
        with self._lock:
            base = self._bases.pop(model, None)
            self._paths.pop(model, None)
            if base is not None:
                self._networks[base].remove(model)

    def loaded(self, model: str) -> bool:
        """Whether it can answer at once."""
        base = self._bases.get(model)
        return base == model or (base is not None and self._networks[base].has(model))

    def generate(self, model: str, messages: Sequence[Message], how: Generation) -> Iterator[Token]:
        """The tokens of one answer."""
        network, adapter = self._network_of(model)
        talk = network.conversations
        draw, prompt = Draw(talk.tokenizer, talk.stop_ids, how), talk.prompt(messages, how.tools)
        tokens = network.batcher.answer(adapter, prompt, draw)
        return calling(talk, prompt, draw, tokens, how.tools) if how.tools else tokens

    def ensure_calls(self, model: str) -> None:
        """Return where the model's calls can be told from its text; raises EngineError."""
        network, _ = self._network_of(model)
        network.conversations.ensure_calls()

    def score(self, model: str, messages: Sequence[Message]) -> Sequence[TokenScore]:
        """Each token of the conversation; the last answer's with probabilities."""
        network, adapter = self._network_of(model)
        encoded = network.conversations.scored(messages)
        scores = iter(network.batcher.score(adapter, encoded) if encoded.learned else [])
        pieces = network.conversations.pieces(encoded.ids)
        found = []
        for number, label, text in zip(encoded.ids, encoded.labels, pieces, strict=True):
            logprob, rank = (None, None) if label == IGNORED else next(scores)
            found.append(TokenScore(number, text, logprob, rank))
        return found

    def embed(self, model: str, texts: Sequence[str]) -> Embedded:
        """The texts as vectors: what the model makes of their tokens, in the mean.

        Raises EngineError `context_length_exceeded` for a text that is too long.
        """
        network, adapter = self._network_of(model)
        rows = [network.conversations.ids(text) for text in texts]
        vectors = network.batcher.embed(adapter, rows)
        return Embedded(vectors, sum(map(len, rows)))

    def _network_of(self, model: str) -> tuple[_Network, str]:
        path = self._paths.get(model)
        if path is not None and not self.loaded(model):
            self.load(model, path)  # it had to make room for others
        base = self._bases.get(model)
        if base is None:
            raise EngineError("model_not_found", f"The model `{model}` was deleted.", "model")
        return self._networks[base], "" if base == model else model

    def close(self) -> None:
        """Stop the threads."""
        for network in self._networks.values():
            network.batcher.close()
