"""Answers that their clients let be given again."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from jobs.clock import now
from jobs.errors import DatabaseBusy
from tests.unit.workers.middleware.caching.conftest import Counter
from workers.engines.port import Answer, Request, Usage
from workers.middleware.cache import MAX_ANSWER_BYTES

CHAT, TEXT, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
ASKED: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hello"}]},
    TEXT: {"prompt": "Hello"},
    RESPONSE: {"input": "Hello"},
}


async def ask(counter: Counter, url: str = CHAT, **body: Any) -> Any:
    return await counter.ask(url, **{**ASKED[url], "temperature": 0, "cache": True, **body})


def chat(content: str = "Hi", **choice: Any) -> Answer:
    said = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop", **choice}
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [said]}
    return Answer(200, msgspec.json.encode(body | {"usage": usage}), Usage(9, 0, 1))


@pytest.mark.parametrize("url", list(ASKED))
async def test_the_same_request_has_the_same_answer_under_a_new_id(counter: Counter, url: str) -> None:
    first, again, third = [await ask(counter, url) for _ in range(3)]

    assert counter.prompts == ["Hello"]
    assert "cache" not in counter.asked[0].body
    assert "cached" not in first
    assert again["cached"] is True
    assert len({first["id"], again["id"], third["id"]}) == 3
    assert again["id"].partition("_" if url == RESPONSE else "-")[0] == first["id"].partition("_")[0].partition("-")[0]
    time = "created_at" if url == RESPONSE else "created"
    assert again[time] > first[time]
    name = "output" if url == RESPONSE else "choices"
    assert again[name] == first[name]
    count, details = (
        ("input_tokens", "input_tokens_details") if url == RESPONSE else ("prompt_tokens", "prompt_tokens_details")
    )
    assert again["usage"][details]["cached_tokens"] == first["usage"][count] > 0
    assert {**again["usage"], details: 0} == {**first["usage"], details: 0}
    assert again["used"] == (first["usage"][count],) * 2


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": "proj_2"},
        {"seed": 7},
        {"max_tokens": 5},
        {"messages": [{"role": "user", "content": "hello"}]},
        {"temperature": 0.0},
        {"top_k": 1},
        {"structured_outputs": {"choice": ["a"]}},
        {"guided_choice": ["a"]},
    ],
)
async def test_any_other_request_is_another(counter: Counter, change: dict[str, Any]) -> None:
    await ask(counter)
    await ask(counter, **change)

    assert len(counter.asked) == 2


async def test_other_weights_under_the_name_give_another_answer(counter: Counter) -> None:
    await ask(counter)
    counter.weights = "second"
    await ask(counter)

    assert len(counter.asked) == 2


async def test_answers_of_unknown_weights_are_not_cached(counter: Counter) -> None:
    counter.weights = "unknown"
    for _ in range(2):
        said = await ask(counter)
        assert said["http"] == 200
        assert "cached" not in said

    assert len(counter.asked) == 2
    assert all("cache" not in request.body for request in counter.asked)


async def test_user_fields_and_field_order_do_not_change_cache_key(counter: Counter) -> None:
    await ask(counter, user="anna", metadata={"a": "1"}, top_p=1, seed=1)
    await ask(counter, seed=1, top_p=1, user="bert", safety_identifier="x", prompt_cache_key="y")

    assert len(counter.asked) == 1


async def test_cached_response_carries_metadata_of_current_request(counter: Counter) -> None:
    body = {"id": "resp_1", "status": "completed", "metadata": {"who": "anna"}, "user": "anna"}
    output = [{"type": "message", "content": [{"type": "output_text", "text": "Hi"}]}]
    counter.says = lambda _: Answer(200, msgspec.json.encode(body | {"output": output}), Usage(3, 0, 1))
    await ask(counter, RESPONSE, metadata={"who": "anna"}, user="anna")

    again = await ask(counter, RESPONSE, user="bert")

    assert again["cached"]
    assert (again["metadata"], again["user"]) == ({}, "bert")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"temperature": None}, "temperature"),
        ({"temperature": 0.1}, "temperature"),
        ({"temperature": False}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"n": 2}, "one choice"),
        ({"best_of": 3}, "one choice"),
        ({"stream": True}, "stream"),
        ({"context": {"route_long": "big"}}, "another model"),
        ({"context": {"route_long": "big", "strategy": "rotate"}}, "another model"),
        ({"context": {"strategy": "memory", "embedding_model": "e"}}, "another model"),
        ({"cache": {}}, "ttl"),
        ({"cache": {"ttl": 0}}, "1 second"),
        ({"cache": {"ttl": "5"}}, "ttl"),
        ({"cache": {"ttl": 5, "x": 1}}, "ttl"),
        ({"cache": 1}, "ttl"),
        ({"cache": "yes"}, "ttl"),
        ({"cache": []}, "ttl"),
    ],
)
async def test_uncacheable_request_is_refused(counter: Counter, body: dict[str, Any], word: str) -> None:
    said = await ask(counter, **body)

    assert said["http"] == 400
    assert (said["error"]["param"], said["error"]["type"]) == ("cache", "invalid_request_error")
    assert word in said["error"]["message"]
    assert counter.asked == []


@pytest.mark.parametrize(
    "body",
    [
        {"background": True},
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]},
        {"tools": [{"type": "function", "name": "f"}, {"type": "mcp"}]},
    ],
)
async def test_a_response_that_depends_on_more_than_its_request_is_refused(
    counter: Counter, body: dict[str, Any]
) -> None:
    said = await ask(counter, RESPONSE, **body)

    assert (said["http"], said["error"]["param"]) == (400, "cache")
    assert counter.asked == []


@pytest.mark.parametrize("tools", [None, "x", [], ["x"], [{"type": 7}], [{"type": "function", "name": "f"}]])
async def test_other_tools_are_the_engine_s_to_judge(counter: Counter, tools: Any) -> None:
    for _ in range(2):
        assert (await ask(counter, RESPONSE, tools=tools))["http"] == 200

    assert len(counter.asked) == 1


@pytest.mark.parametrize("terms", [None, {"strategy": "rotate"}, {"strategy": "summarize"}, {"route_long": None}])
async def test_a_prompt_that_the_model_itself_shortens_is_cached(counter: Counter, terms: Any) -> None:
    for _ in range(2):
        assert (await ask(counter, context=terms))["http"] == 200

    assert len(counter.asked) == 1


@pytest.mark.parametrize(("said", "status"), [(True, 400), ({"ttl": 5}, 400), (False, 200), (None, 200)])
async def test_a_ranking_is_not_cached(counter: Counter, said: Any, status: int) -> None:
    counter.says = lambda _: Answer(200, b"{}")

    answer = await counter.ask("/v1/rerank", query="q", documents=["d"], cache=said)

    assert answer["http"] == status
    assert answer.get("error", {}).get("param") == ("cache" if status == 400 else None)
    assert ["cache" in request.body for request in counter.asked] == ([] if status == 400 else [False])


@pytest.mark.parametrize("said", [None, False])
async def test_answers_are_not_cached_without_opt_in(counter: Counter, said: Any) -> None:
    for _ in range(2):
        await ask(counter, cache=said, temperature=1)
        await counter.ask(CHAT, **ASKED[CHAT], temperature=0)

    assert len(counter.asked) == 4
    assert all("cache" not in request.body for request in counter.asked)


@pytest.mark.parametrize(
    ("answer", "cacheable"),
    [
        (chat(), True),
        (chat(finish_reason="length"), True),
        (chat("", finish_reason="tool_calls", message={"tool_calls": [{"id": "c"}]}), True),
        (chat(finish_reason="content_filter"), False),
        (chat(finish_reason=None), False),
        (chat(""), False),
        (chat("x" * MAX_ANSWER_BYTES), False),
        (Answer(200, b"nonsense"), False),
        (Answer(200, b"{}"), False),
        (Answer(200, chat().body[:-1] + b',"x":1e999}'), False),
        (Answer(400, b'{"error": {"message": "no"}}'), False),
    ],
)
async def test_only_complete_answers_within_size_limit_are_cached(
    counter: Counter, answer: Answer, cacheable: bool
) -> None:
    counter.says = lambda _: answer
    request = Request(CHAT, {"model": "m", **ASKED[CHAT], "temperature": 0, "cache": True}, "r", tenant="proj_1")

    for _ in range(2):
        said = await counter.cached.answer(request)
        counter.response_cache.flush()

    assert (said.body != answer.body) is cacheable
    assert len(counter.asked) == (1 if cacheable else 2)


async def test_cached_answer_older_than_requested_ttl_is_not_used(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = now()

    def later(seconds: float) -> None:
        for place in ("workers.middleware.cache.now", "workers.middleware.response_cache.now"):
            monkeypatch.setattr(place, lambda: began + seconds)

    for at, ttl, asked in ((0, 100, 1), (50, 100, 1), (50, 40, 2), (89, 1000, 2), (91, 1000, 3)):
        later(at)  # at 50 it is computed anew, to live for 40 s
        await ask(counter, cache={"ttl": ttl})
        assert len(counter.asked) == asked, at


async def test_a_deployment_has_a_longest_ttl(
    make_counter: Callable[..., Counter], monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = make_counter(response_cache_seconds=60)
    await counter.cached.start()
    await ask(counter, cache={"ttl": 3600})
    at = now() + 61
    monkeypatch.setattr("workers.middleware.response_cache.now", lambda: at)

    await ask(counter, cache={"ttl": 3600})

    assert len(counter.asked) == 2


async def test_it_can_be_turned_off(make_counter: Callable[..., Counter]) -> None:
    counter = make_counter(response_cache_seconds=0)
    await counter.cached.start()
    for _ in range(2):
        assert (await ask(counter))["http"] == 200

    assert len(counter.asked) == 2


async def test_unavailable_database_leads_to_uncached_answers(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> Any:
        raise DatabaseBusy

    for name in ("read", "write"):
        monkeypatch.setattr(counter.db, name, away)

    for _ in range(2):
        assert (await ask(counter))["http"] == 200
    assert len(counter.asked) == 2


@pytest.mark.parametrize(("said", "status"), [(True, 400), ({"ttl": 5}, 400), (False, 200), (None, 200)])
async def test_a_stream_is_not_cached(counter: Counter, said: Any, status: int) -> None:
    told = []

    async def emit(event: bytes) -> None:
        told.append(event)

    body = {"model": "m", **ASKED[CHAT], "temperature": 0, "cache": said}

    answer = await counter.cached.stream(Request(CHAT, body, "r", tenant="proj_1"), emit)

    assert answer.status == status
    assert bool(told) is (status == 200)
    assert all("cache" not in request.body for request in counter.asked)
