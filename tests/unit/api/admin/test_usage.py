"""The SDK reads usage and costs in buckets, by page, and gets a 400 for a query that means nothing."""

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.admin.usage import KINDS
from jobs.clock import now
from jobs.security.keys import create_admin_key
from jobs.security.tables import ApiKey
from jobs.usage import minutes
from jobs.usage.minutes import Amounts, UsageKey
from jobs.usage.prices import set_prices
from jobs.usage.tables import StoredBytesDay
from tests.unit.api.conftest import client_of

PACKAGED = "smollm2-135m-instruct"
DAY = 86_400
TODAY = int(now()) // DAY * DAY
START = TODAY - 3 * DAY
CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"


@pytest.fixture
def admin(app: FastAPI) -> TestClient:
    with app.state.services.db.write() as session:
        return client_of(app, create_admin_key(session))


@pytest.fixture
def used(app: FastAPI) -> FastAPI:
    """Return an app whose projects have used something, half of which is added up."""
    db = app.state.services.db
    with db.write() as session:
        session.add(ApiKey(id="aaaaaaaa", project_id="p", digest="", owner_id="user_ann", created_at=1.0))
        session.add(ApiKey(id="bbbbbbbb", project_id="q", digest="", owner_id="svc_acct_b", created_at=1.0))
        session.add(StoredBytesDay(day=START, project_id="p", bytes=4096))
        set_prices(session, PACKAGED, {"input": 1.5, "output": 3.0}, 0, actor="operator")
    work = [
        (UsageKey("p", "aaaaaaaa", PACKAGED, CHAT), Amounts(2, 100, 40, 10, 1), START + 60),
        (UsageKey("q", "bbbbbbbb", PACKAGED, CHAT, batch=True), Amounts(1, 7, 0, 3), START + DAY + 3600),
        (UsageKey("p", "aaaaaaaa", "all-minilm-l6-v2", EMBEDDINGS), Amounts(1, 9), START + 120),
        (UsageKey("p", "aaaaaaaa", "", "/v1/vector_stores/search", subject="vs_1"), Amounts(1), START + 120),
    ]
    for n, (key, amounts, at) in enumerate(work):
        with db.write() as session:
            minutes.record(session, key, amounts, at)
        if n == 1:
            with db.write() as session:
                minutes.fold(session, app.state.services.registry().resolve)
    return app


def get(client: TestClient, path: str, query: str = "") -> Any:
    answer = client.get(f"/v1/organization/{path}?start_time={START}&{query}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def results(page: Any) -> list[Any]:
    return [result for bucket in page["data"] for result in bucket["results"]]


def test_buckets_are_whole_days_and_empty_ones_are_listed(used: FastAPI, admin: TestClient) -> None:
    page = get(admin, "usage/completions", f"end_time={TODAY}")

    starts = [bucket["start_time"] for bucket in page["data"]]
    assert starts == [START, START + DAY, START + 2 * DAY]
    assert [bucket["end_time"] - bucket["start_time"] for bucket in page["data"]] == [DAY] * 3
    assert [len(bucket["results"]) for bucket in page["data"]] == [1, 1, 0]
    assert (page["object"], page["has_more"], page["next_page"]) == ("page", False, None)
    [first] = page["data"][0]["results"]
    assert first["object"] == "organization.usage.completions.result"
    assert (first["input_tokens"], first["input_cached_tokens"], first["input_uncached_tokens"]) == (100, 40, 60)
    assert (first["output_tokens"], first["num_model_requests"]) == (10, 2)
    assert {first[name] for name in ("project_id", "user_id", "api_key_id", "model", "batch", "service_tier")} == {None}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("group_by=project_id", [{"project_id": "p"}, {"project_id": "q"}]),
        ("group_by[]=user_id&group_by[]=batch", [
            {"user_id": "user_ann", "batch": False}, {"user_id": "svc_acct_b", "batch": True},
        ]),
        ("group_by=api_key_id,model", [
            {"api_key_id": "key_aaaaaaaa", "model": PACKAGED}, {"api_key_id": "key_bbbbbbbb", "model": PACKAGED},
        ]),
        ("group_by=service_tier&group_by=api_source", [{"service_tier": "default", "api_source": None}] * 2),
        ("project_ids=q,r", [{"input_tokens": 7}]),
        ("project_ids[]=q", [{"input_tokens": 7}]),
        ("user_ids[]=user_ann", [{"input_tokens": 100}]),
        ("api_key_ids=key_bbbbbbbb&api_key_ids=x", [{"input_tokens": 7}]),
        ("api_key_ids=bbbbbbbb", [{"input_tokens": 7}]),
        ("models=another", []),
        ("batch=true", [{"input_tokens": 7}]),
        ("batch=false&bucket_width=1h", [{"input_tokens": 100}]),
        (f"bucket_width=1m&limit=2&end_time={START + 600}", [{"input_tokens": 100}]),
    ],
)  # fmt: skip
def test_lists_group_and_filter_in_each_form(
    used: FastAPI, admin: TestClient, query: str, expected: list[dict[str, Any]]
) -> None:
    shown = results(get(admin, "usage/completions", query))

    assert [{name: row[name] for name in wanted} for row, wanted in zip(shown, expected, strict=True)] == expected


