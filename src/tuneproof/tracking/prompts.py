"""Prompts in MLflow's prompt registry: one version each, found by the tag of its hash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tuneproof.errors import NotFoundError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import PromptVersion

__all__ = ["PROMPT_TAG", "find_prompt", "put_prompt", "put_prompt_alias"]

PROMPT_TAG = "tuneproof_prompt"

_CONFIG = {"temperature": "temperature", "top_p": "top_p", "max_tokens": "max_tokens"}
"""What MLflow's own record of a prompt's parameters has fields for."""


def put_prompt(client: MlflowClient, name: str, hash: str, document: Mapping[str, Any]) -> None:
    """Register the prompt with this hash; nothing where it is there."""
    if find_prompt(client, name, hash) is not None:
        return
    parameters = dict(document["parameters"])
    client.register_prompt(
        name,
        [_message(one, document["variables"]) for one in document["messages"]],
        commit_message=hash,
        tags={PROMPT_TAG: hash},
        response_format=parameters.pop("response_format", None),
        model_config=_config(parameters) or None,
    )


def put_prompt_alias(client: MlflowClient, name: str, alias: str, hash: str) -> None:
    """Move the alias; asking again changes nothing."""
    found = find_prompt(client, name, hash)
    if found is None:
        raise NotFoundError(
            f"MLflow has no prompt {hash} of {name!r} yet.",
            mend="The outbox delivers it first; nothing to do.",
        )
    client.set_prompt_alias(name, alias, found.version)


def find_prompt(client: MlflowClient, name: str, hash: str) -> PromptVersion | None:
    """The version with this hash, or None; the first made, should there ever be two."""
    if client.get_prompt(name) is None:
        return None
    found, token = [], None
    while True:
        page = client.search_prompt_versions(name, page_token=token)
        found += [one for one in page if one.tags.get(PROMPT_TAG) == hash]
        token = getattr(page, "token", None)
        if not token:
            return min(found, default=None, key=lambda one: int(one.version))


def _message(message: Mapping[str, str], variables: list[str]) -> dict[str, str]:
    """A message as MLflow writes it: variables in doubled braces."""
    content = message["content"]
    for name in variables:
        content = content.replace(f"{{{name}}}", f"{{{{{name}}}}}")
    return {"role": message["role"], "content": content}


def _config(parameters: dict[str, Any]) -> dict[str, Any]:
    found = {name: parameters.pop(name) for name in _CONFIG if name in parameters}
    stop = parameters.pop("stop", None)
    if stop is not None:
        found["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    return {**found, "extra_params": parameters} if parameters else found
