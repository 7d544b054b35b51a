"""What is in the lines of a batch file is judged before a batch is made: schemas, and the lengths of prompts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from jobs.batches import contents
from jobs.batches.contents import Contents
from jobs.requests.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES

#: The schema and the function of OpenAI's guides to structured outputs and to function calling.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "steps": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"explanation": {"type": "string"}, "output": {"type": "string"}},
                "required": ["explanation", "output"],
                "additionalProperties": False,
            },
        },
        "final_answer": {"type": "string"},
    },
    "required": ["steps", "final_answer"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Get current temperature for a given location.",
    "parameters": {
        "type": "object",
        "properties": {"location": {"type": "string", "description": "City and country e.g. Bogotá, Colombia"}},
        "required": ["location"],
        "additionalProperties": False,
    },
    "strict": True,
}
BAD: Any = {"type": "objekt"}
NOWHERE: Any = {"$ref": "#/$defs/none"}


def chat_form(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "math", "schema": schema}}}


def text_form(schema: Any) -> dict[str, Any]:
    return {"text": {"format": {"type": "json_schema", "name": "math", "schema": schema}}}


def chat_tools(*parameters: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {**WEATHER, "parameters": one}} for one in parameters]}


def error_of(checks: Contents, body: Mapping[str, Any], model: str = "m") -> tuple[str, str | None] | None:
    raw = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in body.items()}
    bad = checks.error_of(model, 7, raw)
    assert bad is None or bad.line == 7
    return None if bad is None else (bad.code, bad.param)


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (CHAT, chat_form(SCHEMA)),
        (CHAT, {"response_format": {"type": "json_object"}}),
        (CHAT, {"response_format": None, "tools": None}),
        (CHAT, chat_tools(WEATHER["parameters"], {}, None)),
        (RESPONSES, text_form(SCHEMA) | {"tools": [{"type": "function", **WEATHER}, {"type": "file_search"}]}),
        (RESPONSES, {"text": {"format": {"type": "text"}}}),
        (COMPLETIONS, chat_form(BAD)),  # it has no such field
    ],
)
def test_a_schema_is_accepted(endpoint: str, body: dict[str, Any]) -> None:
    assert error_of(Contents(endpoint, {}), body) is None


_ANSWER, _FUNCTION = "invalid_json_schema", "invalid_function_parameters"


@pytest.mark.parametrize(
    ("endpoint", "body", "code", "param"),
    [
        (CHAT, chat_form(BAD), _ANSWER, "response_format"),
        (CHAT, chat_form(NOWHERE), _ANSWER, "response_format"),
        (CHAT, chat_form("object"), _ANSWER, "response_format"),
        (RESPONSES, text_form(BAD), _ANSWER, "text.format.schema"),
        (RESPONSES, text_form({"enum": ["x" * (128 << 10)]}), _ANSWER, "text.format.schema"),
        (CHAT, chat_tools(SCHEMA, BAD), _FUNCTION, "tools[1].function.parameters"),
        (CHAT, chat_tools([]), _FUNCTION, "tools[0].function.parameters"),
        (CHAT, {"functions": [{**WEATHER, "parameters": NOWHERE}]}, _FUNCTION, "functions[0].parameters"),
        (RESPONSES, {"tools": [{"type": "function", **WEATHER, "parameters": BAD}]}, _FUNCTION, "tools[0].parameters"),
    ],
)
def test_invalid_schema_is_reported_with_its_field(endpoint: str, body: dict[str, Any], code: str, param: str) -> None:
    assert error_of(Contents(endpoint, {}), body) == (code, f"body.{param}")


def test_a_schema_of_many_lines_is_read_once_and_only_while_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []

    def fault_of(raw: bytes) -> str:
        read.append(raw)
        return "it is none."

    monkeypatch.setattr(contents, "_fault_of", fault_of)
    checks = Contents(CHAT, {})

    assert [error_of(checks, chat_form(BAD)) for _ in range(3)] == [(_ANSWER, "body.response_format")] * 3
    assert len(read) == 1
    assert error_of(Contents(CHAT, {}, seconds=0.0), chat_form(BAD)) is None


@pytest.fixture
def contexts(tmp_path: Path) -> dict[str, tuple[int, str]]:
    """Return a context of ten tokens, of which each is a word."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "tokenizer.json"))
    return {"m": (10, str(tmp_path / "tokenizer.json"))}


def turns(*texts: str, role: str = "user", kind: str = "text") -> list[dict[str, Any]]:
    return [{"role": role, "content": [{"type": kind, "text": text}]} for text in texts]


TEN, ELEVEN = "word " * 10, "word " * 11


@pytest.mark.parametrize(
    ("endpoint", "body", "is_long"),
    [
        (CHAT, {"messages": turns(TEN)}, False),
        (CHAT, {"messages": turns(ELEVEN)}, True),
        (CHAT, {"messages": [{"role": "user", "content": ELEVEN}]}, True),
        (CHAT, {"messages": turns("word " * 6, "word " * 5)}, True),
        (CHAT, {"messages": turns(ELEVEN, role="assistant")}, False),  # templates may leave it out
        (CHAT, {"messages": turns(ELEVEN), "context": {"strategy": "rotate"}}, False),
        (RESPONSES, {"input": ELEVEN}, True),
        (RESPONSES, {"input": turns("word " * 6, kind="input_text"), "instructions": "word " * 5}, True),
        (RESPONSES, {"input": ELEVEN, "truncation": "auto"}, False),
        (COMPLETIONS, {"prompt": ["word " * 6, "word " * 6]}, False),
        (COMPLETIONS, {"prompt": ["word", ELEVEN]}, True),
        (COMPLETIONS, {"prompt": list(range(11))}, True),
        (COMPLETIONS, {"prompt": [list(range(9)), list(range(11))]}, True),
        (EMBEDDINGS, {"input": ELEVEN}, False),
    ],
)
def test_a_prompt_with_more_tokens_than_the_context_is_named(
    contexts: dict[str, tuple[int, str]], endpoint: str, body: dict[str, Any], is_long: bool
) -> None:
    field = {CHAT: "messages", RESPONSES: "input", COMPLETIONS: "prompt"}.get(endpoint)
    expected = ("context_length_exceeded", f"body.{field}") if is_long else None

    assert error_of(Contents(endpoint, contexts), body) == expected
    assert error_of(Contents(endpoint, contexts), body, model="other") is None
    assert error_of(Contents(endpoint, contexts, seconds=0.0), body) is None


def test_a_long_text_is_counted_in_slices_until_it_is_too_long(
    contexts: dict[str, tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []

    class Counting:
        def encode(self, text: str, *, add_special_tokens: bool) -> Any:
            assert not add_special_tokens
            counted.append(text)
            return msgspec.defstruct("Encoding", [("ids", list[int])])([0] * 6)

    monkeypatch.setattr(contents, "_SLICE", 100)
    monkeypatch.setattr(contents, "_tokenizer", lambda _file: Counting())

    found = error_of(Contents(CHAT, contexts), {"messages": turns("x" * 1000)})

    assert found == ("context_length_exceeded", "body.messages")
    assert [len(text) for text in counted] == [100] * 3, "6 tokens, and twice 4 or more: what a cut may add is left out"
