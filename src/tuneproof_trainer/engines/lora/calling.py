"""Answers that may call tools: heard to their end, then told as words or as calls."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from tuneproof_trainer.engines.lora.conversations import Conversations
from tuneproof_trainer.engines.lora.sampling import Draw
from tuneproof_trainer.engines.protocol import Token, ToolCall

__all__ = ["calling"]


def calling(
    talk: Conversations,
    prompt: Sequence[int],
    draw: Draw,
    tokens: Iterator[Token],
    tools: Sequence[dict[str, Any]],
) -> Iterator[Token]:
    """The tokens of an answer, of which the last has its words or the end has its calls.

    Those before are empty: what they say is known at the end. An answer that was cut off calls
    nothing, since its last call may be half a one.
    """
    held: Token | None = None
    texts: list[str] = []
    for token in tokens:
        if token.finish is not None:
            found = talk.called(prompt, draw.ids, tools) if token.finish == "stop" else None
            text, calls = ("".join(texts), []) if found is None else found
            if held is not None:
                yield Token(text, held.logprob, held.top)
            made = tuple(
                ToolCall(id=f"call_{secrets.token_hex(12)}", name=name, arguments=arguments)
                for name, arguments in calls
            )
            yield Token("", finish="tool_calls" if made else token.finish, calls=made)
            return
        texts.append(token.text)
        if held is not None:
            yield Token("", held.logprob, held.top)
        held = token
