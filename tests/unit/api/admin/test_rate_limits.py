"""Rate limits of the admin API: a row for each model, changed with the SDK."""

from typing import Any

import openai
import pytest

from jobs.fleet import workers
from jobs.queues import Queue
from jobs.usage.tables import RateLimit
from tests.unit.api.admin.conftest import AdministeredProject

CHAT, EMBEDDER, REMOTE = "smollm2-135m-instruct", "all-minilm-l6-v2", "org/model:x"
NO_LIMIT = 1_000_000_000


def discover(administered: AdministeredProject) -> None:
    with administered.app.state.services.db.write() as session:
        workers.store_models(session, {REMOTE: False}, Queue.GENERATE)


def stored(administered: AdministeredProject, model: str = CHAT) -> RateLimit | None:
    with administered.app.state.services.db.read() as session:
        return session.get(RateLimit, (administered.project_id, model))  # type: ignore[no-any-return]


def test_every_model_has_a_row_and_the_sdk_follows_the_pages(administered: AdministeredProject) -> None:
    discover(administered)
    limits = administered.projects.rate_limits

    rows = list(limits.list_rate_limits(administered.project_id, limit=1))

    assert [row.id for row in rows] == [f"rl-{name}" for name in (EMBEDDER, REMOTE, CHAT)]
    assert {row.object for row in rows} == {"project.rate_limit"}
    assert {row.max_tokens_per_1_minute for row in rows} == {NO_LIMIT}
    before = limits.list_rate_limits(administered.project_id, before=f"rl-{REMOTE}")
    assert [row.model for row in before.data] == [EMBEDDER]


def test_model_that_the_project_may_not_use_has_no_row(administered: AdministeredProject) -> None:
    administered.projects.model_permissions.update(administered.project_id, mode="deny_list", model_ids=[CHAT])

    rows = administered.projects.rate_limits.list_rate_limits(administered.project_id)

    assert [row.model for row in rows.data] == [EMBEDDER]


def test_limits_are_set_separately_and_removed(administered: AdministeredProject) -> None:
    discover(administered)
    update = administered.projects.rate_limits.update_rate_limit

    update(f"rl-{REMOTE}", project_id=administered.project_id, max_requests_per_1_minute=5)
    row = update(
        f"rl-{REMOTE}", project_id=administered.project_id, max_requests_per_1_day=0, batch_1_day_max_input_tokens=7
    )
    assert row.model_dump(exclude_none=True) == {
        "id": f"rl-{REMOTE}", "object": "project.rate_limit", "model": REMOTE, "max_requests_per_1_minute": 5,
        "max_tokens_per_1_minute": NO_LIMIT, "max_requests_per_1_day": 0, "batch_1_day_max_input_tokens": 7,
    }  # fmt: skip
    update(f"rl-{REMOTE}", project_id=administered.project_id, max_requests_per_1_minute=NO_LIMIT)

    limits = stored(administered, REMOTE)
    assert limits is not None
    assert (limits.requests_per_minute, limits.requests_per_day, limits.enqueued_tokens) == (None, 0, 7)
    assert administered.audited("rate_limit.update")[0] == {"max_requests_per_1_minute": 5}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"max_tokens_per_1_minute": None},
        {"max_tokens_per_1_minute": -1},
        {"max_tokens_per_1_minute": "5"},
        {"max_tokens_per_1_minute": True},
        {"max_tokens_per_1_minute": 1.5},
        {"max_tokens_per_1_minute": 10**30},
        {"max_images_per_1_minute": 5},
        {"temp_budget_increase": 5},
    ],
)
def test_invalid_limits_are_refused_and_change_nothing(administered: AdministeredProject, body: dict[str, Any]) -> None:
    path = f"/v1/organization/projects/{administered.project_id}/rate_limits/rl-{CHAT}"

    answer = administered.http.post(path, json=body)

    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert stored(administered) is None


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e309"])
def test_limit_that_is_no_number_is_refused(administered: AdministeredProject, number: str) -> None:
    path = f"/v1/organization/projects/{administered.project_id}/rate_limits/rl-{CHAT}"

    answer = administered.http.post(
        path, content=f'{{"max_tokens_per_1_minute": {number}}}', headers={"content-type": "application/json"}
    )

    assert answer.status_code == 400
    assert stored(administered) is None


@pytest.mark.parametrize("rate_limit_id", ["rl-unknown", CHAT, "rl-gpt-4o-mini", "rl-"])
def test_row_of_no_model_is_not_found(administered: AdministeredProject, rate_limit_id: str) -> None:
    with pytest.raises(openai.NotFoundError):
        administered.projects.rate_limits.update_rate_limit(
            rate_limit_id, project_id=administered.project_id, max_requests_per_1_minute=1
        )


def test_cursor_of_no_model_is_refused(administered: AdministeredProject) -> None:
    with pytest.raises(openai.BadRequestError):
        administered.projects.rate_limits.list_rate_limits(administered.project_id, after="rl-unknown")
