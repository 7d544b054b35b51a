"""Rows as token ids: loss on what the assistant says, and refused where the mask would be wrong."""

import json
from typing import Any

import pytest

from jobs.batches.lines import InputLine
from jobs.finetuning import examples
from workers.engines.training.rows import IGNORED, RowRefused, RowTooLong, encode_preference, encode_supervised

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello."}
AGAIN = {"role": "assistant", "content": "Bye."}


class Letters:
    """A tokenizer with a token for each byte, and a chat template that a subclass may break."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def apply_chat_template(
        self, messages: list[Any], *, tools: Any, add_generation_prompt: bool, tokenize: bool
    ) -> str:
        assert tokenize is False
        self.seen = messages
        text = "" if tools is None else f"[{len(tools)} tools]"
        for message in messages:
            text += f"<{message['role']}>{message['content']}{message.get('tool_calls') or ''}</>"
        return text + ("<assistant>" if add_generation_prompt else "")

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert add_special_tokens is False
        return {"input_ids": list(text.encode())}


class Toolless(Letters):
    """A template that knows no tools, as SmolLM2's."""

    def apply_chat_template(self, messages: list[Any], *, tools: Any, **how: Any) -> str:
        shown = [{"role": one["role"], "content": one["content"]} for one in messages]
        return super().apply_chat_template(shown, tools=None, **how)


class Instructing(Letters):
    """A template that needs a message, and puts instructions of its own before a conversation without a system."""

    def apply_chat_template(self, messages: list[Any], **how: Any) -> str:
        own = [] if messages[0]["role"] == "system" else [{"role": "system", "content": "Be good."}]
        return super().apply_chat_template([*own, *messages], **how)


class Forgetful(Letters):
    """A template that leaves out earlier answers."""

    def apply_chat_template(self, messages: list[Any], **how: Any) -> str:
        shown = [one for n, one in enumerate(messages) if one["role"] != "assistant" or n == len(messages) - 1]
        return super().apply_chat_template(shown, **how)


class Closing(Letters):
    """A template that says after the last message that it was the last."""

    def apply_chat_template(self, messages: list[Any], *, add_generation_prompt: bool, **how: Any) -> str:
        text = super().apply_chat_template(messages, add_generation_prompt=add_generation_prompt, **how)
        return text if add_generation_prompt else text + "<end>"


class Strict(Letters):
    """A template that knows two roles."""

    def apply_chat_template(self, messages: list[Any], **how: Any) -> str:
        raise ValueError("system is not supported")


