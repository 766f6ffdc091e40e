"""The base model's text: generic posts in mixed styles, made from patterns of our own.

The same seed gives the same posts on every machine. They are mediocre on purpose: plain
statements, questions, lists, instructions, teasers, warnings and stories in one pot, so that a
fine-tune on what worked has something to improve on.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

from tuneproof_trainer.engines.ngram.phrases import BODIES, DOMAINS, HOOKS, INPUTS, SHARED
from tuneproof_trainer.engines.protocol import Message, TrainingExample

__all__ = ["BODY_INSTRUCTIONS", "base_examples", "base_posts"]

BODY_INSTRUCTIONS = ("Write a detailed post:", "Write the post:", "Expand this into a post:")
_SLOT = re.compile(r"{(\w+)}")
_SEED = 20261120


def base_posts(count: int, seed: int = _SEED) -> Iterator[tuple[str, str, str, str]]:
    """`count` posts as (input, hook, body, style), cycling through subjects and styles."""
    rng = random.Random(seed)
    shared = {name: words.split("|") for name, words in SHARED.items()}
    domains = [
        shared | {name: words.split("|") for name, words in domain.items()}
        for domain in DOMAINS.values()
    ]
    styles = list(HOOKS)
    for _ in range(count):
        words = domains[int(rng.random() * len(domains))]
        style = styles[int(rng.random() * len(styles))]
        yield _post(rng, words, style)


def _post(rng: random.Random, words: dict[str, list[str]], style: str) -> tuple[str, str, str, str]:
    topics = words["topic"]
    main = topics[int(rng.random() * len(topics))]
    choose = _chooser(rng, words, main)
    given = _fill(_pick(rng, INPUTS), choose)
    hook = _sentence(_fill(_pick(rng, HOOKS[style]), choose))
    sentences = rng.sample(BODIES, 2 + (rng.random() < 0.5))
    body = " ".join(_sentence(_fill(s, choose)) for s in sentences)
    return given, hook, body, style


def _chooser(
    rng: random.Random, words: dict[str, list[str]], main: str
) -> Callable[[re.Match[str]], str]:
    """Fills slots; the post's own topic is the likely one wherever a topic is asked for."""

    def choose(match: re.Match[str]) -> str:
        name = match[1]
        if name == "topic" and rng.random() < 0.8:
            return main
        options = words[name]
        return options[int(rng.random() * len(options))]

    return choose


def base_examples(count: int = 3000, seed: int = _SEED) -> Iterator[TrainingExample]:
    """The base model's training examples: a hook and a body for each of `count` posts."""
    rng = random.Random(seed + 1)
    for given, hook, body, _ in base_posts(count, seed):
        yield _example(given, hook)
        instruction = BODY_INSTRUCTIONS[int(rng.random() ** 2 * len(BODY_INSTRUCTIONS))]
        yield _example(f"{hook}\n\n{instruction}", body)


def _example(prompt: str, answer: str) -> TrainingExample:
    return TrainingExample(
        messages=(
            Message(role="user", content=prompt),
            Message(role="assistant", content=answer),
        )
    )


def _pick(rng: random.Random, options: tuple[str, ...]) -> str:
    return options[int(rng.random() * len(options))]


def _fill(pattern: str, choose: Callable[[re.Match[str]], str]) -> str:
    return _SLOT.sub(choose, pattern)


def _sentence(text: str) -> str:
    text = re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)
    return text[0].upper() + text[1:]
