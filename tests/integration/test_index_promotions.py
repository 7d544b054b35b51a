"""Promotions of indexes to their end: a store's searches by the incumbent and by the candidate are compared."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError
from sqlalchemy import delete

from jobs.clock import now
from jobs.db.engine import Database
from jobs.retrieval.tables import VectorStore, VectorStoreFile
from tests.integration.test_measured_runs import TEXTS, fill, ranking, store_of
from tests.support.eval_client import World, evaluating
from tests.support.inline_deployment import MODEL, jsonl
from tests.support.promotion_requests import NOT_WORSE

#: Each file has the text of another one, so that no search finds what is relevant.
WORSE = dict(zip(TEXTS, (*list(TEXTS.values())[1:], TEXTS["kiwi"]), strict=True))
INDEX = "vsi_candidate"


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Iterator[World]:
    with evaluating(db, tmp_path, schema={"type": "object"}, vectors_url="memory:") as world:
        yield world


@pytest.fixture
def store_id(world: World) -> str:
    """Return a store whose searches find what is relevant, with another index that never finds it."""
    store_id = store_of(world)
    with world.inline.db.write() as session:
        store = session.get_one(VectorStore, store_id)
        index = VectorStore(
            id=INDEX,
            project_id=store.project_id,
            parent_id=store_id,
            name="",
            model=MODEL,
            dimensions=0,
            chunking=store.chunking,
            created_at=now(),
            active_at=store.active_at,
        )
        session.add(index)
    fill(world, INDEX, WORSE)
    return store_id


def promote(world: World, store_id: str, index_id: str, **fields: Any) -> Any:
    """Return the end of the promotion of an index, by default by the recall of its searches for 20 items."""
    if not fields:
        rows = [
            {"item": {"query": text, "relevant": [name], "asked_by": f"user {n}"}}
            for name, text in TEXTS.items()
            for n in range(5)
        ]
        file = world.client.files.create(file=("queries.jsonl", jsonl(rows)), purpose="evals")
        items = {"type": "file_id", "id": file.id}
        source = {"type": "retrieval", "source": items, "vector_store_id": store_id, "query": "{{ item.query }}"}
        gate = {"eval_id": world.eval(ranking("recall", 1)), "data_source": source, "rule": NOT_WORSE}
        fields = {"gates": [gate]}
    target = {"type": "index", "id": store_id, "index_id": index_id}
    made: Any = world.client.post("/promotions", body={"target": target, **fields}, cast_to=object)
    world.inline.drain(made["id"], timeout=60)
    return world.client.get(f"/promotions/{made['id']}", cast_to=object)


def current(world: World, store_id: str) -> str:
    with world.inline.db.read() as session:
        return session.get_one(VectorStore, store_id).current_id


def test_worse_index_is_refused_and_the_better_index_is_promoted(world: World, store_id: str) -> None:
    refused = promote(world, store_id, INDEX)
    assert (refused["status"], refused["error"]["code"], current(world, store_id)) == (
        "refused",
        "gate_failed",
        store_id,
    )
    forced = promote(world, store_id, INDEX, force=True, reason="its model is cheaper")
    assert (forced["status"], current(world, store_id)) == ("promoted", INDEX)

    promoted = promote(world, store_id, store_id)

    assert (promoted["status"], promoted["incumbent"], current(world, store_id)) == ("promoted", INDEX, store_id)
    recall = promoted["gates"][0]["report"]["criteria"][1]
    assert (recall["incumbent"], recall["candidate"], recall["items"]) == (0.0, 1.0, 20)


def test_index_that_lacks_files_is_no_candidate(world: World, store_id: str) -> None:
    with world.inline.db.write() as session:
        session.execute(delete(VectorStoreFile).where(VectorStoreFile.store_id == INDEX, VectorStoreFile.id == "kiwi"))

    with pytest.raises(BadRequestError, match="lacks files of the store: sync it first"):
        promote(world, store_id, INDEX, force=True, reason="trial")

    with pytest.raises(BadRequestError, match="The vector store has no index 'vsi_none'"):
        promote(world, store_id, "vsi_none", force=True, reason="trial")
    assert current(world, store_id) == store_id
