"""The gateway by LiteLLM: only `api_base`, `model` and a header are another.

It leaves `user` out for a model that it does not know.
"""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from pydantic import BaseModel

MODEL = "openai/tuneproof/hook"
TOOL = {
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


class Person(BaseModel):
    """What is asked for."""

    name: str
    age: int


def ask(words: str = "Our summer sale starts", model: str = MODEL, **more):
    messages = more.pop("messages", [{"role": "user", "content": words}])
    return litellm.completion(
        model=model,
        messages=messages,
        api_base=sys.argv[1],
        api_key="any",
        extra_headers={"x-tuneproof-unit": "user-1"},
        max_retries=0,
        **more,
    )


def called() -> list:
    tools = [{"type": "function", "function": TOOL}]
    messages = [{"role": "user", "content": "Our summer sale starts"}]
    first = ask(messages=messages, tools=tools).choices[0].message
    call = first.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "mild"}
    last = ask(messages=[*messages, first.model_dump(), result], tools=tools)
    called = [call.function.name, json.loads(call.function.arguments)]
    return [*called, last.choices[0].message.content]


def status(words: str, model: str = MODEL) -> list:
    try:
        ask(words, model)
    except litellm.exceptions.APIError as error:
        return [error.status_code, error.code]
    except litellm.exceptions.openai.APIStatusError as error:
        return [error.status_code, error.code]
    return []


texts = [chunk.choices[0].delta.content or "" for chunk in ask(stream=True) if chunk.choices]
print(
    json.dumps(
        {
            "completion": ask().choices[0].message.content,
            "stream": "".join(texts),
            "tools": called(),
            "structured": json.loads(ask(response_format=Person).choices[0].message.content),
            "errors": [
                status("hello", "openai/tuneproof/poem"),
                status("this is too long"),
                status("in a hurry"),
            ],
        }
    )
)
