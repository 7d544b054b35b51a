"""The official SDK gets what a console shows: explanations, results, throughput, keys."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi import FastAPI

from jobs.db.engine import Database
from jobs.security.keys import create_admin_key
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import MODEL, InlineDeployment, chat_line, jsonl, running
from tests.support.web import make_key, running_app, serve

EMBEDDER = "all-minilm-l6-v2"


@pytest.fixture
def inline(db: Database, tmp_path: Path) -> Iterator[InlineDeployment]:
    with running(db, tmp_path, FakeEngine((MODEL,))) as inline:
        yield inline


@pytest.fixture
def web(inline: InlineDeployment, db: Database, tmp_path: Path) -> Iterator[FastAPI]:
    with running_app(tmp_path, db.url) as app:
        yield app


@pytest.fixture
def url(web: FastAPI) -> Iterator[str]:
    with serve(web) as url:
        yield f"{url}/v1"


@pytest.fixture
def sdk(web: FastAPI, url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=make_key(web, manages=True), base_url=url) as client:
        yield client


def get(sdk: openai.OpenAI, path: str, **query: Any) -> Any:
    return sdk.get(path, cast_to=object, options={"params": query})


def test_batch_is_explained_and_its_results_carry_their_requests(sdk: openai.OpenAI, inline: InlineDeployment) -> None:
    lines = [chat_line(f"c{n}", f"question {n}") for n in range(5)]
    file = sdk.files.create(file=("input.jsonl", jsonl(lines)), purpose="batch")
    batch = sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    waiting = get(sdk, f"/jobs/{batch.id}/explain")
    inline.drain(batch.id)

    explained = get(sdk, f"/jobs/{batch.id}/explain")
    first = get(sdk, f"/jobs/{batch.id}/results", format="json", limit=3)
    second = get(sdk, f"/jobs/{batch.id}/results", format="json", limit=3, after=first["last_id"])
    query = {"params": {"format": "csv", "custom_id": "c4"}}
    table = sdk.get(f"/jobs/{batch.id}/results", cast_to=str, options=query)
    series = get(sdk, "/throughput")

    assert [reason["type"] for reason in waiting["reasons"]].count("wait") >= 1
    assert explained["reasons"][0]["code"] == "finish_reasons"
    rows = first["data"] + second["data"]
    assert [(row["custom_id"], row["prompt"]) for row in rows] == [(f"c{n}", f"question {n}") for n in range(5)]
    assert all(row["answer"] for row in rows)
    assert (first["has_more"], second["has_more"]) == (True, False)
    [row] = csv.DictReader(io.StringIO(table, newline=""))
    assert (row["custom_id"], row["answer"]) == ("c4", rows[4]["answer"])
    assert sum(bucket["lines"] for bucket in series["data"]) == 5
    assert sum(bucket["output_tokens"] for bucket in series["data"]) > 0


def test_a_project_makes_its_own_keys_and_reads_its_audit_log(sdk: openai.OpenAI, url: str) -> None:
    made: Any = sdk.post("/api_keys", cast_to=object)
    with openai.OpenAI(api_key=made["value"], base_url=url, max_retries=0) as other:
        assert other.files.list().data == []
        with pytest.raises(openai.PermissionDeniedError) as refused:
            other.post("/api_keys", cast_to=object)
        other.delete(f"/api_keys/{made['id']}", cast_to=object)

    assert refused.value.code == "missing_scope"
    types = [row["type"] for row in get(sdk, "/audit_logs", target=made["id"])["data"]]
    assert types == ["key.revoke", "key.create"]


def test_only_an_operators_key_steers_and_it_opens_no_project(
    sdk: openai.OpenAI, url: str, web: FastAPI, inline: InlineDeployment
) -> None:
    with web.state.services.db.write() as session:
        key = create_admin_key(session)
    with openai.OpenAI(api_key=key, base_url=url, max_retries=0) as operator:
        paused: Any = operator.post("/pauses", cast_to=object, body={"kind": "model", "name": EMBEDDER})
        listed: Any = operator.get("/workers", cast_to=object)
        with pytest.raises(openai.PermissionDeniedError) as no_project:
            operator.files.list()
    with pytest.raises(openai.PermissionDeniedError) as no_operator:
        sdk.get("/workers", cast_to=object)
    models = {model["id"]: model for model in get(sdk, "/models", include="serving")["data"]}

    assert (paused["changed"], listed["object"]) == (True, "list")
    assert (no_project.value.code, no_operator.value.code) == ("admin_key_not_allowed", "admin_key_required")
    assert models[EMBEDDER]["serving"]["state"] == "paused"
