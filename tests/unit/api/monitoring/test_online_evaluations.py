"""Online evaluations over HTTP: created, shown, changed, refused and deleted; nobody works on their runs."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select

from jobs.clock import now
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.monitoring import online_evaluations
from jobs.monitoring.tables import OnlineEvaluation, OnlineRound
from tests.support.web import store_completion, store_response
from workers.dispatcher.online_evaluations import OnlineEvaluations

POLITE = {
    "type": "string_check",
    "name": "polite",
    "input": "{{ sample.output_text }}",
    "operation": "ilike",
    "reference": "hello",
}


def make_eval(client: TestClient, *criteria: dict[str, Any]) -> str:
    config = {"type": "logs"}
    body = {"name": "e", "data_source_config": config, "testing_criteria": list(criteria or (POLITE,))}
    answer = client.post("/v1/evals", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def body_of(client: TestClient, **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"name": "refunds", "eval_id": make_eval(client), "source": {"type": "stored_completions"}}
    return made | fields


def create(client: TestClient, **fields: Any) -> Any:
    answer = client.post("/v1/online_evaluations", json=body_of(client, **fields))
    assert answer.status_code == 200, answer.text
    return answer.json()


def set_columns(app: FastAPI, evaluation: Any, **columns: Any) -> None:
    with app.state.services.db.write() as session:
        row = session.get_one(OnlineEvaluation, evaluation["id"])
        for name, value in columns.items():
            setattr(row, name, value)


def run_rounds(app: FastAPI) -> None:
    """Do what the leading dispatcher does every few seconds."""
    services = app.state.services
    OnlineEvaluations(services.config, services.db, services.storage, services.registry).run()


def draw_round(app: FastAPI, evaluation: Any, *, hours: int = 1) -> None:
    """Let a round over the answers of the last hours begin now."""
    set_columns(app, evaluation, next_at=now() - 1, marked_at=now() - 3600 * hours)
    run_rounds(app)


def rounds_of(client: TestClient, evaluation: Any) -> Any:
    return client.get(f"/v1/online_evaluations/{evaluation['id']}/rounds").json()["data"]


def items_of(app: FastAPI, made: Any) -> bytes:
    """Return the items of the run of a round."""
    with app.state.services.storage.reader(f"jobs/{made['id']}/items.jsonl") as handle:
        return bytes(handle.read())


def show(client: TestClient, evaluation: Any) -> Any:
    return client.get(f"/v1/online_evaluations/{evaluation['id']}").json()


def test_source_is_stored_answers_or_shadow_of_alias(client: TestClient) -> None:
    shadow = {"type": "shadow", "alias": "support"}
    assert create(client, source=shadow)["source"] == shadow

    for source, param in (
        ({"type": "shadow"}, "source.alias"),
        ({**shadow, "metadata": {"a": "b"}}, "source.metadata"),
        ({"type": "file", "file_id": "file-1"}, "source.type"),
    ):
        refused = client.post("/v1/online_evaluations", json=body_of(client, source=source))
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), refused.text


def old(minutes: float = 10) -> float:
    return now() - 60 * minutes


def test_created_online_evaluation_is_shown_and_listed(client: TestClient) -> None:
    threshold = {"minimum": 0.8, "criterion": "polite", "window": 50}

    made = create(client, threshold=threshold, metadata={"team": "support"}, share=12.5)

    assert made["id"].startswith(online_evaluations.PREFIX)
    assert (made["share"], made["cron"], made["status"], made["value"]) == (12.5, "0 * * * *", "active", None)
    assert made["threshold"] == {"measure": "pass_rate", **threshold}
    assert show(client, made) == made
    assert client.get("/v1/online_evaluations").json()["data"] == [made]
    assert rounds_of(client, made) == []


def test_replayed_create_makes_a_single_online_evaluation(client: TestClient) -> None:
    body, key = body_of(client), {"Idempotency-Key": "online-1"}

    first, second = (client.post("/v1/online_evaluations", json=body, headers=key).json() for _ in range(2))

    assert first == second
    assert client.get("/v1/online_evaluations").json()["data"] == [first]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"share": 0}, "share"),
        ({"share": 101}, "share"),
        ({"cron": "every hour"}, "cron"),
        ({"timezone": "Europe/Nowhere"}, "timezone"),
        ({"source": {"type": "file", "file_id": "file-1"}}, "source.type"),
        ({"max_answers_per_day": 0}, "max_answers_per_day"),
        ({"threshold": {"minimum": 0.5, "window": 19}}, "threshold.window"),
        ({"threshold": {"minimum": 1.5}}, "threshold.minimum"),
        ({"threshold": {"minimum": 0.5, "criterion": "friendly"}}, "threshold.criterion"),
        ({"threshold": {"minimum": 0.5, "measure": "mean_score"}}, "threshold.criterion"),
        ({"threshold": {}}, "threshold.minimum"),
        ({"name": ""}, "name"),
    ],
)
def test_bad_input_makes_nothing(client: TestClient, fields: dict[str, Any], param: str) -> None:
    answer = client.post("/v1/online_evaluations", json=body_of(client, **fields))

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert client.get("/v1/online_evaluations").json()["data"] == []


def test_eval_of_another_project_is_not_found(client: TestClient, stranger: TestClient) -> None:
    answer = client.post("/v1/online_evaluations", json=body_of(client, eval_id=make_eval(stranger)))

    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "eval_id")


def test_online_evaluations_of_a_project_are_limited(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_evaluations, "MAX_EVALUATIONS", 1)
    create(client)

    answer = client.post("/v1/online_evaluations", json=body_of(client))

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_many_online_evaluations")


def test_update_changes_only_the_given_fields(client: TestClient) -> None:
    made = create(client, threshold={"minimum": 0.8}, metadata={"team": "support"})
    path = f"/v1/online_evaluations/{made['id']}"

    changed = client.post(path, json={"share": 50, "cron": "*/5 * * * *", "threshold": None}).json()

    same = ("name", "eval_id", "source", "metadata", "max_answers_per_day", "created_at")
    assert {name: changed[name] for name in same} == {name: made[name] for name in same}
    assert (changed["share"], changed["cron"], changed["threshold"]) == (50, "*/5 * * * *", None)
    refused = client.post(path, json={"cron": "never", "share": 1})
    assert (refused.status_code, show(client, made)) == (400, changed)


def test_round_has_the_share_of_the_answers_since_the_mark(app: FastAPI, client: TestClient) -> None:
    evaluation = create(client, share=50)
    answers = {store_completion(app, created_at=old()) for _ in range(60)}

    draw_round(app, evaluation)

    (made,) = rounds_of(client, evaluation)
    assert made["status"] == "in_progress"
    assert 15 <= made["answers"] <= 45
    items = items_of(app, made).splitlines()
    assert len(items) == made["answers"]
    assert all(any(name.encode() in line for name in answers) for line in items)
    run = client.get(f"/v1/evals/{evaluation['eval_id']}/runs/{made['id']}").json()
    assert run["metadata"] == {"online_evaluation_id": evaluation["id"]}
    assert run["data_source"]["source"]["type"] == "stored_completions"


def test_answer_is_drawn_by_a_single_round_and_a_recent_answer_by_none(app: FastAPI, client: TestClient) -> None:
    evaluation = create(client, share=100)
    first = store_completion(app, created_at=old(10))
    draw_round(app, evaluation)
    (made,) = rounds_of(client, evaluation)
    client.delete(f"/v1/evals/{evaluation['eval_id']}/runs/{made['id']}")
    run_rounds(app)

    second = store_completion(app, created_at=now() - online_evaluations.SETTLED - 20)
    set_columns(app, evaluation, next_at=now() - 1, marked_at=now() - online_evaluations.SETTLED - 30)
    store_completion(app, created_at=now())
    run_rounds(app)

    newest, _ = rounds_of(client, evaluation)
    items = items_of(app, newest)
    assert (newest["answers"], second.encode() in items, first.encode() in items) == (1, True, False)


def test_model_and_metadata_choose_the_answers(app: FastAPI, client: TestClient) -> None:
    source = {"type": "responses", "model": "support", "metadata": {"team": "refunds"}}
    evaluation = create(client, share=100, source=source)
    facts = {"created_at": old(), "requested_model": "support", "metadata_": {"team": "refunds", "user": "4711"}}
    store_response(app, **facts)
    store_response(app, **facts | {"requested_model": "other"})
    store_response(app, **facts | {"metadata_": {"team": "sales"}})

    draw_round(app, evaluation)

    assert [made["answers"] for made in rounds_of(client, evaluation)] == [1]


def test_answers_of_a_day_are_limited(app: FastAPI, client: TestClient) -> None:
    evaluation = create(client, share=100, max_answers_per_day=3)
    for _ in range(5):
        store_completion(app, created_at=old())
    draw_round(app, evaluation)
    (made,) = rounds_of(client, evaluation)
    client.delete(f"/v1/evals/{evaluation['eval_id']}/runs/{made['id']}")
    run_rounds(app)

    draw_round(app, evaluation)

    assert [made["answers"] for made in rounds_of(client, evaluation)] == [3]
    assert "last 24 hours" in show(client, evaluation)["last_error"]


def test_round_waits_for_the_end_of_the_former(app: FastAPI, client: TestClient) -> None:
    evaluation = create(client, share=100)
    store_completion(app, created_at=old())
    draw_round(app, evaluation)

    draw_round(app, evaluation)

    assert len(rounds_of(client, evaluation)) == 1
    assert show(client, evaluation)["last_error"] == "The last round has not ended."


def test_time_without_answers_moves_the_mark_and_makes_no_run(app: FastAPI, client: TestClient) -> None:
    evaluation = create(client)

    draw_round(app, evaluation)

    with app.state.services.db.read() as session:
        marked = session.get_one(OnlineEvaluation, evaluation["id"]).marked_at
        assert session.scalars(select(Job)).all() == []
    assert marked == pytest.approx(now() - online_evaluations.SETTLED, abs=30)
    assert (show(client, evaluation)["last_error"], rounds_of(client, evaluation)) == (None, [])


def test_deleted_eval_ends_the_round_and_the_next_says_why_there_is_none(app: FastAPI, client: TestClient) -> None:
    evaluation = create(client, share=100)
    store_completion(app, created_at=old())
    draw_round(app, evaluation)
    (made,) = rounds_of(client, evaluation)

    client.delete(f"/v1/evals/{evaluation['eval_id']}")
    run_rounds(app)
    draw_round(app, evaluation)

    (ended,) = rounds_of(client, evaluation)
    assert (ended["id"], ended["status"], ended["pass_rate"]) == (made["id"], "failed", None)
    assert ended["error"] == "The run was deleted, or its eval."
    assert show(client, evaluation)["last_error"] == f"No eval found with id '{evaluation['eval_id']}'."


def test_process_that_dies_before_the_run_is_submitted_leaves_its_answers_to_the_next(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = create(client, share=100)
    store_completion(app, created_at=old())
    submit = online_evaluations.run_requests.submit

    def die(*arguments: Any, **columns: Any) -> None:
        submit(*arguments, **columns)
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(online_evaluations.run_requests, "submit", die)
        with pytest.raises(SystemExit):
            draw_round(app, evaluation)
    assert rounds_of(client, evaluation) == []

    run_rounds(app)
    run_rounds(app)

    assert [made["answers"] for made in rounds_of(client, evaluation)] == [1]
    with app.state.services.db.read() as session:
        assert len(session.scalars(select(Job)).all()) == 1


def test_two_dispatchers_with_the_same_draw_begin_a_single_round(app: FastAPI, client: TestClient) -> None:
    evaluation = create(client, share=100)
    store_completion(app, created_at=old())
    set_columns(app, evaluation, next_at=now() - 1, marked_at=now() - 3600)
    services = app.state.services
    with services.db.read() as session:
        draws = [online_evaluations.draw(session, evaluation["id"]) for _ in range(2)]

    made = []
    for drawn in draws:
        assert drawn is not None
        with services.db.write() as session:
            begun = online_evaluations.start_round(session, services.config, services.registry(), drawn)[0]
        made.append(begun is not None)

    assert made == [True, False]


def test_key_that_was_revoked_grades_nothing(app: FastAPI, client: TestClient) -> None:
    evaluation = create(client, share=100)
    store_completion(app, created_at=old())
    set_columns(app, evaluation, key_id="0123456789abcdef")

    draw_round(app, evaluation)

    assert rounds_of(client, evaluation) == []
    assert "API key" in show(client, evaluation)["last_error"]


def test_pause_begins_no_round_and_its_answers_are_left_out(app: FastAPI, client: TestClient) -> None:
    evaluation = create(client, share=100)
    path = f"/v1/online_evaluations/{evaluation['id']}"
    store_completion(app, created_at=old())

    assert client.post(path, json={"paused": True}).json()["status"] == "paused"
    draw_round(app, evaluation)
    assert rounds_of(client, evaluation) == []

    assert client.post(path, json={"paused": False}).json()["status"] == "active"
    set_columns(app, evaluation, next_at=now() - 1)
    run_rounds(app)
    assert rounds_of(client, evaluation) == []


def test_oldest_round_goes_with_its_run(app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_evaluations, "MAX_ROUNDS", 1)
    evaluation = create(client, share=100)
    store_completion(app, created_at=old())
    draw_round(app, evaluation)
    (first,) = rounds_of(client, evaluation)
    path = f"/v1/evals/{evaluation['eval_id']}/runs"
    client.post(f"{path}/{first['id']}/cancel")
    with app.state.services.db.write() as session:
        session.get_one(OnlineRound, first["id"]).ended_at = now()

    draw_round(app, evaluation)

    (second,) = rounds_of(client, evaluation)
    assert second["id"] != first["id"]
    assert [run["id"] for run in client.get(path).json()["data"]] == [second["id"]]


def test_deletion_cancels_the_run_and_leaves_no_rows(app: FastAPI, client: TestClient) -> None:
    evaluation = create(client, share=100)
    store_completion(app, created_at=old())
    draw_round(app, evaluation)
    (made,) = rounds_of(client, evaluation)

    path = f"/v1/online_evaluations/{evaluation['id']}"
    assert client.delete(path).json()["deleted"] is True

    assert client.get(path).status_code == client.delete(path).status_code == 404
    with app.state.services.db.read() as session:
        assert session.get_one(Job, made["id"]).state in (JobState.CANCELLING, JobState.CANCELLED)
        assert session.scalars(select(OnlineRound)).all() == []


def test_online_evaluation_of_another_project_is_not_found(client: TestClient, stranger: TestClient) -> None:
    path = f"/v1/online_evaluations/{create(client)['id']}"

    answers = [
        stranger.get(path),
        stranger.get(f"{path}/rounds"),
        stranger.post(path, json={"share": 1}),
        stranger.delete(path),
    ]

    assert [answer.status_code for answer in answers] == [404] * 4
    assert stranger.get("/v1/online_evaluations").json()["data"] == []
