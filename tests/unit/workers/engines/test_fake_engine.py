"""What the fake engine says to requests that no batch of text is made of."""

import msgspec

from workers.engines.fake import FakeEngine
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
