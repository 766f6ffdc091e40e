"""A tiny language model with random weights, made in a second, and things for it to learn."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["WORDS", "answers", "backwards", "conversation", "lines", "make_model", "pairs"]

WORDS = {
    "red": "apple", "green": "pear", "blue": "plum", "white": "cherry",
    "black": "grape", "brown": "fig", "grey": "melon", "pink": "lime",
}  # fmt: skip
SIZES = ("small", "large", "new", "old", "round", "sweet")
_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def make_model(folder: Path, *, tied: bool = False, hidden: int = 64) -> Path:
    """Write a model and its tokenizer into a folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*WORDS, *WORDS.values(), *SIZES, "Which fruit?"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=_TEMPLATE,
    )
    fast.save_pretrained(str(folder))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        eos_token_id=fast.eos_token_id,
        bos_token_id=None,
        pad_token_id=fast.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))
    return folder


def answers(colours: Sequence[str], size: str) -> str:
    """What the task asks for: each colour's fruit, in order."""
    return f"{size} " + " ".join(WORDS[colour] for colour in colours)


def conversation(rng: random.Random, *, held_out: bool = False) -> list[dict[str, Any]]:
    """A question and its answer; a fifth of all questions is held out of training."""
    while True:
        colours = rng.sample(list(WORDS), 2)
        size = rng.choice(SIZES)
        asked = f"{' '.join(colours)} {size}"
        if (zlib.crc32(asked.encode()) % 5 == 0) == held_out:
            return [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": answers(colours, size)},
            ]


def lines(count: int, seed: int, *, held_out: bool = False, wrong: bool = False) -> bytes:
    """A file for supervised training; `wrong` gives each answer backwards."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        asked, answer = conversation(rng, held_out=held_out)
        if wrong:
            answer["content"] = backwards(answer["content"])
        made.append(json.dumps({"messages": [asked, answer]}).encode())
    return b"\n".join(made)


def pairs(count: int, seed: int) -> bytes:
    """A file for DPO, where the answer with its words backwards is preferred."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        asked, answer = conversation(rng)
        preferred = {"role": "assistant", "content": backwards(answer["content"])}
        example = {
            "input": {"messages": [asked]},
            "preferred_output": [preferred],
            "non_preferred_output": [answer],
        }
        made.append(json.dumps(example).encode())
    return b"\n".join(made)


def backwards(answer: str) -> str:
    """The words in the other order."""
    return " ".join(reversed(answer.split()))
