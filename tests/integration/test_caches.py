"""The caches through the official SDK, for interactive clients and lines of batches: hits, and deletions."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from sqlalchemy import func, select

from jobs.clock import now
from jobs.db.engine import Database
from jobs.files.tables import File
from jobs.inference.tables import CacheEntry
from jobs.ledger.tables import Audit, Job
from jobs.platform.storage import DiskStorage
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import InlineDeployment, chat_line, jsonl, running
from tests.support.interactive_api import MODEL, Shop
from workers.dispatcher.retention import Retention

pytestmark = pytest.mark.verify

_HELLO: Any = [{"role": "user", "content": "Hello"}]
_CACHED: Any = {"temperature": 0, "extra_body": {"cache": True}}


@pytest.fixture
def shop(make_shop: Callable[..., Shop]) -> Iterator[Shop]:
    made = make_shop()
    with made.open():
        yield made


def _entries(db: Database) -> int:
    with db.read() as session:
        return int(session.scalar(select(func.count()).select_from(CacheEntry)) or 0)


def _receipts(db: Database, action: str) -> list[Any]:
    with db.read() as session:
        rows = session.scalars(select(Audit).where(Audit.action == action).order_by(Audit.id))
        return [(row.target, row.details) for row in rows]


def _delete_cache(shop: Shop, client: openai.OpenAI | None = None) -> Any:
    said = httpx2.delete(
        f"{shop.url}/cache", headers={"Authorization": f"Bearer {(client or shop.client).api_key}"}, timeout=20
    )
    assert said.status_code == 200
    return said.json()


def test_cached_vectors_are_returned_only_to_their_project(shop: Shop) -> None:
    stranger = shop.stranger()
    embed = shop.client.embeddings.create
    first = embed(model=MODEL, input="one")
    shop.response_cache.flush()
    mixed = embed(model="gpt-4o-mini", input=["one", "two"])
    theirs = stranger.embeddings.create(model=MODEL, input="one")

    assert shop.asked == ["one", "two", "one"]
    assert mixed.data[0].embedding == first.data[0].embedding == theirs.data[0].embedding
    assert mixed.usage.prompt_tokens == mixed.usage.total_tokens == 2
    assert mixed.usage.model_extra == {"prompt_tokens_details": {"cached_tokens": 1}}
    assert not theirs.usage.model_extra


def test_cached_chat_is_returned_only_to_its_project_on_request(shop: Shop) -> None:
    ask = shop.client.chat.completions.create
    first = ask(model=MODEL, messages=_HELLO, **_CACHED)
    shop.response_cache.flush()
    again = ask(model=MODEL, messages=_HELLO, **_CACHED)
    shop.stranger().chat.completions.create(model=MODEL, messages=_HELLO, **_CACHED)
    ask(model=MODEL, messages=_HELLO, temperature=0)

    assert shop.asked == ["Hello"] * 3
    assert again.choices == first.choices
    assert again.id != first.id
    assert again.model_extra == {"cached": True}
    assert again.usage
    assert first.usage
    assert again.usage.prompt_tokens_details
    assert again.usage.prompt_tokens_details.cached_tokens == first.usage.prompt_tokens


def test_unstored_response_is_answered_from_cache(shop: Shop) -> None:
    ask = shop.client.responses.create
    first = ask(model=MODEL, input="Hello", store=False, metadata={"who": "anna"}, **_CACHED)
    shop.response_cache.flush()
    again = ask(model=MODEL, input="Hello", store=False, **_CACHED)

    assert shop.asked == ["Hello"]
    assert again.output_text == first.output_text
    assert again.id != first.id
    assert again.metadata == {}
    assert again.usage
    assert again.usage.input_tokens_details.cached_tokens == again.usage.input_tokens


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"store": True},
        {"background": True},
        {"store": False, "stream": True},
        {"store": False, "previous_response_id": "resp_x"},
        {"store": False, "conversation": "conv_x"},
        {"store": False, "temperature": 1},
    ],
)
def test_uncacheable_response_is_refused(shop: Shop, body: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        shop.client.responses.create(**{"model": MODEL, "input": "Hello", **_CACHED, **body})

    assert caught.value.param == "cache"
    assert shop.asked == []


def test_a_stream_that_is_to_be_cached_is_refused_with_a_status(shop: Shop) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        shop.client.chat.completions.create(model=MODEL, messages=_HELLO, stream=True, **_CACHED)

    assert caught.value.param == "cache"
    assert "stream" in caught.value.message


def test_a_project_clears_its_cache_and_the_audit_log_says_so(shop: Shop) -> None:
    stranger, db = shop.stranger(), shop.app.state.services.db
    for client in (shop.client, stranger):
        client.embeddings.create(model=MODEL, input="one")
        client.chat.completions.create(model=MODEL, messages=_HELLO, **_CACHED)
    shop.response_cache.flush()
    del shop.asked[:]

    said = _delete_cache(shop)
    Retention(shop.app.state.services.config, db, shop.app.state.services.storage).run()
    left = _entries(db)
    for client in (shop.client, stranger):
        client.embeddings.create(model=MODEL, input="one")
        client.chat.completions.create(model=MODEL, messages=_HELLO, **_CACHED)

    assert said == {"object": "cache.deleted", "deleted": True, "entries": 2}
    assert shop.asked == ["one", "Hello"], "the other project's is still there"
    [(project, details)] = _receipts(db, "cache.delete")
    assert details == {"entries": 2}
    assert left == 2
    assert _receipts(db, "cache.purge") == [(project, {"entries": 2})]


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def inline(db: Database, tmp_path: Path, asked: list[str]) -> Iterator[InlineDeployment]:
    with running(db, tmp_path, FakeEngine((MODEL,), on_prompt=asked.append), lease_seconds=60) as made:
        yield made


def _file(inline: InlineDeployment, name: str = "file-in") -> str:
    facts = {"purpose": "batch", "filename": "f", "bytes": 1, "path": f"files/{name}", "created_at": now()}
    with inline.db.write() as session:
        session.add(File(id=name, project_id="proj_x", **facts))
    return name


def _run(inline: InlineDeployment, content: bytes, **fields: Any) -> tuple[Job, list[Any], list[Any]]:
    [job] = inline.drain(inline.submit(content, **fields))
    inline.response_cache.flush()
    return job, *(sorted(lines, key=lambda line: line["custom_id"]) for lines in inline.results(job))


def test_lines_of_later_batches_are_answered_from_the_cache_and_say_so(
    inline: InlineDeployment, asked: list[str]
) -> None:
    lines = [chat_line(f"c{n}", f"prompt {n}", temperature=0, cache={"ttl": 600}) for n in range(20)]
    first, before, _ = _run(inline, jsonl(lines))
    del asked[:]
    lines += [chat_line("new", "prompt new", temperature=0, cache=True)]
    second, after, _ = _run(inline, jsonl(lines))
    third, _, _ = _run(inline, jsonl(lines), project="strangers")

    bodies = [[line["response"]["body"] for line in some] for some in (before, after)]
    assert asked[:1] == ["prompt new"]
    assert len(asked) == 1 + 21
    assert [body["choices"] for body in bodies[0]] == [body["choices"] for body in bodies[1][:20]]
    assert [body.get("cached") for body in bodies[1]] == [True] * 20 + [None]
    assert not {body["id"] for body in bodies[0]} & {body["id"] for body in bodies[1]}
    assert second.input_tokens == third.input_tokens > first.input_tokens
    assert second.cached_tokens > first.input_tokens - 1
    assert third.cached_tokens < third.input_tokens


def test_a_line_that_cannot_be_cached_is_a_line_s_error(inline: InlineDeployment, asked: list[str]) -> None:
    lines = [chat_line("good", "a", temperature=0, cache=True), chat_line("bad", "b", cache=True)]

    job, good, bad = _run(inline, jsonl(lines))

    assert (job.completed, job.failed, asked) == (1, 1, ["a"])
    assert [line["custom_id"] for line in good] == ["good"]
    assert bad[0]["response"]["status_code"] == 400
    assert bad[0]["response"]["body"]["error"]["param"] == "cache"


def test_a_second_batch_of_the_same_texts_embeds_nothing(inline: InlineDeployment, asked: list[str]) -> None:
    url = "/v1/embeddings"
    lines = [
        {"custom_id": f"c{n}", "method": "POST", "url": url, "body": {"model": MODEL, "input": f"text {n}"}}
        for n in range(20)
    ]
    first, before, _ = _run(inline, jsonl(lines), endpoint=url)
    second, after, _ = _run(inline, jsonl(lines), endpoint=url)

    assert len(asked) == 20
    assert [line["response"]["body"]["data"][0]["index"] for line in after] == [0] * 20
    vectors = [[line["response"]["body"]["data"][0]["embedding"] for line in some] for some in (before, after)]
    assert vectors[1] == [pytest.approx(vector, abs=1e-7) for vector in vectors[0]]
    assert (second.input_tokens, second.cached_tokens) == (first.input_tokens, first.input_tokens)
    assert first.cached_tokens == 0


@pytest.mark.parametrize("which", ["input", "output"])
def test_cache_entry_of_batch_is_purged_with_its_files(
    inline: InlineDeployment, storage: DiskStorage, asked: list[str], which: str
) -> None:
    lines = jsonl([chat_line("a", "secret", temperature=0, cache=True)])
    job, _, _ = _run(inline, lines, input_file_id=_file(inline))
    _run(inline, lines)
    assert asked == ["secret"]
    deleted = str(job.input_file_id if which == "input" else job.output_file_id)

    with inline.db.write() as session:
        session.get_one(File, deleted).deleted_at = now()
    _run(inline, lines)

    assert asked == ["secret"] * 2, "it is not found from the moment on"
    with inline.db.write() as session:
        session.get_one(CacheEntry, session.scalars(select(CacheEntry.key)).one()).job_id = job.id
    Retention(inline.config, inline.db, storage).run()
    assert _entries(inline.db) == 0
    assert [target for target, _ in _receipts(inline.db, "cache.purge")] == [deleted]
    with inline.db.read() as session:
        assert session.get(File, deleted) is None
