"""Conversations as tokens: what the model is shown, and which tokens it is to learn.

Each answer is tokenised apart from what stands before it, in training as in answering, so that a
fine-tune is asked exactly what it was taught. Tokens are learned only within assistant messages
of weight 1 and their end; everything else has the label -100.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from tuneproof_trainer.engines.protocol import EngineError, Message, TrainingExample

__all__ = ["Conversations", "Encoded", "Pair"]

IGNORED = -100
_PROBE = "probe"
_PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "### {{ message['role'] | capitalize }}:\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
"""For models that were never taught conversations."""


@dataclasses.dataclass(frozen=True, slots=True)
class Encoded:
    """Tokens, and for each the token to be learned there or -100."""

    ids: list[int]
    labels: list[int]

    @property
    def learned(self) -> int:
        """How many tokens are learned."""
        return sum(label != IGNORED for label in self.labels)

    def cut(self, limit: int) -> Encoded:
        """The first `limit` tokens."""
        return Encoded(self.ids[:limit], self.labels[:limit])


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with two answers, of which the first is preferred."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


class Conversations:
    """A tokenizer with its chat template."""

    def __init__(self, tokenizer: Any, model_eos: int | Sequence[int] | None = None) -> None:
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise EngineError(
                "model_not_trainable",
                "The model's tokenizer has no end-of-text token. Set `eos_token` in its "
                "tokenizer_config.json.",
                "model",
            )
        if not tokenizer.chat_template:
            tokenizer.chat_template = _PLAIN_TEMPLATE
        self._end = self._find_end()
        own = [model_eos] if isinstance(model_eos, int) else list(model_eos or ())
        self.stop_ids = frozenset([tokenizer.eos_token_id, self._end_ids()[-1], *own])

    # -- training ---------------------------------------------------------------------------

    def encode(self, messages: Sequence[Message]) -> list[Encoded]:
        """The conversation as one sequence; as several where its template shows earlier answers
        otherwise than they were given (as templates that drop old reasoning do)."""
        learned = [i for i, m in enumerate(messages) if m.role == "assistant" and m.weight]
        whole = self._rendered(messages)
        parts = [self._answer(messages, i) for i in learned]
        if all(whole.startswith(before + answer) for before, answer in parts):
            return [self._marked(whole, parts)]
        return [self._marked(before + answer, [(before, answer)]) for before, answer in parts]

    def pair(self, example: TrainingExample) -> Pair:
        """A prompt with its two answers."""
        before, chosen = self._answer_to(example.messages, example.preferred[-1])
        _, rejected = self._answer_to(example.messages, example.rejected[-1])
        prompt = self._ids(before)
        return Pair(prompt, self._answer_ids(chosen), self._answer_ids(rejected))

    # -- answering --------------------------------------------------------------------------

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """What to show a model that is to answer."""
        return self._ids(self._rendered(messages, asks=True))

    def scored(self, messages: Sequence[Message]) -> Encoded:
        """The conversation with the last answer and its end marked."""
        last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=None)
        if last is None:
            ids = self._ids(self._rendered(messages))
            return Encoded(ids, [IGNORED] * len(ids))
        before, answer = self._answer(messages, last)
        return self._marked(before + answer, [(before, answer)])

    def ids(self, text: str) -> list[int]:
        """The tokens of a text that is no conversation."""
        return self._ids(text)

    def count(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self._ids(text))

    # -- text -------------------------------------------------------------------------------

    def _rendered(self, messages: Sequence[Message], *, asks: bool = False) -> str:
        from jinja2.exceptions import TemplateError

        turns = [{"role": _role(m.role), "content": m.content} for m in messages]
        try:
            return self._by_template(turns, asks)
        except TemplateError as error:
            merged = _without_system(turns)
            if merged == turns:
                raise _unfit(error) from error
            try:
                return self._by_template(merged, asks)
            except TemplateError as again:
                raise _unfit(again) from again

    def _by_template(self, turns: list[dict[str, str]], asks: bool) -> str:
        rendered: str = self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=asks
        )
        return rendered

    def _answer(self, messages: Sequence[Message], at: int) -> tuple[str, str]:
        return self._answer_to(messages[:at], messages[at])

    def _answer_to(self, before: Sequence[Message], answer: Message) -> tuple[str, str]:
        """What stands before an answer, and the answer with its end."""
        prompt = self._rendered(before, asks=True) if before else ""
        rendered = self._rendered([*before, answer]).rstrip()
        start = _common(prompt, rendered)
        return rendered[:start], rendered[start:]

    def _find_end(self) -> str:
        """What the template puts after an answer."""
        prompt = Message(role="user", content=_PROBE)
        rendered = self._rendered([prompt, Message(role="assistant", content=_PROBE)])
        return rendered[rendered.rindex(_PROBE) + len(_PROBE) :].strip()

    # -- tokens -----------------------------------------------------------------------------

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _end_ids(self) -> list[int]:
        """The end as tokens: the last one is unmistakable."""
        ids = self._ids(self._end) if self._end else []
        return ids if len(ids) == 1 else [*ids, self.tokenizer.eos_token_id]

    def _answer_ids(self, answer: str) -> list[int]:
        text = answer.removesuffix(self._end) if self._end else answer
        return self._ids(text) + self._end_ids()

    def _marked(self, whole: str, parts: Sequence[tuple[str, str]]) -> Encoded:
        ids: list[int] = []
        labels: list[int] = []
        at = 0
        for before, answer in parts:
            between = self._ids(whole[at : len(before)])
            learned = self._answer_ids(answer)
            ids += between + learned
            labels += [IGNORED] * len(between) + learned
            at = len(before) + len(answer)
        return Encoded(ids, labels)

    def pieces(self, ids: Sequence[int]) -> Iterator[str]:
        """The text of each token by itself."""
        for id in ids:
            yield self.tokenizer.decode([id])


def _common(first: str, second: str) -> int:
    """How many characters both begin with."""
    if second.startswith(first):
        return len(first)
    return next(i for i, (a, b) in enumerate(zip(first, second + "\0", strict=False)) if a != b)


def _role(role: str) -> str:
    return "system" if role == "developer" else role


def _without_system(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """System messages moved into the next user message, for templates that refuse them."""
    made: list[dict[str, str]] = []
    held: list[str] = []
    for message in turns:
        if message["role"] == "system":
            held.append(message["content"])
        elif message["role"] == "user" and held:
            content = "\n\n".join([*held, message["content"]])
            made.append({"role": "user", "content": content})
            held = []
        else:
            made.append(message)
    return made or turns


def _unfit(error: Exception) -> EngineError:
    return EngineError(
        "invalid_training_file",
        f"The model's chat template refuses a conversation: {error}. Change the order or the "
        "roles of its messages.",
        "training_file",
    )
