"""Test prompts that are too long and answers of a schema, through the official SDK.

They come as whole answers, as streams, in the background and in batches, and with workers of other queues over the real
Redis.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet import workers
from jobs.inference.interactive import PRIORITY
from jobs.retrieval import searches
from jobs.settings import Settings
from tests.support.fake_engine import FakeEngine, prompt_of, reply
from tests.support.inline_deployment import MODEL, InlineDeployment, chat_line, jsonl, running
from tests.support.interactive_api import Shop
from tests.support.web import make_key, running_app, serve
from tests.support.worker_rows import worker_row
from workers.engines.port import Answer, Engine, Length, Request, refusal
from workers.inference.consumer import InteractiveConsumer
from workers.inference.model_router import ModelRouter
from workers.inference.peer_client import PeerClient
from workers.middleware.context_window import ContextWindow, ModelRouting
from workers.middleware.json_schema import JsonSchemaMiddleware
from workers.middleware.schema_checker import SchemaChecker
from workers.runtime.context import Pool, build
from workers.runtime.engine_host import EngineHost

pytestmark = pytest.mark.verify

LIMIT = 100
LARGE, EMBED = "large", "emb"
_SOURCE = '{urls: ["http://127.0.0.1:9/v1"]}'
_MODELS_FILE = f"""
models:
  {MODEL}: {{source: {_SOURCE}, engine: http, endpoints: [/v1/chat/completions]}}
  {LARGE}: {{source: {_SOURCE}, engine: http, queue: gpu.large, endpoints: [/v1/chat/completions]}}
  {EMBED}: {{source: {_SOURCE}, engine: http, queue: gpu.vectors, endpoints: [/v1/embeddings]}}