class Merging(Letters):
    """A tokenizer that makes one token of a prompt's end and the answer's first letter."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return super().__call__(text.replace(">H", "\u1234"), add_special_tokens=add_special_tokens)


def trained(tokenizer: Letters, row: dict[str, Any], longest: int = 500) -> str:
    encoded = encode_supervised(tokenizer, 7, row, longest)
    assert len(encoded["labels"]) == len(encoded["input_ids"])
    pairs = zip(encoded["labels"], encoded["input_ids"], strict=True)
    assert all(label in (IGNORED, token) for label, token in pairs)
    return bytes(0 if label == IGNORED else label for label in encoded["labels"]).decode().replace("\0", "")


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([USER, ANSWER], "Hello.</>"),
        ([USER, ANSWER, USER, AGAIN], "Hello.</>Bye.</>"),
        ([USER, {**ANSWER, "weight": 0}, USER, AGAIN], "Bye.</>"),
        ([USER, {**ANSWER, "weight": 1}, USER, {**AGAIN, "weight": 0}, USER], "Hello.</>"),
        ([{"role": "system", "content": "Be kind."}, USER, ANSWER], "Hello.</>"),
    ],
)
def test_only_assistant_text_is_trained(messages: list[Any], text: str) -> None:
    assert trained(Letters(), {"messages": messages}) == text


@pytest.mark.parametrize("tokenizer", [Letters(), Instructing()])
def test_a_conversation_that_the_assistant_begins_is_trained(tokenizer: Letters) -> None:
    assert trained(tokenizer, {"messages": [ANSWER, USER, AGAIN]}) == "Hello.</>Bye.</>"
    assert trained(tokenizer, {"messages": [{**ANSWER, "weight": 0}, USER, AGAIN]}) == "Bye.</>"


LOOK = {"name": "look", "parameters": {}}
CALLING = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
}
OFFER = {"tools": [{"type": "function", "function": LOOK}]}
PREFERENCE = {"input": {"messages": [USER]}, "preferred_output": [ANSWER], "non_preferred_output": [CALLING]}


@pytest.mark.parametrize(
    ("encode", "row", "ignored"),
    [
        (encode_supervised, {"messages": [USER, ANSWER], **OFFER}, "'tools'"),
        (encode_supervised, {"messages": [USER, CALLING]}, "'tool_calls'"),
        (encode_preference, PREFERENCE, "'tool_calls'"),
    ],
)
def test_a_row_of_tools_is_refused_where_the_template_shows_none(
    encode: Any, row: dict[str, Any], ignored: str
) -> None:
    with pytest.raises(RowRefused, match=f"knows no tools: it leaves out {ignored}.*training.chat_template") as refused:
        encode(Toolless(), 7, row, 500)

    assert refused.value.line == 7
    assert encode(Letters(), 7, row, 500)


def test_functions_are_trained_as_tools() -> None:
    earlier = {
        "functions": [LOOK],
        "messages": [
            USER,
            {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": "{}"}},
            {"role": "function", "name": "look", "content": "4"},
            {**ANSWER, "function_call": None},
        ],
    }
    result = {"role": "tool", "name": "look", "content": "4", "tool_call_id": "call_1"}
    row = {"messages": [USER, CALLING, result, ANSWER], **OFFER}

    assert examples.convert_functions(earlier) == row
    assert examples.check(InputLine(1, 0, 0, json.dumps(earlier).encode()), "supervised") == row
    assert trained(Letters(), examples.convert_functions(earlier)) == trained(Letters(), row)


def test_rows_that_are_too_long_are_cut_where_the_job_truncates() -> None:
    long = {"messages": [USER, ANSWER, USER, AGAIN]}
    whole = encode_supervised(Letters(), 1, long, 500)
    with pytest.raises(RowTooLong, match=f"has {len(whole['input_ids'])} tokens; at most 40"):
        encode_supervised(Letters(), 1, long, 40)

    cut = encode_supervised(Letters(), 1, long, 40, truncate=True)
    assert cut == {name: values[:40] for name, values in whole.items()}
    with pytest.raises(RowRefused, match="among the first 12 tokens"):
        encode_supervised(Letters(), 1, long, 12, truncate=True)
    preference = {"input": {"messages": [USER]}, "preferred_output": [ANSWER], "non_preferred_output": [AGAIN]}
    pair = encode_preference(Letters(), 1, preference, 25, truncate=True)
    assert (bytes(pair["chosen_ids"]), bytes(pair["rejected_ids"])) == (b"Hel", b"Bye")
    with pytest.raises(RowTooLong, match="The input has 22 tokens"):
        encode_preference(Letters(), 1, preference, 22, truncate=True)


def test_tools_stand_before_the_messages() -> None:
    row = {"messages": [USER, ANSWER], "tools": [{}]}

    assert bytes(encode_supervised(Letters(), 1, row, 500)["input_ids"]).startswith(b"[1 tools]<user>")
    assert trained(Letters(), row) == "Hello.</>"


def test_template_gets_messages_in_engine_format() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    said = {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None}
    result = {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}
    tokenizer = Letters()

    trained(tokenizer, {"messages": [USER, said, result, ANSWER]})

    parsed = {**call, "function": {"name": "look", "arguments": {"at": 1}}}
    assert tokenizer.seen == [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [parsed]},
        {"role": "tool", "content": "a\nb", "tool_call_id": "call_1"},
        ANSWER,
    ]


@pytest.mark.parametrize(
    ("tokenizer", "messages", "reason"),
    [
        (Forgetful(), [USER, ANSWER, USER, AGAIN], "before this message"),
        (Closing(), [USER, ANSWER, USER, AGAIN], "up to this message"),
        (Strict(), [USER, ANSWER], "refuses the messages: system is not supported"),
        (Merging(), [USER, ANSWER], "before this message"),
        (Letters(), [USER, {**ANSWER, "weight": 0}], "no assistant message"),
        (Letters(), [USER, {**ANSWER, "content": "x" * 500}], "at most 500"),
    ],
)
def test_a_row_that_cannot_be_masked_is_refused_with_its_line(
    tokenizer: Letters, messages: list[Any], reason: str
) -> None:
    with pytest.raises(RowRefused, match=reason) as refused:
        trained(tokenizer, {"messages": messages})

    assert refused.value.line == 7


@pytest.mark.parametrize("spelling", ["output", "completion"])
def test_both_spellings_of_preferences_are_read(spelling: str) -> None:
    row = {
        "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
        f"preferred_{spelling}": [ANSWER],
        f"non_preferred_{spelling}": [AGAIN],
    }

    encoded = encode_preference(Letters(), 1, row, 500)

    assert {name: bytes(ids) for name, ids in encoded.items()} == {
        "prompt_ids": b"<user>Hi</><assistant>",
        "chosen_ids": b"Hello.</>",
        "rejected_ids": b"Bye.</>",
    }


def test_preference_with_non_prefix_input_is_refused() -> None:
    row = {"input": {"messages": [USER]}, "preferred_output": [ANSWER], "non_preferred_output": [AGAIN]}

    with pytest.raises(RowRefused, match="input"):
        encode_preference(Merging(), 1, row, 500)
