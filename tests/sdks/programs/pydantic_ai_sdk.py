"""The gateway by Pydantic AI: only `base_url`, the model's name and a header are another."""

import asyncio
import json
import sys

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

UNIT = {"extra_headers": {"x-tuneproof-unit": "user-1"}}
CALLED = []


class Person(BaseModel):
    """What is asked for."""

    name: str
    age: int


def agent(output=str, name: str = "tuneproof/hook", **more) -> Agent:
    provider = OpenAIProvider(base_url=sys.argv[1], api_key="any")
    return Agent(OpenAIChatModel(name, provider=provider), output_type=output, **more)


def weather(city: str) -> str:
    """What the weather is."""
    CALLED.append(["weather", {"city": city}])
    return "mild"


async def said(asking: Agent, words: str = "Our summer sale starts"):
    return (await asking.run(words, model_settings=UNIT)).output


async def streamed() -> str:
    async with agent().run_stream("Our summer sale starts", model_settings=UNIT) as answer:
        return await answer.get_output()


async def status(words: str, **more) -> list:
    try:
        await said(agent(**more), words)
    except ModelHTTPError as error:
        return [error.status_code, (error.body or {}).get("code")]
    return []


async def main() -> None:
    completion = await said(agent())
    last = await said(agent(tools=[weather]))
    assert (await said(agent(Person))).model_dump() == {"name": "Ada", "age": 36}
    found = {
        "completion": completion,
        "stream": await streamed(),
        "tools": [*CALLED[0], last],
        "structured": (await said(agent(NativeOutput(Person)))).model_dump(),
        "errors": [
            await status("hello", name="tuneproof/poem"),
            await status("this is too long"),
            await status("in a hurry"),
        ],
    }
    print(json.dumps(found))


asyncio.run(main())