"""
LONG: Any = [
    {"role": "user", "content": f"{topic} " * 20} for topic in ("cats", "dogs", "birds", "fish", "mice", "bees")
]
SCHEMA: Any = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "number", "schema": SCHEMA, "strict": True}}
SLIDING = {"context": {"strategy": "sliding_window"}}


def _words(request: Request) -> int:
    return len(prompt_of(request.url, request.body).split())


async def _measure(request: Request) -> Length:
    return Length(_words(request), LIMIT)


def _small(request: Request) -> Answer | None:
    """Make a model that takes a hundred words, and answers as it is told to where a schema is requested."""
    if request.url == "/v1/embeddings":
        return None
    if _words(request) > LIMIT:
        return refusal(400, f"This model's maximum context length is {LIMIT} tokens.", param="input_tokens")
    if "response_format" not in request.body:
        return None
    plain = reply(request.url, request.body, "")
    first = request.body["messages"][0]["content"]
    says = "four" if len(request.body["messages"]) == 1 or first == "never" else "4"
    body = json.loads(plain.body)
    body["choices"][0]["message"]["content"] = f'{{"n": {json.dumps(says) if says == "four" else says}}}'
    return Answer(200, json.dumps(body).encode(), plain.usage)


class Alone:
    """No other workers."""

    async def route(self, request: Request, emit: Any) -> Answer | Request:
        raise AssertionError

    async def piece_bytes(self, model: str | None) -> int:
        raise AssertionError

    async def embed(self, request: Request, model: str | None, texts: list[str]) -> Any:
        raise AssertionError


def _around(fake: FakeEngine, others: ModelRouting | None = None) -> Engine:
    return ContextWindow(JsonSchemaMiddleware(fake, SchemaChecker()), _measure, others or Alone())


@pytest.fixture
def shop(make_shop: Callable[..., Shop]) -> Iterator[Shop]:
    made = make_shop(engine={"fault": _small}, around=_around)
    with made.open():
        yield made


def _chat(shop: Shop, messages: Any = LONG, **extra: Any) -> Any:
    return shop.client.chat.completions.create(model=MODEL, messages=messages, max_tokens=10, extra_body=extra)


def test_a_chat_that_is_too_long_is_refused_or_cut_as_it_asks(shop: Shop) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        _chat(shop)
    with pytest.raises(openai.BadRequestError) as odd:
        _chat(shop, context={"strategy": "forget"})
    cut = _chat(shop, **SLIDING)
    short = _chat(shop, LONG[:2], **SLIDING)

    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")
    assert odd.value.param == "context.strategy"
    assert cut.context == {
        "strategy": "sliding_window", "dropped_messages": 2, "prompt_tokens_before": 120, "prompt_tokens": 80,
    }  # fmt: skip
    assert not hasattr(short, "context")
    assert shop.asked[-2].split("\n")[0].split()[0] == "birds"


def test_streams_say_it_too(shop: Shop) -> None:
    chunks = list(
        shop.client.chat.completions.create(model=MODEL, messages=LONG, max_tokens=10, stream=True, extra_body=SLIDING)
    )
    with shop.client.responses.create(model=MODEL, input=LONG, truncation="auto", stream=True) as stream:
        events = list(stream)
    with pytest.raises(openai.BadRequestError) as refused:
        shop.client.chat.completions.create(model=MODEL, messages=LONG, stream=True)

    assert chunks[0].context["dropped_messages"] == 2  # type: ignore[attr-defined]
    assert events[-1].response.context["dropped_messages"] == 3  # type: ignore[union-attr]
    assert events[-1].response.truncation == "auto"  # type: ignore[union-attr]
    assert refused.value.code == "context_length_exceeded"


def test_stored_response_retains_whole_conversation_and_context_strategy(shop: Shop) -> None:
    first = shop.client.responses.create(model=MODEL, input=LONG[:4])
    with pytest.raises(openai.BadRequestError) as refused:
        shop.client.responses.create(model=MODEL, input=LONG[4:], previous_response_id=first.id)
    second = shop.client.responses.create(
        model=MODEL, input=LONG[4:], previous_response_id=first.id, extra_body={"context": {"strategy": "rotate"}}
    )

    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")
    assert shop.client.responses.retrieve(second.id).context["strategy"] == "rotate"  # type: ignore[attr-defined]
    assert len(list(shop.client.responses.input_items.list(second.id))) == 7


def test_summaries_are_in_the_usage(shop: Shop) -> None:
    answer = _chat(shop, LONG, context={"strategy": "summarize", "summary_tokens": 16})

    made = answer.context["summary_requests"]
    assert made > 1
    assert len(shop.asked) == made + 1
    assert answer.usage.prompt_tokens > len(shop.asked[-1]) // 4 + 1


def test_answer_violating_schema_is_retried_and_then_failed(shop: Shop) -> None:
    def ask(text: str, **fields: Any) -> Any:
        messages: Any = [{"role": "user", "content": text}]
        return shop.client.chat.completions.create(model=MODEL, messages=messages, response_format=FORMAT, **fields)

    good = ask("sometimes")
    with pytest.raises(openai.UnprocessableEntityError) as failed:
        ask("never")
    with pytest.raises(openai.APIError, match="does not match the requested schema") as cut:
        list(ask("a stream", stream=True))
    bad: Any = {"type": "json_schema", "json_schema": {"name": "number", "schema": {"type": "thing"}}}
    with pytest.raises(openai.BadRequestError) as none:
        shop.client.chat.completions.create(model=MODEL, messages=LONG[:1], response_format=bad)

    assert good.choices[0].message.content == '{"n": 4}'
    assert (failed.value.code, failed.value.param) == ("invalid_json_schema_output", "response_format")
    assert cut.value.code == "invalid_json_schema_output"
    assert none.value.code == "invalid_json_schema"
    assert len(shop.asked) == 5


@contextmanager
def _deployment(db: Database, folder: Path) -> Iterator[tuple[InlineDeployment, OpenAI]]:
    engine = _around(FakeEngine((MODEL,), fault=_small))
    with (
        running(db, folder, engine) as inline,
        running_app(folder, db.url) as app,
        serve(app) as url,
        OpenAI(base_url=f"{url}/v1", api_key=make_key(app), max_retries=0) as client,
    ):
        yield inline, client


def test_batch_lines_are_truncated_refused_and_checked_individually(db: Database, tmp_path: Path) -> None:
    lines = [
        chat_line("whole", "Hello"),
        chat_line("refused", "word " * 200),
        chat_line("cut", "", messages=LONG, max_tokens=10, **SLIDING),
        chat_line("odd", "Hello", context={"strategy": "forget"}),
        chat_line("summed", "", messages=LONG, max_tokens=10, context={"strategy": "summarize", "summary_tokens": 16}),
        chat_line("right", "sometimes", response_format=FORMAT),
        chat_line("wrong", "never", response_format=FORMAT),
    ]
    with _deployment(db, tmp_path) as (inline, client):
        file = client.files.create(file=("lines.jsonl", jsonl(lines)), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        inline.drain(batch.id)
        batch = client.batches.retrieve(batch.id)
        good = _by_id(client, str(batch.output_file_id))
        bad = _by_id(client, str(batch.error_file_id))

    assert (sorted(good), sorted(bad)) == (["cut", "right", "summed", "whole"], ["odd", "refused", "wrong"])
    assert good["cut"]["body"]["context"]["dropped_messages"] == 2
    errors = {name: (one["status_code"], one["body"]["error"]["code"], one["body"]["error"]["param"])
              for name, one in bad.items()}  # fmt: skip
    assert errors == {
        "odd": (400, "invalid_value", "context.strategy"),
        "refused": (400, "context_length_exceeded", "messages"),
        "wrong": (422, "invalid_json_schema_output", "response_format"),
    }
    assert batch.usage
    assert batch.usage.input_tokens > sum(one["body"]["usage"]["prompt_tokens"] for one in good.values())


def _by_id(client: OpenAI, file_id: str) -> dict[str, Any]:
    found = map(json.loads, client.files.content(file_id).text.splitlines())
    return {line["custom_id"]: line["response"] for line in found}


def test_in_the_background_it_is_the_same(db: Database, tmp_path: Path) -> None:
    with _deployment(db, tmp_path) as (inline, client):
        made = [
            client.responses.create(model=MODEL, input=LONG, background=True, extra_body=extra, max_output_tokens=10)
            for extra in (SLIDING, {})
        ]
        inline.drain(*(one.id for one in made))
        cut, refused = (client.responses.retrieve(one.id) for one in made)

    assert (cut.status, cut.context["dropped_messages"]) == ("completed", 2)  # type: ignore[attr-defined]
    assert refused.status == "failed"
    assert refused.error
    assert "maximum context length" in refused.error.message


@contextmanager
def _neighbours(shop: Shop, **engine: Any) -> Iterator[dict[str, list[str]]]:
    """Workers of the other two models, which take searches' line as every worker does; what each was asked."""
    asked: dict[str, list[str]] = {}
    with ExitStack() as stack:
        for queue, model in (("gpu.large", LARGE), ("gpu.vectors", EMBED)):
            prompts = asked[model] = []
            host = EngineHost(FakeEngine((model,), on_prompt=prompts.append, **engine), lambda: None)
            host.start()
            stack.callback(host.close)
            consumer = InteractiveConsumer(host, shop.redis_url, queue, handlers={searches.URL: _nothing})
            host.call(consumer.serve())
            stack.callback(lambda host=host, consumer=consumer: host.call(consumer.close()).result(30))
            with shop.app.state.services.db.write() as session:
                workers.register(session, worker_row(queue, queue, model, created_at=now(), seen_at=now()))
        yield asked


