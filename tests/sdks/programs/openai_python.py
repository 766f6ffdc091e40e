"""The gateway by OpenAI's Python library: only `base_url` and `model` are another."""

import json
import sys

import openai
from pydantic import BaseModel

MODEL, UNIT = "tuneproof/hook", "user-1"
AT_TRAINER = sys.argv[2:] == ["trainer"]


class Person(BaseModel):
    """What is asked for."""

    name: str
    age: int


def weather(client: openai.OpenAI, messages: list) -> list:
    tool = {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
    tools = [{"type": "function", "function": tool}]
    asked = {"model": MODEL, "user": UNIT, "tools": tools}
    first = client.chat.completions.create(messages=messages, **asked).choices[0].message
    call = first.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "mild"}
    last = client.chat.completions.create(messages=[*messages, first, result], **asked)
    parts = [
        chunk.choices[0].delta.tool_calls[0].function.arguments
        for chunk in client.chat.completions.create(messages=messages, stream=True, **asked)
        if chunk.choices and chunk.choices[0].delta.tool_calls
    ]
    assert json.loads("".join(parts)) == {"city": "Berlin"}
    called = [call.function.name, json.loads(call.function.arguments)]
    return [*called, last.choices[0].message.content]


def status(client: openai.OpenAI, model: str, words: str) -> list:
    try:
        message = {"role": "user", "content": words}
        client.chat.completions.create(model=model, messages=[message], user=UNIT)
    except openai.APIStatusError as error:
        return [error.status_code, error.code]
    return []


client = openai.OpenAI(base_url=sys.argv[1], api_key="any", max_retries=0)
messages = [{"role": "user", "content": "Our summer sale starts"}]
asked = {"model": MODEL, "messages": messages, "user": UNIT}
raw = client.chat.completions.with_raw_response.create(**asked)
if not AT_TRAINER:
    assert raw.headers["x-tuneproof-response"] == raw.parse().id
    assert raw.parse().usage.total_tokens == 10
stream = client.chat.completions.create(
    **asked, stream=True, stream_options={"include_usage": True}
)
chunks = list(stream)
assert chunks[-1].usage.total_tokens == raw.parse().usage.total_tokens
texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
parsed = client.chat.completions.parse(**asked, response_format=Person)
print(
    json.dumps(
        {
            "completion": raw.parse().choices[0].message.content,
            "stream": "".join(texts),
            "tools": weather(client, messages),
            "structured": parsed.choices[0].message.parsed.model_dump(),
            "errors": [
                status(client, "tuneproof/poem", "hello"),
                status(client, MODEL, "this is too long"),
                status(client, MODEL, "in a hurry"),
            ],
        }
    )
)
