"""Answers of the fake engine in the form that a request asks for, as a model with structured outputs gives them.

    response_format or text.format with a schema   the text is JSON of the schema
    tools                                          the first function is called, with arguments of its schema

An enumeration is answered with its first value, and with its last where the prompt has `DISLIKED`: a judge that takes
labels then chooses the last.
"""

import json
from typing import Any, Final

import msgspec

from jobs.requests.endpoints import CHAT
from tests.support.fake_engine import TOOL, prompt_of, reply
from workers.engines.port import Answer, Request

DISLIKED: Final = "at great length"
#: The answer to a schema of a number. Judges of the notebooks have ranges that begin at 0 or 1.
NUMBER: Final = 1.5


def answer_in_form(request: Request) -> Answer | None:
    """Return the answer to a request for a form; None for any other request."""
    body, prompt = dict(request.body), prompt_of(request.url, request.body)
    functions = [tool.get("function", tool) for tool in body.get("tools") or () if tool["type"] == "function"]
    schema = functions[0]["parameters"] if functions else _schema_of(body)
    if schema is None:
        return None
    text = json.dumps(_value_of(schema, schema.get("$defs", {}), is_disliked=DISLIKED in prompt))
    if functions:
        turns = "messages" if request.url == CHAT else "input"
        body[turns] = [*body[turns], {"role": "user", "content": TOOL}]
    given = reply(request.url, body, prompt)
    answer = msgspec.json.decode(given.body)
    if request.url == CHAT:
        message = answer["choices"][0]["message"]
        target, field = (message["tool_calls"][0]["function"], "arguments") if functions else (message, "content")
    else:
        item = answer["output"][0]
        target, field = (item, "arguments") if functions else (item["content"][0], "text")
    target[field] = text
    return Answer(200, msgspec.json.encode(answer), given.usage)


def _schema_of(body: dict[str, Any]) -> dict[str, Any] | None:
    """Return the schema that the text is to have: that of a chat, or that of a response."""
    schema: dict[str, Any] | None = (
        (body.get("response_format") or {}).get("json_schema") or (body.get("text") or {}).get("format") or {}
    ).get("schema")
    return schema


def _value_of(schema: dict[str, Any], named: dict[str, Any], *, is_disliked: bool) -> Any:
    """Return a value of a schema, which may refer to those that are `named`."""
    schema = named.get(schema.get("$ref", "").removeprefix("#/$defs/"), schema)
    if values := schema.get("enum"):
        return values[-1 if is_disliked else 0]
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            return {name: _value_of(inner, named, is_disliked=is_disliked) for name, inner in properties.items()}
        case "array":
            return [_value_of(schema.get("items", {}), named, is_disliked=is_disliked)]
        case "number":
            return NUMBER
        case "boolean":
            return False
    return "echo"
