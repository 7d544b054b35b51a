"""The fake engine answers requests that no batch of text is made of."""

import msgspec

from tests.support.fake_engine import FakeEngine
from workers.engines.port import Answer, Request


async def _answer(url: str, **body: object) -> Answer:
    engine = FakeEngine()
    await engine.start()
    return await engine.answer(Request(url, {"model": "fake-model", **body}, "req_1"))


async def test_a_path_that_no_model_has_is_not_found() -> None:
    answer = await _answer("/v1/images/generations", query="x")

    assert answer.status == 404
    assert msgspec.json.decode(answer.body)["error"]["code"] == "unknown_url"


async def test_token_ids_are_an_input_like_text() -> None:
    answers = [await _answer("/v1/embeddings", input=ids) for ids in ([1, 2, 3], [1, 2, 3], [3, 2, 1])]

    same, again, other = [msgspec.json.decode(answer.body)["data"] for answer in answers]
    assert len(same) == 1
    assert same == again != other


async def test_a_response_names_the_first_excerpt_where_the_prompt_says_so() -> None:
    answers = [await _answer("/v1/responses", input=prompt) for prompt in ("Cats?", "Cats? !cite")]

    plain, citing = [msgspec.json.decode(one.body)["output"][0]["content"][0]["text"] for one in answers]
    assert "[1]" not in plain
    assert citing.endswith(" [1]")


async def test_a_last_turn_with_the_word_for_it_calls_the_first_function() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
    function = {"name": "weather", "parameters": schema}
    asked = {"role": "user", "content": "Rain? !tool"}

    answers = [
        await _answer(
            "/v1/chat/completions", messages=[asked], tools=[{"type": "function", "function": function}], n=1
        ),
        await _answer("/v1/responses", input=[asked], tools=[{"type": "function", **function}]),
        await _answer("/v1/responses", input=[asked, {"type": "function_call_output", "call_id": "c", "output": "no"}]),
    ]

    chat, response, later = [msgspec.json.decode(answer.body) for answer in answers]
    [call] = chat["choices"][0]["message"]["tool_calls"]
    assert (call["function"]["name"], call["function"]["arguments"]) == ("weather", '{"city":"echo","days":1}')
    assert chat["choices"][0]["finish_reason"] == "tool_calls"
    assert response["output"][0]["arguments"] == '{"city":"echo","days":1}'
    assert later["output"][0]["type"] == "message"
