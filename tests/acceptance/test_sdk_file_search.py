"""Responses that search files through the official SDK's asynchronous client: all the ways of asking, at once.

The versions of the SDK and the one for node have a check for each way (`tests/sdk/stores.py`).
"""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response

from jobs.db.engine import Database
from tests.sdk.deployment import Deployment, deployed
from tests.support.inline_deployment import MODEL

pytestmark = pytest.mark.timeout(120)
TEXTS = {"leave.md": "Everybody has thirty days of leave.", "travel.md": "Trains are booked by the office."}
#: By what is asked: the file that has the words. `!cite` makes the fake engine name the first excerpt.
QUESTIONS = {"How many days of leave? !cite": "leave.md", "Who books trains? !cite": "travel.md"}
RESULTS: Any = ["file_search_call.results"]
#: The fake engine's vectors say nothing of meaning.
BY_WORDS: Any = {"hybrid_search": {"embedding_weight": 0, "text_weight": 1}}


@pytest.fixture
def deployment(db: Database, tmp_path: Path) -> Iterator[Deployment]:
    with deployed(tmp_path, db) as deployment:
        yield deployment


def test_files_are_searched_and_cited_in_every_request_mode(deployment: Deployment) -> None:
    facts = deployment.facts("file_search")

    async def ask() -> None:
        async with openai.AsyncOpenAI(api_key=facts["key"], base_url=f"{facts['url']}/v1") as client:
            store = await client.vector_stores.create(name="handbook")
            texts = [(name, text.encode()) for name, text in TEXTS.items()]
            done = await client.vector_stores.file_batches.upload_and_poll(store.id, files=texts)
            assert done.file_counts.completed == len(TEXTS)
            ways = (_whole, _streamed, _in_the_background, _in_a_batch)
            await asyncio.gather(*(way(client, store.id, asked) for way in ways for asked in QUESTIONS))

    asyncio.run(ask())
    assert deployment.inline.errors == []


def _asking(store: str, asked: str) -> dict[str, Any]:
    tool = {"type": "file_search", "vector_store_ids": [store], "max_num_results": 1, "ranking_options": BY_WORDS}
    return {"model": MODEL, "input": asked, "tools": [tool], "include": RESULTS}


async def _whole(client: openai.AsyncOpenAI, store: str, asked: str) -> None:
    _check(await client.responses.create(**_asking(store, asked)), asked)


async def _streamed(client: openai.AsyncOpenAI, store: str, asked: str) -> None:
    async with client.responses.stream(**_asking(store, asked)) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()

    assert "response.file_search_call.searching" in kinds
    assert "response.output_text.annotation.added" in kinds
    _check(final, asked)


async def _in_the_background(client: openai.AsyncOpenAI, store: str, asked: str) -> None:
    made = await client.responses.create(**_asking(store, asked), background=True)
    while made.status in ("queued", "in_progress"):
        await asyncio.sleep(0.05)
        made = await client.responses.retrieve(made.id, include=RESULTS)

    _check(made, asked)


async def _in_a_batch(client: openai.AsyncOpenAI, store: str, asked: str) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": _asking(store, asked)}
    file = await client.files.create(file=("input.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = await client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
    while batch.completed_at is None:
        await asyncio.sleep(0.05)
        batch = await client.batches.retrieve(batch.id)

    output = json.loads((await client.files.content(batch.output_file_id or "")).text)
    _check(Response.model_validate(output["response"]["body"]), asked)


def _check(response: Response, asked: str) -> None:
    call, message = response.output

    assert response.status == "completed"
    assert call.type == "file_search_call"
    assert message.type == "message"
    assert call.queries == [asked]
    assert [one.text for one in call.results or ()] == [TEXTS[QUESTIONS[asked]]]
    [part] = message.content
    assert part.type == "output_text"
    [citation] = part.annotations
    assert citation.type == "file_citation"
    assert (citation.filename, citation.index) == (QUESTIONS[asked], part.text.index("[1]"))
