"""The gateway by instructor: only `base_url` and `model` are another."""

import json
import sys

import instructor
import openai
from pydantic import BaseModel

ASKED = {"model": "tuneproof/hook", "user": "user-1"}
client = openai.OpenAI(base_url=sys.argv[1], api_key="any", max_retries=0)


class Person(BaseModel):
    """What is asked for."""

    name: str
    age: int


class Weather(BaseModel):
    """What is asked for by a tool."""

    city: str


def made(kind: type, words: str = "Who?", mode=instructor.Mode.TOOLS, **more):
    asking = instructor.from_openai(client, mode=mode)
    messages = [{"role": "user", "content": words}]
    return asking.chat.completions.create(
        response_model=kind, messages=messages, max_retries=0, **{**ASKED, **more}
    )


def status(words: str, **more) -> list:
    try:
        made(Person, words, **more)
    except Exception as error:
        while error is not None and not isinstance(error, openai.APIStatusError):
            error = error.__cause__ or error.__context__
        return [error.status_code, error.code] if error else ["another error"]
    return []


*_, last = made(instructor.Partial[Person], stream=True)
assert last.model_dump() == {"name": "Ada", "age": 36}
print(
    json.dumps(
        {
            "completion": made(str),
            "tools": made(Weather).model_dump(),
            "structured": made(Person, mode=instructor.Mode.JSON_SCHEMA).model_dump(),
            "stream": last.model_dump(),
            "errors": [
                status("hello", model="tuneproof/poem"),
                status("this is too long"),
                status("in a hurry"),
            ],
        }
    )
)