async def _nothing(question: Any, priority: int) -> Answer:
    raise AssertionError


@pytest.fixture
def town(make_shop: Callable[..., Shop], tmp_path: Path, sqlite_url: str, redis_url: str) -> Iterator[Shop]:
    """Make a shop whose worker knows where the other models are."""
    models = tmp_path / "town.yaml"
    models.write_text(_MODELS_FILE)
    with ExitStack() as stack:
        callers: list[PeerClient] = []

        def around(fake: FakeEngine) -> Engine:
            given: Any = {"streams_url": redis_url, "models_file": str(models), "database_url": sqlite_url}
            context = build(Settings(data_dir=tmp_path, **given), Pool("gpu", ("gpu.generate",), 2))
            stack.callback(context.db.close)
            stack.callback(context.heartbeat.leave)
            callers.append(PeerClient(context))
            return _around(fake, ModelRouter(context, callers[0], fake, "gpu.generate"))

        shop = make_shop(engine={"fault": _small}, around=around, models_file=str(models))
        stack.callback(lambda: shop.host.call(callers[0].close()).result(30))
        with shop.open():
            yield shop


def test_overlong_prompt_is_routed_to_model_of_other_queue(town: Shop) -> None:
    extra = {"context": {"route_long": LARGE}}
    with _neighbours(town) as asked:
        whole = _chat(town, **extra)
        chunks = list(town.client.chat.completions.create(model=MODEL, messages=LONG, stream=True, extra_body=extra))
    with pytest.raises(openai.BadRequestError) as unknown:
        _chat(town, context={"route_long": "nobody"})

    assert (whole.model, whole.context["routed_from"]) == (LARGE, MODEL)
    assert (chunks[0].model, chunks[0].context["routed_to"]) == (LARGE, LARGE)
    assert len(chunks) > 2
    assert len(asked[LARGE]) == 2
    assert town.asked == []
    assert unknown.value.param == "context.route_long"