def test_pages_follow_each_other_while_usage_comes_in(used: FastAPI, admin: TestClient) -> None:
    first = get(admin, "usage/completions", "limit=1&group_by=model")
    with used.state.services.db.write() as session:
        minutes.record(session, UsageKey("p", "", PACKAGED, CHAT), Amounts(1, 1000), START + DAY)
    pages = [first]
    while pages[-1]["has_more"]:
        pages.append(get(admin, "usage/completions", f"limit=1&group_by=model&page={pages[-1]['next_page']}"))

    assert [bucket["start_time"] for page in pages for bucket in page["data"]] == list(range(START, TODAY + 1, DAY))
    assert [row["input_tokens"] for page in pages for row in results(page)] == [100, 1007]
    assert pages[-1]["next_page"] is None


def test_groups_of_costs_sum_up_to_the_whole_cost(used: FastAPI, admin: TestClient) -> None:
    whole = results(get(admin, "costs"))
    parts = results(get(admin, "costs", "group_by[]=line_item&group_by[]=project_id"))

    assert {row["object"] for row in whole} == {"organization.costs.result"}
    assert [row["amount"] for row in whole] == [
        {"value": (100 * 1.5 + 10 * 3) / 1e6, "currency": "usd"},
        {"value": 20 / 1e6, "currency": "usd"},  # of 7 * 1.5 + 3 * 3
    ]
    assert sum(row["amount"]["value"] for row in parts if row["amount"]) == pytest.approx(
        sum(row["amount"]["value"] for row in whole), abs=1e-12
    )
    by_item = {row["line_item"]: row for row in parts if row["project_id"] == "p"}
    assert (by_item[PACKAGED]["quantity"], by_item[PACKAGED]["quantity_unit"]) == (110, "tokens")
    assert by_item["all-minilm-l6-v2"]["amount"] is None
    filtered = results(get(admin, "costs", f"line_items[]={PACKAGED}&project_ids=q"))
    assert [row["amount"]["value"] for row in filtered] == [whole[1]["amount"]["value"]]


def test_other_kinds_show_their_own_sums(used: FastAPI, admin: TestClient) -> None:
    [embeddings] = results(get(admin, "usage/embeddings", "group_by=model"))
    [searches] = results(get(admin, "usage/file_search_calls", "group_by=vector_store_id"))
    [stores] = results(get(admin, "usage/vector_stores", "group_by=project_id"))

    assert (embeddings["input_tokens"], embeddings["model"]) == (9, "all-minilm-l6-v2")
    assert (searches["num_requests"], searches["vector_store_id"]) == (1, "vs_1")
    assert searches["object"] == "organization.usage.file_searches.result"
    assert (stores["usage_bytes"], stores["project_id"]) == (4096, "p")
    assert results(get(admin, "usage/vector_stores", "project_ids=q")) == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.path)
def test_each_kind_has_buckets(used: FastAPI, admin: TestClient, kind: Any) -> None:
    page = get(admin, kind.path, f"end_time={TODAY}&group_by={','.join(kind.dimensions)}")

    assert [bucket["object"] for bucket in page["data"]] == ["bucket"] * 3
    assert kind.show is not None or kind.path == "usage/vector_stores" or results(page) == []


