"""What differs between the servers that speak OpenAI's fine-tuning wire, as data.

A new server of the wire is a new row here, not a new branch in the client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from urllib.parse import urlsplit

from tuneproof.errors import ConfigError

MEBIBYTE = 1024 * 1024

NATIVE = ("fireworks", "together")
"""Kinds of provider that speak a wire of their own."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How one server of the wire departs from the others."""

    name: str
    hosts: tuple[str, ...] = ()
    """Host names (a leading dot: any subdomain) by which the server is recognised."""
    job_body: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """Fields that the server wants in the body of a new job beside the wire's own."""
    file_processing: bool = False
    """Whether an uploaded file must be polled until it is processed before a job may use it."""
    uploads_above: int | None = 512 * MEBIBYTE
    """Files larger than this (bytes) go through the uploads API; None: it has none."""
    part_bytes: int = 64 * MEBIBYTE
    """The size of one part of the uploads API."""
    deploys: str = ""
    """How a fine-tune is deployed, which does not answer before; empty: it answers at once."""
    suffix: bool = True
    """Whether jobs are given the user's suffix."""
    old_hyperparameters: bool = False
    """Whether hyperparameters stand in the job's own field, where the wire had them first."""
    methods: tuple[str, ...] = ("supervised", "dpo")
    """How the server trains, as far as it is known."""
    absolute_learning_rate: bool = False
    """Whether `learning_rate_multiplier` is read as the learning rate itself."""
    max_tokens_field: str = "max_tokens"
    """The name of the reply's length limit in a chat request."""
    prompt_logprobs: bool = True
    """Whether to ask for `prompt_logprobs` (vLLM's extension), by which replies are scored."""
    probes_training: bool = False
    """Whether a job over an absent file may be asked for, to see if the account may train."""
    key_header: str = ""
    """Which header has the key where Anthropic's wire is spoken; empty: `Authorization`."""
    takes_n: bool = False
    """Whether a chat's `n` is known to give so many answers, whose prompt is read once."""
    prices: str = ""
    """Whose rows of the price table hold here (`prices.price_of`); none: no default price."""


DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        dialect.name: dialect
        for dialect in (
            Dialect(
                name="openai",
                hosts=("api.openai.com", ".api.openai.com"),
                max_tokens_field="max_completion_tokens",
                prompt_logprobs=False,
                probes_training=True,
                takes_n=True,
                prices="openai",
            ),
            Dialect(
                name="azure",
                hosts=(
                    ".openai.azure.com",
                    ".services.ai.azure.com",
                    ".cognitiveservices.azure.com",
                ),
                job_body=MappingProxyType({"trainingType": "Standard"}),
                file_processing=True,
                # The deployment must bear the model's name, of which it takes 64 characters.
                suffix=False,
                deploys="In Azure, make a deployment whose name is the model's.",
                takes_n=True,
                max_tokens_field="max_completion_tokens",
                prompt_logprobs=False,
            ),
            Dialect(
                name="nebius",
                hosts=(".nebius.com", ".nebius.ai"),
                uploads_above=None,
                old_hyperparameters=True,
                methods=("supervised",),
                absolute_learning_rate=True,
            ),
            Dialect(
                name="anthropic",
                hosts=(".anthropic.com",),
                methods=(),  # it answers, and trains nobody's model
                prompt_logprobs=False,
                key_header="x-api-key",
            ),
            Dialect(name="trainer", probes_training=True, takes_n=True, prices="trainer"),
            Dialect(name="compatible"),
        )
    }
)
"""By name. `trainer` is our own, `compatible` any other server of the wire, vLLM and
the like."""

NATIVE_CHAT: Mapping[str, Dialect] = MappingProxyType(
    {
        "together": Dialect(
            name="together",
            prompt_logprobs=False,
            deploys="At Together, make a dedicated endpoint of it.",
            takes_n=True,
        ),
        "fireworks": Dialect(
            name="fireworks",
            prompt_logprobs=False,
            takes_n=True,
            deploys="At Fireworks, load it onto a deployment (firectl load-lora, or the console).",
        ),
    }
)
"""The chat wires of the providers whose fine-tuning wire is their own, by kind."""


def dialect_for(kind: str, base_url: str | None) -> Dialect:
    """The dialect of a provider: by its `kind`, and for kind `openai` by its host.

    Kind `openai` says which wire is spoken, so the address decides who speaks it: with none
    it is OpenAI itself, and a host that no row knows is `compatible`.
    """
    if kind not in DIALECTS:
        known = ", ".join(sorted((*DIALECTS, *NATIVE)))
        raise ConfigError(
            f"Provider kind {kind!r} is unknown.",
            mend=f"Set `kind` to one of {known}, or name your own "
            "provider by a dotted name in `adapters.provider`.",
        )
    if kind != "openai" or base_url is None:
        return DIALECTS[kind]
    host = urlsplit(base_url).hostname or ""
    return next(
        (d for d in DIALECTS.values() if any(_matches(host, known) for known in d.hosts)),
        DIALECTS["compatible"],
    )


def _matches(host: str, known: str) -> bool:
    return host.endswith(known) if known.startswith(".") else host == known