def test_routed_batch_line_has_no_interactive_priority(town: Shop) -> None:
    shown: list[tuple[bool, str | None]] = []

    def look(request: Request) -> Answer | None:
        shown.append((request.priority == PRIORITY, request.job_id))
        return None

    body = {"model": MODEL, "messages": LONG, "max_tokens": 10, "context": {"route_long": LARGE}}
    line = Request("/v1/chat/completions", body, "r1", 5, "p", "batch_1")
    with _neighbours(town, fault=look):
        _chat(town, context={"route_long": LARGE})
        answer = town.host.call(town.host.engine.answer(line)).result(30)

    assert answer.status == 200
    assert shown == [(True, None), (False, "batch_1")]


def test_missing_workers_of_other_model_return_503(town: Shop) -> None:
    for context in ({"route_long": LARGE}, {"strategy": "memory"}):
        with pytest.raises(openai.InternalServerError) as away:
            _chat(town, context=context)
        assert (away.value.status_code, away.value.code) == (503, "engine_busy")


def test_missing_vectors_of_embedding_model_fail_memory_strategy(town: Shop) -> None:
    few = reply("/v1/embeddings", {"model": EMBED, "input": ["one"]}, "one")
    with _neighbours(town, fault=lambda _: few), pytest.raises(openai.InternalServerError) as failed:
        _chat(town, context={"strategy": "memory"})

    assert (failed.value.status_code, failed.value.code) == (502, "embedding_failed")


def test_turns_are_recalled_by_vectors_of_another_worker(town: Shop) -> None:
    messages = [*LONG, {"role": "user", "content": "What of the dogs and the bees?"}]

    with _neighbours(town) as asked:
        answer = _chat(town, messages, context={"strategy": "memory"})
    with pytest.raises(openai.BadRequestError) as unknown:
        _chat(town, messages, context={"strategy": "memory", "embedding_model": MODEL})

    assert answer.context["recalled_turns"] == 4
    recalled = [line.split()[0] for line in town.asked[0].split("\n")]
    assert {"dogs", "bees"} < set(recalled)
    assert recalled[-1] == "What"
    assert len(asked[EMBED]) == 1
    assert (unknown.value.param, unknown.value.code) == ("context.embedding_model", "model_not_supported")
