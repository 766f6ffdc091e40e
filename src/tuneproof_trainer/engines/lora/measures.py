"""Loss and accuracy of a model on given conversations, exact over tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from tuneproof_trainer.engines.lora.conversations import IGNORED, Encoded

__all__ = ["answer_logits", "knows_nothing", "mean_states", "measure", "padded", "tally"]

_BATCH = 8
_LAYER = -1
"""Of which layer the states are."""
_KNOWS_NOTHING = 0.95
_SAMPLE = 8


def padded(rows: Sequence[Encoded], device: Any) -> dict[str, Any]:
    """The rows as tensors `input_ids`, `attention_mask` and `labels`, padded on the right."""
    import torch

    longest = max(len(row.ids) for row in rows)

    def filled(values: Sequence[Sequence[int]], padding: int) -> Any:
        full = [[*v, *[padding] * (longest - len(v))] for v in values]
        return torch.tensor(full, device=device)

    return {
        "input_ids": filled([row.ids for row in rows], 0),
        "attention_mask": filled([[1] * len(row.ids) for row in rows], 0),
        "labels": filled([row.labels for row in rows], IGNORED),
    }


def answer_logits(model: Any, rows: Sequence[Encoded]) -> Iterator[tuple[Any, Any]]:
    """For each row, log-probabilities of all tokens where one is learned, and the learned ones.

    Shapes (learned tokens, vocabulary) and (learned tokens,).
    """
    import torch

    batch = padded(rows, model.device)
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits
    for row_logits, row_labels in zip(logits[:, :-1], labels[:, 1:], strict=True):
        learned = row_labels != IGNORED
        yield row_logits[learned].float().log_softmax(-1), row_labels[learned]


def mean_states(model: Any, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    """For each row of tokens the mean of the last layer's states, of length 1."""
    import torch

    batch = padded([Encoded(list(ids), [IGNORED] * len(ids)) for ids in rows], model.device)
    batch.pop("labels")
    with torch.no_grad():
        answer = model(**batch, use_cache=False, output_hidden_states=True, logits_to_keep=1)
    states = answer.hidden_states[_LAYER].float()
    there = batch["attention_mask"].unsqueeze(-1)
    means = (states * there).sum(1) / there.sum(1)
    return torch.nn.functional.normalize(means, dim=-1).tolist()  # type: ignore[no-any-return]


def tally(model: Any, encoded: Sequence[Encoded]) -> tuple[float, int, int]:
    """(summed loss in nats, tokens that were the likeliest, all learned tokens)."""
    was_training = model.training
    model.eval()
    loss, right, count = 0.0, 0, 0
    ordered = sorted(encoded, key=lambda one: len(one.ids))
    for at in range(0, len(ordered), _BATCH):
        for logprobs, learned in answer_logits(model, ordered[at : at + _BATCH]):
            loss -= float(logprobs.gather(1, learned[:, None]).sum())
            right += int((logprobs.argmax(-1) == learned).sum())
            count += len(learned)
    model.train(was_training)
    return loss, right, count


def measure(model: Any, encoded: Sequence[Encoded]) -> tuple[float, float]:
    """(mean loss in nats per learned token, share of them that were the likeliest)."""
    loss, right, count = tally(model, encoded)
    return (loss / count, right / count) if count else (0.0, 0.0)


def knows_nothing(model: Any, sample: Sequence[Encoded]) -> bool:
    """Whether the model guesses no better than chance, because its weights are random."""
    loss, _ = measure(model, sample[:_SAMPLE])
    return loss >= _KNOWS_NOTHING * math.log(model.config.get_text_config().vocab_size)