@pytest.mark.parametrize(
    ("path", "query", "param"),
    [
        ("usage/completions", "", "start_time"),
        ("usage/completions", "start_time=-1", "start_time"),
        ("usage/completions", "start_time=1000000000000000000", "start_time"),
        ("usage/completions", f"start_time={TODAY + 2 * DAY}", "start_time"),
        ("usage/completions", f"start_time={START}&end_time={START}", "end_time"),
        ("usage/completions", "start_time=NaN", "start_time"),
        ("usage/completions", "start_time=1&bucket_width=2d", "bucket_width"),
        ("usage/completions", "start_time=1&limit=32", "limit"),
        ("usage/completions", "start_time=1&limit=0", "limit"),
        ("usage/completions", "start_time=1&bucket_width=1m&limit=1441", "limit"),
        ("usage/completions", "start_time=1&bucket_width=1h&limit=169", "limit"),
        ("costs", "start_time=1&limit=181", "limit"),
        ("costs", "start_time=1&bucket_width=1h", "bucket_width"),
        ("costs", "start_time=1&group_by=model", "group_by"),
        ("costs", "start_time=1&models=m", "models"),
        ("usage/embeddings", "start_time=1&batch=true", "batch"),
        ("usage/embeddings", "start_time=1&group_by[]=batch", "group_by"),
        ("usage/completions", "start_time=1&group_by=", "group_by"),
        ("usage/completions", "start_time=1&page=x", "page"),
        ("usage/completions", "start_time=1&page=" + "9" * 400, "page"),
        ("usage/completions", "start_time=1&" + "&".join(f"models[]={n}" for n in range(101)), "models"),
        ("usage/vector_stores", "start_time=1&user_ids=a", "user_ids"),
    ],
)
def test_query_that_means_nothing_is_refused(admin: TestClient, path: str, query: str, param: str) -> None:
    answer = admin.get(f"/v1/organization/{path}?{query}")

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_page_of_another_query_is_refused(used: FastAPI, admin: TestClient) -> None:
    page = get(admin, "usage/completions", "limit=1")["next_page"]

    for query in (f"page={page}&group_by=model", f"page={page}&batch=true", f"page={page}&bucket_width=1h"):
        answer = admin.get(f"/v1/organization/usage/completions?start_time={START}&limit=1&{query}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "page")
    assert admin.get(f"/v1/organization/costs?start_time={START}&page={page}").status_code == 400
    assert len(get(admin, "usage/completions", f"limit=2&page={page}")["data"]) == 2


def test_project_key_reads_no_usage(client: TestClient) -> None:
    answer = client.get(f"/v1/organization/usage/completions?start_time={START}")

    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "admin_key_required")


# -- the SDK


@pytest.fixture
def sdk() -> ModuleType:
    openai = pytest.importorskip("openai")
    if not hasattr(openai.OpenAI, "admin"):
        pytest.skip("this version of the SDK has no admin API")
    return openai


@pytest.fixture
def organization(sdk: ModuleType, used: FastAPI, admin: TestClient) -> Iterator[Any]:
    transport = httpx.MockTransport(lambda request: _forward(admin, request))
    key = admin.headers["Authorization"].removeprefix("Bearer ")
    with sdk.OpenAI(
        admin_api_key=key, base_url="http://testserver/v1", http_client=httpx.Client(transport=transport), max_retries=0
    ) as made:
        yield made.admin.organization


def _forward(admin: TestClient, request: httpx.Request) -> httpx.Response:
    answer = admin.request(request.method, str(request.url), headers=dict(request.headers))
    return httpx.Response(answer.status_code, headers={"content-type": "application/json"}, content=answer.content)


def test_sdk_reads_every_method(organization: Any) -> None:
    for kind in KINDS:
        method = getattr(organization.usage, kind.path.rpartition("/")[2])
        page = method(start_time=START, end_time=TODAY, limit=2)
        assert (page.object, page.has_more, len(page.data)) == ("page", True, 2), kind.path
        following = method(start_time=START, end_time=TODAY, limit=2, page=page.next_page)
        assert (following.has_more, following.next_page, len(following.data)) == (False, None, 1), kind.path


def test_sdk_has_a_class_for_each_result(organization: Any) -> None:
    usage, names = organization.usage, []
    for page in (
        usage.completions(start_time=START, group_by=["model", "project_id"], project_ids=["p"], batch=False),
        usage.embeddings(start_time=START),
        usage.file_search_calls(start_time=START),
        usage.vector_stores(start_time=START),
        usage.costs(start_time=START, group_by=["line_item"], line_items=[PACKAGED]),
    ):
        results = itertools.chain.from_iterable(bucket.results for bucket in page.data)
        names += [type(result).__name__ for result in itertools.islice(results, 1)]

    kinds = ("Completions", "Embeddings", "FileSearches", "VectorStores")
    assert [name.removeprefix("DataResultOrganization") for name in names] == [
        *(f"Usage{kind}Result" for kind in kinds), "CostsResult",
    ]  # fmt: skip


def test_days_are_those_of_utc() -> None:
    assert datetime.fromtimestamp(START, UTC).hour == 0
