"""The gateway by LangChain: only `base_url`, `model` and a header are another."""

import json
import sys

import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

UNIT = {"x-tuneproof-unit": "user-1"}


class Person(BaseModel):
    """What is asked for."""

    name: str
    age: int


@tool
def weather(city: str) -> str:
    """What the weather is."""
    return "mild"


def model(name: str = "tuneproof/hook") -> ChatOpenAI:
    return ChatOpenAI(
        base_url=sys.argv[1], api_key="any", model=name, default_headers=UNIT, max_retries=0
    )


def called() -> list:
    chat = model().bind_tools([weather])
    asked = [HumanMessage("Our summer sale starts")]
    first = chat.invoke(asked)
    [call] = first.tool_calls
    last = chat.invoke([*asked, first, ToolMessage("mild", tool_call_id=call["id"])])
    return [call["name"], call["args"], last.content]


def status(chat: ChatOpenAI, words: str) -> list:
    try:
        chat.invoke(words)
    except openai.APIStatusError as error:
        return [error.status_code, error.code]
    return []


print(
    json.dumps(
        {
            "completion": model().invoke("Our summer sale starts").content,
            "stream": "".join(chunk.content for chunk in model().stream("Our summer sale starts")),
            "tools": called(),
            "structured": model().with_structured_output(Person).invoke("Who?").model_dump(),
            "errors": [
                status(model("tuneproof/poem"), "hello"),
                status(model(), "this is too long"),
                status(model(), "in a hurry"),
            ],
        }
    )
)
