"""Which schema a request asks for, and which texts of an answer are to be of it."""

from typing import Any

import pytest

from jobs.errors import InvalidRequest
from jobs.requests.answer_schemas import MAX_SCHEMA_BYTES, schema_of
from jobs.requests.endpoints import CHAT, RESPONSES
from workers.middleware.json_schema import texts


def test_schema_may_be_omitted_in_chat_but_not_in_response() -> None:
    named = {"type": "json_schema", "name": "city"}

    assert schema_of(CHAT, {"response_format": {"type": "json_schema", "json_schema": named}}) is None
    with pytest.raises(InvalidRequest, match="it is not an object") as no:
        schema_of(RESPONSES, {"text": {"format": named}})
    assert (no.value.param, no.value.code) == ("text.format.schema", "invalid_json_schema")


@pytest.mark.parametrize("told", [None, [], "city"])
def test_non_object_in_place_of_named_schema_is_refused(told: Any) -> None:
    with pytest.raises(InvalidRequest, match="it is not an object"):
        schema_of(CHAT, {"response_format": {"type": "json_schema", "json_schema": told}})


def test_a_schema_may_have_so_many_bytes_and_no_more() -> None:
    def asked(size: int) -> dict[str, Any]:
        schema = {"title": "x" * (size - len('{"title":""}'))}
        return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}

    assert len(schema_of(CHAT, asked(MAX_SCHEMA_BYTES)) or b"") == MAX_SCHEMA_BYTES
    with pytest.raises(InvalidRequest, match=f"more than {MAX_SCHEMA_BYTES} bytes"):
        schema_of(CHAT, asked(MAX_SCHEMA_BYTES + 1))


@pytest.mark.parametrize("url", [CHAT, RESPONSES])
@pytest.mark.parametrize("body", [None, [], "text", {"choices": None, "output": None, "status": "completed"}])
def test_non_answer_body_has_no_texts(url: str, body: Any) -> None:
    assert texts(url, body) == []


def response(*output: Any) -> dict[str, Any]:
    return {"status": "completed", "output": list(output)}


def said(*parts: Any) -> dict[str, Any]:
    return {"type": "message", "content": list(parts)}


WORD = {"type": "output_text", "text": '{"n": 1}'}


@pytest.mark.parametrize("call", ["function_call", "mcp_call"])
def test_response_with_only_calls_has_no_text_to_validate(call: str) -> None:
    calls = {"type": call, "arguments": "{"}

    assert texts(RESPONSES, response({"type": "reasoning"}, calls)) == []
    assert texts(RESPONSES, response(calls, said(WORD))) == [WORD["text"]]


def test_a_response_that_refuses_in_any_part_is_to_be_no_json() -> None:
    assert texts(RESPONSES, response(said(WORD), said({"type": "refusal", "refusal": "No."}))) == []


def test_response_texts_are_joined_and_invalid_parts_are_ignored() -> None:
    other = {"type": "output_text", "text": " "}
    odd = ({"type": "message", "content": "bare"}, 5, said(7, {"type": "annotation", "text": "no"}))

    assert texts(RESPONSES, response(said(WORD), said(other), *odd)) == [WORD["text"] + " "]
    assert texts(RESPONSES, response({"type": "reasoning"})) == [""]
