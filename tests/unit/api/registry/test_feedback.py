"""Feedback over HTTP: given to each kind of answer, replaced, listed, summed up by model and deleted."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from jobs.evals.tables import EvalRun
from jobs.inference.tables import StoredCompletion
from jobs.ledger.tables import Audit, Job
from jobs.registry import feedback
from jobs.security import keys
from tests.support.web import make_key, store_completion, store_response
from tests.unit.api.conftest import client_of
from tests.unit.api.test_openapi import graded_run

PATH = "/v1/feedback"
Target = dict[str, Any]


def rate(client: TestClient, target: Target, score: float = 1, **fields: Any) -> dict[str, Any]:
    answer = client.post(PATH, json={"target": target, "score": score, **fields})
    assert answer.status_code == 200, answer.text
    saved: dict[str, Any] = answer.json()
    return saved


def ids(client: TestClient, **query: Any) -> list[str]:
    return [row["id"] for row in client.get(PATH, params=query).json()["data"]]


def chat(app: FastAPI, **facts: Any) -> Target:
    return {"type": "chat.completion", "completion_id": store_completion(app, **facts)}


def batch(app: FastAPI, client: TestClient) -> Target:
    body = {"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"}
    batch_id = client.post("/v1/batches", json=body).json()["id"]
    with app.state.services.db.write() as session:
        session.execute(update(Job).where(Job.id == batch_id).values(model="all-minilm-l6-v2"))
    return {"type": "batch.line", "batch_id": batch_id, "custom_id": "ticket-7"}


def test_feedback_is_saved_shown_and_deleted_with_its_audit_rows(either: FastAPI) -> None:
    client = client_of(either, make_key(either))
    target = chat(either, requested_model="assistant", model="small")
    saved = rate(client, target, -1, comment="It names the wrong city.", user="ada", metadata={"page": "help"})

    assert saved["id"].startswith("fb_")
    assert (saved["object"], saved["target"], saved["score"]) == ("feedback", target, -1)
    assert (saved["comment"], saved["user"], saved["metadata"]) == ("It names the wrong city.", "ada", {"page": "help"})
    assert (saved["model"], saved["requested_model"]) == ("small", "assistant")
    path = f"{PATH}/{saved['id']}"
    assert client.get(path).json() == saved
    assert client.get(PATH).json()["data"] == [saved]
    assert client.delete(path).json() == {"id": saved["id"], "object": "feedback.deleted", "deleted": True}
    assert client.get(path).status_code == client.delete(path).status_code == 404
    with either.state.services.db.read() as session:
        rows = session.scalars(select(Audit).where(Audit.action.startswith("feedback.")).order_by(Audit.id)).all()
    assert [(row.action, row.target) for row in rows] == [
        ("feedback.create", saved["id"]), ("feedback.delete", saved["id"])
    ]  # fmt: skip
    assert "wrong city" not in str([row.details for row in rows])


def test_each_kind_of_answer_gets_feedback_with_its_model(app: FastAPI, client: TestClient) -> None:
    response = {"type": "response", "response_id": store_response(app, requested_model="alias", model="large")}
    graded = graded_run(app, client)
    item = {"type": "eval.run.output_item", **{name: graded[name] for name in ("run_id", "output_item_id")}}
    targets = [response, chat(app), batch(app, client), item]

    saved = [rate(client, target) for target in targets]

    assert [row["target"] for row in saved] == targets
    assert [(row["model"], row["requested_model"]) for row in saved] == [
        ("large", "alias"), ("m", "m"), ("all-minilm-l6-v2", None), (None, None)
    ]  # fmt: skip
    assert ids(client, target_id=graded["run_id"]) == [saved[3]["id"]]
    with app.state.services.db.write() as session:
        session.execute(update(EvalRun).where(EvalRun.id == graded["run_id"]).values(data_source={"model": "judged"}))
    assert rate(client, item)["requested_model"] == "judged"


def test_second_opinion_of_user_replaces_the_first(either: FastAPI) -> None:
    client, other_key = (client_of(either, make_key(either)) for _ in range(2))
    target = chat(either)
    first = rate(client, target, 1, comment="Good", user="ada", metadata={"a": "b"})

    second = rate(other_key, target, -0.5, user="ada")

    assert (second["id"], second["created_at"]) == (first["id"], first["created_at"])
    assert (second["score"], second["comment"], second["metadata"]) == (-0.5, None, {})
    assert client.get(PATH).json()["data"] == [second]
    by_key = rate(client, target)
    assert rate(client, target, -1)["id"] == by_key["id"]
    others = [rate(client, target, user="bob"), rate(other_key, target), rate(client, chat(either), user="ada")]
    assert len({row["id"] for row in [second, by_key, *others]}) == 5


def test_opinions_at_the_same_moment_make_a_single_row(either: FastAPI) -> None:
    client, target = client_of(either, make_key(either)), chat(either)

    with ThreadPoolExecutor(8) as pool:
        saved = list(pool.map(lambda n: rate(client, target, n / 10, user="ada"), range(8)))

    assert len({row["id"] for row in saved}) == 1
    assert len(ids(client)) == 1


def test_repeated_key_returns_first_answer_without_its_target(app: FastAPI, client: TestClient) -> None:
    target, key = chat(app), {"Idempotency-Key": "k"}
    body = {"target": target, "score": 1}
    first = client.post(PATH, json=body, headers=key)
    client.delete(f"/v1/chat/completions/{target['completion_id']}")
    client.delete(f"{PATH}/{first.json()['id']}")

    assert client.post(PATH, json=body, headers=key).json() == first.json()
    assert ids(client) == []


def test_feedback_outlives_its_answer(app: FastAPI, client: TestClient) -> None:
    target = chat(app)
    saved = rate(client, target)
    client.delete(f"/v1/chat/completions/{target['completion_id']}")

    assert client.get(f"{PATH}/{saved['id']}").json() == saved
    assert client.post(PATH, json={"target": target, "score": -1}).status_code == 404


def test_answer_that_was_imported_is_named_by_either_id(client: TestClient) -> None:
    answer = {"model": "gpt-4o-mini", "choices": [{"message": {"role": "assistant", "content": "Hi"}}]}
    question = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
    body = {"imported_from": "chatcmpl-x", "request": question, "response": answer}
    own_id = client.post("/v1/chat/completions/imports", json=body).json()["id"]

    saved = [rate(client, {"type": "chat.completion", "completion_id": name}) for name in ("chatcmpl-x", own_id)]

    assert saved[0]["id"] == saved[1]["id"]
    assert saved[0]["target"]["completion_id"] == own_id


@pytest.mark.parametrize(
    ("fields", "param", "status"),
    [
        ({"score": 1.01}, "score", 400),
        ({"score": -2}, "score", 400),
        ({"score": "1"}, "score", 400),
        ({"score": True}, "score", 400),
        ({"score": None}, "score", 400),
        ({"comment": "a" * 4097}, "comment", 400),
        ({"user": ""}, "user", 400),
        ({"user": "a" * 256}, "user", 400),
        ({"metadata": {"a": 1}}, "metadata.a", 400),
        ({"thumb": "up"}, "thumb", 400),
        ({"target": {}}, "target", 400),
        ({"target": {"type": "file", "file_id": "file-x"}}, "target", 400),
        ({"target": {"type": "response"}}, "target.response_id", 400),
        ({"target": {"type": "response", "response_id": "r", "batch_id": "b"}}, "target.batch_id", 400),
        ({"target": {"type": "batch.line", "batch_id": "b"}}, "target.custom_id", 400),
        ({"target": {"type": "batch.line", "batch_id": "b", "custom_id": 7}}, "target.custom_id", 400),
        ({"target": {"type": "response", "response_id": "resp_x"}}, "target.response_id", 404),
        ({"target": {"type": "chat.completion", "completion_id": "c"}}, "target.completion_id", 404),
        ({"target": {"type": "batch.line", "batch_id": "b", "custom_id": "c"}}, "target.batch_id", 404),
        ({"target": {"type": "eval.run.output_item", "run_id": "r", "output_item_id": "o"}}, "target.run_id", 404),
    ],
)
def test_refused_feedback_names_the_field_and_changes_nothing(
    app: FastAPI, client: TestClient, fields: dict[str, Any], param: str, status: int
) -> None:
    refused = client.post(PATH, json={"target": chat(app), "score": 1} | fields)

    assert refused.status_code == status, refused.text
    assert refused.json()["error"]["param"].startswith(param)
    assert ids(client) == []


def test_output_item_that_the_run_lacks_is_not_found(app: FastAPI, client: TestClient) -> None:
    run = graded_run(app, client)
    target = {"type": "eval.run.output_item", "run_id": run["run_id"], "output_item_id": "outputitem_x"}

    refused = client.post(PATH, json={"target": target, "score": 1})

    assert (refused.status_code, refused.json()["error"]["param"]) == (404, "target.output_item_id")


def test_answers_of_other_projects_and_expired_ones_are_not_found(
    app: FastAPI, client: TestClient, stranger: TestClient
) -> None:
    run = graded_run(app, client)
    target = chat(app)
    item = {"type": "eval.run.output_item", **{name: run[name] for name in ("run_id", "output_item_id")}}
    response = {"type": "response", "response_id": store_response(app)}
    for theirs in (target, response, batch(app, client), item):
        assert stranger.post(PATH, json={"target": theirs, "score": 1}).status_code == 404
    with app.state.services.db.write() as session:
        session.execute(update(StoredCompletion).values(expires_at=1.0))

    assert client.post(PATH, json={"target": target, "score": 1}).status_code == 404
    assert ids(client) == ids(stranger) == []


def test_feedback_is_seen_by_its_own_project_alone(app: FastAPI, client: TestClient, stranger: TestClient) -> None:
    saved = rate(client, chat(app))
    path = f"{PATH}/{saved['id']}"

    assert [stranger.get(path).status_code, stranger.delete(path).status_code] == [404] * 2
    assert ids(stranger) == []
    assert stranger.get(f"{PATH}/summary").json()["data"] == []
    assert stranger.get(PATH, params={"after": saved["id"]}).json()["error"]["code"] == "invalid_cursor"
    assert client.get(path).status_code == 200


def test_list_is_filtered_and_paged(app: FastAPI, client: TestClient) -> None:
    models = [("alias", "small"), ("alias", "large"), ("large", "large")]
    targets = [chat(app, requested_model=asked, model=model) for asked, model in models]
    saved = [rate(client, target, score, user="ada")["id"] for target, score in zip(targets, (1, 0, -1), strict=True)]
    bob = rate(client, targets[0], 0.5, user="bob")["id"]

    assert ids(client, model="large") == [saved[2], saved[1]]
    assert ids(client, requested_model="alias", user="ada") == [saved[1], saved[0]]
    assert ids(client, target_id=targets[0]["completion_id"]) == [bob, saved[0]]
    assert ids(client, max_score=0) == [saved[2], saved[1]]
    assert ids(client, min_score=0.5, max_score=0.5) == [bob]
    assert ids(client, model="medium") == []
    first = client.get(PATH, params={"limit": 3}).json()
    assert first["has_more"]
    assert ids(client, after=first["last_id"]) == [saved[0]]
    for query in ({"min_score": 2}, {"max_score": "nan"}, {"limit": 0}, {"after": "fb_x"}):
        assert client.get(PATH, params=query).status_code == 400


def test_summary_counts_by_model_and_compares_two(either: FastAPI) -> None:
    client = client_of(either, make_key(either))
    for model, scores in (("small", [1] * 48 + [-1] * 32), ("large", [1] * 56 + [0] * 14)):
        target = chat(either, requested_model="assistant", model=model)
        for n, score in enumerate(scores):
            rate(client, target, score, user=f"{n}")
    rate(client, chat(either, requested_model="small", model="small"), -1, user="ada")

    summary = client.get(f"{PATH}/summary", params={"requested_model": "assistant"}).json()
    small, large = summary["data"]
    assert (small["model"], small["count"], small["positive"], small["positive_share"]) == ("small", 80, 48, 0.6)
    assert (large["model"], large["count"], large["positive"], large["positive_share"]) == ("large", 70, 56, 0.8)
    assert (small["mean_score"], large["mean_score"]) == pytest.approx((0.2, 0.8))
    assert small["low"] < 0.6 < small["high"]
    assert (summary["difference"], summary["has_more"]) == (None, False)
    query = {"requested_model": "assistant", "model": "large", "baseline": "small"}
    difference = client.get(f"{PATH}/summary", params=query).json()["difference"]
    assert (difference["model"], difference["baseline"]) == ("large", "small")
    numbers = [difference[name] for name in ("difference", "low", "high")]
    assert numbers == pytest.approx([0.2, 0.0524, 0.3339], abs=1e-4)
    assert client.get(f"{PATH}/summary", params={"model": "small"}).json()["data"][0]["count"] == 81
    assert client.get(f"{PATH}/summary", params={"since": 1 << 39}).json()["data"] == []
    alone = client.get(f"{PATH}/summary", params={"model": "large", "baseline": "other"}).json()
    assert ([row["model"] for row in alone["data"]], alone["difference"]) == (["large"], None)


@pytest.mark.parametrize("query", [{"baseline": "small"}, {"baseline": "small", "model": "small"}])
def test_baseline_needs_another_model(client: TestClient, query: dict[str, str]) -> None:
    refused = client.get(f"{PATH}/summary", params=query)

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "baseline")


def test_summary_has_a_bounded_number_of_models(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback, "MAX_MODELS", 2)
    for n, model in enumerate(("a", "b", "c")):
        for user in range(3 - n):
            rate(client, chat(app, model=model), user=f"{user}")

    summary = client.get(f"{PATH}/summary").json()

    assert [row["model"] for row in summary["data"]] == ["a", "b"]
    assert summary["has_more"]


def test_project_has_a_bounded_amount_of_feedback(
    app: FastAPI, client: TestClient, stranger: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback, "MAX_FEEDBACK", 1)
    target = chat(app)
    saved = rate(client, target)

    refused = client.post(PATH, json={"target": chat(app), "score": 1})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "too_much_feedback")
    assert rate(client, target, -1)["id"] == saved["id"]
    rate(stranger, chat(app, project="another"))
    client.delete(f"{PATH}/{saved['id']}")
    rate(client, chat(app))


def test_key_that_may_only_ask_models_gives_no_feedback(app: FastAPI) -> None:
    with app.state.services.db.write() as session:
        key = keys.create_key(session, "default", scopes=["api.model.request"])

    refused = client_of(app, key).post(PATH, json={"target": chat(app), "score": 1})

    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "missing_scope")
