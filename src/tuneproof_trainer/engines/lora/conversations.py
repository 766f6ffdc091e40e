"""Conversations as tokens: what the model is shown, and which tokens it is to learn.

Each answer is tokenised apart from what stands before it, in training as in answering, so that a
fine-tune is asked exactly what it was taught. Tokens are learned only within assistant messages
of weight 1 and their end; everything else has the label -100.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tuneproof_trainer.engines.lora.calls import (
    PROBE_ASKED,
    PROBE_CALL,
    PROBE_TOOLS,
    Turn,
    ensure_said,
    find_form,
    turn,
)
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
        self._form = find_form(self._written)
        self._end = self._find_end()
        self._call_end = self._find_call_end()
        own = [model_eos] if isinstance(model_eos, int) else list(model_eos or ())
        ends = [self._end_ids()[-1], self._call_end, tokenizer.eos_token_id]
        self.stop_ids = frozenset([*(end for end in ends if end is not None), *own])

    # -- training ---------------------------------------------------------------------------

    def encode(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()
    ) -> list[Encoded]:
        """The conversation as one sequence; as several where its template shows earlier answers
        otherwise than they were given (as templates that drop old reasoning do).

        Raises EngineError `tools_not_supported` where the template knows no tools, and
        `invalid_training_file` where it leaves a call out.
        """
        self._ensure_tools(messages, tools)
        learned = [i for i, m in enumerate(messages) if m.role == "assistant" and m.weight]
        whole = self._rendered(messages, tools)
        parts = [
            (*self._answer_to(messages[:i], messages[i], tools), bool(messages[i].tool_calls))
            for i in learned
        ]
        if all(whole.startswith(before + answer) for before, answer, _ in parts):
            return [self._marked(whole, parts)]
        return [self._marked(part[0] + part[1], [part]) for part in parts]

    def pair(self, example: TrainingExample) -> Pair:
        """A prompt with its two answers. Raises EngineError as `encode` does."""
        better, worse = example.preferred[-1], example.rejected[-1]
        self._ensure_tools([*example.messages, better, worse], example.tools)
        before, chosen = self._answer_to(example.messages, better, example.tools)
        _, rejected = self._answer_to(example.messages, worse, example.tools)
        return Pair(
            self._ids(before),
            self._answer_ids(chosen, calls=bool(better.tool_calls)),
            self._answer_ids(rejected, calls=bool(worse.tool_calls)),
        )

    def _ensure_tools(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> None:
        example = TrainingExample(messages=tuple(messages), tools=tuple(tools))
        if example.calls and self._form is None:
            raise EngineError(
                "tools_not_supported",
                "The model's chat template does not show tools, what answers call, or what calls "
                "gave back. Take a base model whose template does, or remove tools and calls.",
                "training_file",
            )
        for at, message in enumerate(messages):
            if message.tool_calls:
                self._ensure_said(messages[:at], message, tools)

    def _ensure_said(
        self, before: Sequence[Message], message: Message, tools: Sequence[dict[str, Any]]
    ) -> None:
        def shown(said: Message) -> str:
            return self._rendered([*before, said], tools)

        ensure_said(message, shown)

    # -- answering --------------------------------------------------------------------------

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()
    ) -> list[int]:
        """What to show a model that is to answer, and may call tools."""
        return self._ids(self._rendered(messages, tools, asks=True))

    def ensure_calls(self) -> None:
        """Return where calls can be told from a model's text.

        Raises EngineError `unsupported_parameter` where nothing says how the template writes them.
        """
        if self._form is None or not self._parses:
            raise EngineError(
                "unsupported_parameter",
                "Nobody says how the chat template of this model writes calls of tools, so they "
                "could not be told from its text: leave 'tools' out, add a `response_template` to "
                "its tokenizer_config.json, or answer through vLLM (`--vllm`).",
                "tools",
            )

    @functools.cached_property
    def _parses(self) -> bool:
        """Whether the tokenizer says how a call is written, or TRL knows it of its template."""
        if getattr(self.tokenizer, "response_template", None) is None:
            from trl.chat_template_utils import add_response_schema

            try:
                add_response_schema(self.tokenizer)
            except ValueError:
                return False
        return True

    def called(
        self, prompt: Sequence[int], ids: Sequence[int], tools: Sequence[dict[str, Any]]
    ) -> tuple[str, list[tuple[str, str]]] | None:
        """The words of an answer, and the names and arguments that it calls; None where it calls
        nothing, or nothing that can be read."""
        answer, before = self.tokenizer.decode(ids), self.tokenizer.decode(prompt)
        ends = [] if self._call_end is None else [self.tokenizer.decode([self._call_end])]
        for end in (*ends, self._end):
            try:
                found = self.tokenizer.parse_response(
                    answer + end, prefix=before, tools=list(tools)
                )
                calls = [
                    (str(call["function"]["name"]), json.dumps(call["function"]["arguments"]))
                    for call in found.get("tool_calls") or ()
                    if isinstance(call["function"]["arguments"], dict)
                ]
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # what cannot be read is no call
            if calls:
                return str(found.get("content") or "").strip(), calls
        return None

    def scored(self, messages: Sequence[Message]) -> Encoded:
        """The conversation with the last answer and its end marked."""
        last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=None)
        if last is None:
            ids = self._ids(self._rendered(messages))
            return Encoded(ids, [IGNORED] * len(ids))
        before, answer = self._answer_to(messages[:last], messages[last])
        return self._marked(before + answer, [(before, answer, False)])

    def ids(self, text: str) -> list[int]:
        """The tokens of a text that is no conversation."""
        return self._ids(text)

    def count(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self._ids(text))

    # -- text -------------------------------------------------------------------------------

    def _rendered(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        *,
        asks: bool = False,
    ) -> str:
        return self._written([turn(m, self._form) for m in messages], tools, asks=asks)

    def _written(
        self, turns: list[Turn], tools: Sequence[dict[str, Any]] = (), *, asks: bool = False
    ) -> str:
        """What the template makes of turns. Raises EngineError where it refuses them."""
        from jinja2.exceptions import TemplateError

        # A template is a program: what it makes of turns that do not suit it is its own affair.
        refused = (
            *(TemplateError, TypeError, AttributeError, ValueError, LookupError),
            *(ArithmeticError, RecursionError),
        )
        try:
            return self._by_template(turns, tools, asks)
        except refused as error:
            merged = _without_system(turns)
            if merged == turns:
                raise _unfit(error) from error
            try:
                return self._by_template(merged, tools, asks)
            except refused as again:
                raise _unfit(again) from again

    def _by_template(self, turns: list[Turn], tools: Sequence[dict[str, Any]], asks: bool) -> str:
        rendered: str = self.tokenizer.apply_chat_template(
            turns, tools=list(tools) or None, tokenize=False, add_generation_prompt=asks
        )
        return rendered

    def _answer_to(
        self, before: Sequence[Message], answer: Message, tools: Sequence[dict[str, Any]] = ()
    ) -> tuple[str, str]:
        """What stands before an answer, and the answer with its end."""
        prompt = self._rendered(before, tools, asks=True) if before else ""
        rendered = self._rendered([*before, answer], tools).rstrip()
        start = _common(prompt, rendered)
        return rendered[:start], rendered[start:]

    def _find_end(self) -> str:
        """What the template puts after an answer."""
        prompt = Message(role="user", content=_PROBE)
        rendered = self._rendered([prompt, Message(role="assistant", content=_PROBE)])
        return rendered[rendered.rindex(_PROBE) + len(_PROBE) :].strip()

    def _find_call_end(self) -> int | None:
        """The token after a call, of a template that ends calls otherwise than answers."""
        if self._form is None:
            return None
        try:
            _, answer = self._answer_to([PROBE_ASKED], PROBE_CALL, PROBE_TOOLS)
        except EngineError:  # it refuses to be asked for one
            return None
        if self._end and answer.endswith(self._end):
            return None
        last: int = self._ids(answer)[-1]
        known = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        return last if last in known else None

    # -- tokens -----------------------------------------------------------------------------

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _end_ids(self) -> list[int]:
        """The end as tokens: the last one is unmistakable."""
        ids = self._ids(self._end) if self._end else []
        return ids if len(ids) == 1 else [*ids, self.tokenizer.eos_token_id]

    def _answer_ids(self, answer: str, *, calls: bool = False) -> list[int]:
        if calls and self._call_end is not None:
            return self._ids(answer)
        text = answer.removesuffix(self._end) if self._end else answer
        return self._ids(text) + self._end_ids()

    def _marked(self, whole: str, parts: Sequence[tuple[str, str, bool]]) -> Encoded:
        """Each part is what stands before an answer, the answer, and whether it calls."""
        ids: list[int] = []
        labels: list[int] = []
        at = 0
        for before, answer, calls in parts:
            between = self._ids(whole[at : len(before)])
            learned = self._answer_ids(answer, calls=calls)
            ids += between + learned
            labels += [IGNORED] * len(between) + learned
            at = len(before) + len(answer)
        return Encoded(ids, labels)

    def pieces(self, ids: Sequence[int]) -> Iterator[str]:
        """The text of each token by itself."""
        for id in ids:
            yield self.tokenizer.decode([id])


def _common(first: str, second: str) -> int:
    """How many characters both begin with, no mark such as `<think>` cut in two."""
    if second.startswith(first):
        return len(first)
    at = next(i for i, (a, b) in enumerate(zip(first, second + "\0", strict=False)) if a != b)
    mark = re.search(r"<[^<>\s]*$", second[:at])
    return at if mark is None else mark.start()


def _without_system(turns: list[Turn]) -> list[Turn]:
    """System messages moved into the next user message, for templates that refuse them."""
    made: list[Turn] = []
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
