"""Promotions over HTTP: created with their runs, shown, cancelled and refused; ended as a worker does it."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select

from jobs.clock import now
from jobs.errors import ClaimLost
from jobs.ledger import ledger
from jobs.ledger.ledger import JobClaim
from jobs.ledger.states import JobState
from jobs.ledger.tables import Audit, Job
from jobs.promotions import promotions
from jobs.promotions.gates import GateOutcome, GateReport
from jobs.queues import Task
from jobs.registry import aliases
from jobs.registry.tables import Alias
from jobs.security import keys
from jobs.security.tables import ApiKey
from tests.support import sample_jobs
from tests.support.pipeline_requests import make_eval
from tests.support.promotion_requests import ALIAS, MESSAGES, NOT_WORSE, gate, minimum, to_model
from tests.support.tuning_requests import BASE, create, registered, upload
from tests.support.web import make_key
from tests.unit.api.conftest import client_of


class Promoting:
    """A project whose alias stands for a base, with a tuned candidate; and what workers do, done by hand."""

    def __init__(self, app: FastAPI, client: TestClient) -> None:
        self.client, self.services = client, app.state.services
        self.db = self.services.db
        client.post("/v1/aliases", json={"id": ALIAS, "model": BASE}).raise_for_status()
        self.candidate = registered(app, create(client))
        self.eval_id, self.file_id = make_eval(client), upload(client, "evals")

    def gate(self, rule: dict[str, Any] = NOT_WORSE, **fields: Any) -> dict[str, Any]:
        return gate(self.eval_id, self.file_id, rule) | fields

    def post(self, *gates: dict[str, Any], **fields: Any) -> Any:
        body = {"target": to_model(self.candidate), "gates": list(gates)} | fields
        return self.client.post("/v1/promotions", json=body)

    def create(self, *gates: dict[str, Any], **fields: Any) -> dict[str, Any]:
        answer = self.post(*(gates or [self.gate()]), **fields)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def show(self, promotion: dict[str, Any]) -> dict[str, Any]:
        return dict(self.client.get(f"/v1/promotions/{promotion['id']}").json())

    def model(self) -> str:
        """Return the model for which the alias stands."""
        return str(self.client.get(f"/v1/aliases/{ALIAS}").json()["model"])

    def split(self, weight: int, **fields: Any) -> None:
        """Give the candidate so many percent of the requests for the alias."""
        targets = [{"model": BASE, "weight": 100 - weight}, {"model": self.candidate, "weight": weight}]
        self.client.post(f"/v1/aliases/{ALIAS}", json={"targets": targets} | fields).raise_for_status()

    def complete_runs(self, promotion: dict[str, Any]) -> None:
        """End the jobs of the runs, whatever they do; with the last one the promotion is released."""
        for run in runs_of(promotion):
            with self.db.read() as session:
                steps = session.scalars(select(Job.id).where(Job.parent_id == run)).all()
            for job_id in (*steps, run):
                self._run(job_id)
                sample_jobs.close(self.db, job_id, completed=1)

    def _run(self, job_id: str) -> None:
        claim = sample_jobs.claim_job(self.db, job_id, Task.PLAN)
        with self.db.write() as session:
            ledger.begin_running(session, claim, total=1, model=None, queue="q")

    def claim(self, promotion: dict[str, Any]) -> JobClaim:
        """Plan a promotion whose runs have ended, and claim its end."""
        self._run(promotion["id"])
        return sample_jobs.claim_job(self.db, promotion["id"], Task.FINISH)

    def conclude(self, claim: JobClaim, *outcomes: GateOutcome) -> None:
        reports = [GateReport(outcome=outcome, reasons=[f"same: {outcome}"]) for outcome in outcomes]
        with self.db.write() as session:
            promotions.conclude(session, claim, self.services.registry(), reports)

    def end(self, promotion: dict[str, Any], *outcomes: GateOutcome) -> dict[str, Any]:
        self.complete_runs(promotion)
        self.conclude(self.claim(promotion), *outcomes)
        return self.show(promotion)

    def audit(self, action: str) -> list[Audit]:
        with self.db.read() as session:
            return list(session.scalars(select(Audit).where(Audit.action == action)))


@pytest.fixture
def promoting(app: FastAPI, client: TestClient) -> Promoting:
    return Promoting(app, client)


def runs_of(promotion: dict[str, Any]) -> list[str]:
    names = ("candidate_run_id", "incumbent_run_id")
    return list(dict.fromkeys(gate[name] for gate in promotion["gates"] for name in names if gate[name]))


def refusal(answer: Any) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


# ── created ──


def test_promotion_is_created_with_a_run_of_each_side(promoting: Promoting) -> None:
    made = promoting.create(reason="fewer wrong refunds", metadata={"ticket": "ML-7"})

    assert made["id"].startswith("promo_")
    assert (made["object"], made["status"], made["incumbent"]) == ("promotion", "in_progress", BASE)
    assert made["target"] == to_model(promoting.candidate)
    assert (made["force"], made["reason"], made["metadata"]) == (False, "fewer wrong refunds", {"ticket": "ML-7"})
    assert (made["error"], made["ended_at"]) == (None, None)
    assert promoting.show(made) == made
    assert promoting.client.get("/v1/promotions").json()["data"] == [made]
    [shown] = made["gates"]
    path = f"/v1/evals/{promoting.eval_id}/runs"
    models_ = [promoting.client.get(f"{path}/{run}").json()["data_source"]["model"] for run in runs_of(made)]
    assert models_ == [promoting.candidate, BASE]
    assert (shown["rule"], shown["report"]) == (NOT_WORSE, None)
    assert [row.target for row in promoting.audit("promotion.create")] == [made["id"]]


def test_gates_that_ask_the_same_share_a_run_and_a_minimum_needs_no_incumbent(promoting: Promoting) -> None:
    made = promoting.create(
        promoting.gate(minimum(0.8)), promoting.gate(minimum(0.5), criterion="same"), promoting.gate()
    )

    first, second, third = made["gates"]
    assert first["incumbent_run_id"] is second["incumbent_run_id"] is None
    assert first["candidate_run_id"] == second["candidate_run_id"] == third["candidate_run_id"]
    assert len(runs_of(made)) == 2


def test_same_key_creates_a_single_promotion(promoting: Promoting) -> None:
    body, key = {"target": to_model(promoting.candidate), "gates": [promoting.gate()]}, {"Idempotency-Key": "k"}

    first, again = (promoting.client.post("/v1/promotions", json=body, headers=key) for _ in range(2))

    assert again.json() == first.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    assert len(promoting.client.get("/v1/promotions").json()["data"]) == 1


# ── ended ──


def test_alias_moves_where_every_gate_passes(promoting: Promoting) -> None:
    made = promoting.create()

    done = promoting.end(made, "passed")

    assert (done["status"], done["error"], promoting.model()) == ("promoted", None, promoting.candidate)
    assert done["gates"][0]["report"]["outcome"] == "passed"
    assert done["ended_at"] >= done["created_at"]
    assert sample_jobs.told(promoting.db, made["id"])[-1][1] == "promotion.promoted"
    [row] = promoting.audit("alias.update")
    assert row.actor.startswith("key:")
    assert (row.details["model"], row.details["former_model"]) == (promoting.candidate, BASE)
    assert (row.details["name"], row.details["promotion"]) == (ALIAS, made["id"])


def test_model_comes_into_production_with_the_reports_of_its_gates(app: FastAPI, promoting: Promoting) -> None:
    client, former = promoting.client, promoting.candidate
    candidate = registered(app, create(client))
    target = {"type": "stage", "id": candidate}
    compared, alone = (promoting.gate(rule) for rule in (NOT_WORSE, minimum(0.5)))
    for gates in (compared, alone):
        gates["data_source"] |= {"model": candidate}
    refused = promoting.post(compared, target=target)
    client.post(f"/v1/model_versions/{former}", json={"stage": "production"}).raise_for_status()

    made = promoting.create(compared, alone, target=target, reason="fewer wrong refunds")
    done = promoting.end(made, "passed", "passed")

    assert refusal(refused) == (400, "no_incumbent", "gates[0].rule.type")
    assert (made["incumbent"], done["status"], done["target"]["stage"]) == (former, "promoted", "production")
    versions = {one["id"]: one["stage"] for one in client.get("/v1/model_versions").json()["data"]}
    assert versions == {former: "archived", candidate: "production"}
    [move] = client.get(f"/v1/model_versions/{candidate}/moves").json()["data"]
    assert (move["reason"], move["gate"]["promotion"]) == ("fewer wrong refunds", made["id"])
    assert [report["outcome"] for report in move["gate"]["reports"]] == ["passed", "passed"]


def test_stage_that_moved_meanwhile_refuses_the_promotion(app: FastAPI, promoting: Promoting) -> None:
    client = promoting.client
    candidate, other = (registered(app, create(client)) for _ in range(2))
    alone = promoting.gate(minimum(0.5))
    alone["data_source"] |= {"model": candidate}
    made = promoting.create(alone, target={"type": "stage", "id": candidate})
    client.post(f"/v1/model_versions/{other}", json={"stage": "production"}).raise_for_status()

    done = promoting.end(made, "passed")

    assert (done["status"], done["error"]["code"]) == ("refused", "target_moved")
    assert client.get(f"/v1/model_versions/{other}").json()["stage"] == "production"


def test_move_of_an_alias_has_the_reason_and_the_reports_of_the_gates(promoting: Promoting) -> None:
    made = promoting.create(reason="fewer wrong refunds")

    promoting.end(made, "passed")

    move = promoting.client.get("/v1/alias_moves", params={"alias": ALIAS}).json()["data"][0]
    assert (move["action"], move["reason"], move["gate"]["promotion"]) == ("update", "fewer wrong refunds", made["id"])
    assert [report["outcome"] for report in move["gate"]["reports"]] == ["passed"]
    back = promoting.client.post(f"/v1/aliases/{ALIAS}", json={"revert": True})
    assert back.json()["model"] == BASE


def test_candidate_of_a_split_alias_gets_all_requests(promoting: Promoting) -> None:
    promoting.split(10, sticky=True)
    made = promoting.create()

    done = promoting.end(made, "passed")

    alias = promoting.client.get(f"/v1/aliases/{ALIAS}").json()
    assert (done["status"], done["incumbent"]) == ("promoted", BASE)
    assert alias["targets"] == [{"model": promoting.candidate, "weight": 100}]
    assert alias["sticky"] is True


def test_alias_with_other_weights_than_at_first_is_not_moved(promoting: Promoting) -> None:
    promoting.split(10)
    made = promoting.create()
    promoting.split(50)

    done = promoting.end(made, "passed")

    assert (done["status"], done["error"]["code"], promoting.model()) == ("refused", "target_moved", BASE)
    assert f"to '{BASE} 50 %, {promoting.candidate} 50 %' meanwhile" in done["error"]["message"]


def test_alias_that_is_rolled_back_while_a_promotion_runs_is_not_moved(promoting: Promoting) -> None:
    promoting.split(10)
    made = promoting.create()
    with promoting.db.write() as session:
        project_id = session.scalars(select(Alias.project_id)).one()
        alias = aliases.find(session, ALIAS, project_id, lock=True)
        assert alias is not None
        aliases.move(session, alias, aliases.single(BASE), "rollback", actor="dispatcher")

    done = promoting.end(made, "passed")

    assert (done["status"], done["error"]["code"], promoting.model()) == ("refused", "target_moved", BASE)
    assert promoting.client.get("/v1/alias_moves").json()["data"][0]["action"] == "rollback"


@pytest.mark.parametrize(
    ("outcomes", "status", "code"),
    [
        (("failed", "inconclusive"), "refused", "gate_failed"),
        (("passed", "inconclusive"), "inconclusive", "gate_inconclusive"),
    ],
)
def test_alias_stays_where_a_gate_does_not_pass(
    promoting: Promoting, outcomes: tuple[GateOutcome, ...], status: str, code: str
) -> None:
    made = promoting.create(promoting.gate(minimum(0.8)), promoting.gate())

    done = promoting.end(made, *outcomes)

    assert (done["status"], done["error"]["code"], promoting.model()) == (status, code, BASE)
    assert done["error"]["message"] == "; ".join(f"same: {one}" for one in outcomes if one != "passed")
    assert [one["report"]["outcome"] for one in done["gates"]] == list(outcomes)
    assert sample_jobs.told(promoting.db, made["id"])[-1][1] == f"promotion.{status}"
    assert promoting.audit("alias.update") == []


def test_forced_promotion_moves_without_gates(promoting: Promoting) -> None:
    made = promoting.create(gates=[], force=True, reason="the incumbent leaks")

    done = promoting.end(made)

    assert (done["status"], done["force"], promoting.model()) == ("promoted", True, promoting.candidate)
    [row] = promoting.audit("promotion.force")
    assert (row.target, row.details["reason"]) == (made["id"], "the incumbent leaks")


def test_prompt_gets_its_default_version(promoting: Promoting) -> None:
    path = f"/v1/prompts/{promoting.client.post('/v1/prompts', json=question('Brief: {{q}}')).json()['id']}"
    promoting.client.post(f"{path}/versions", json=question("Kind: {{q}}")).raise_for_status()
    prompt_id = path.rpartition("/")[2]
    asked = {"type": "prompt", "prompt": {"id": prompt_id, "variables": {"q": "{{ item.question }}"}}}
    source = gate(promoting.eval_id, promoting.file_id, input_messages=asked, model=BASE)
    target = {"type": "prompt", "id": prompt_id, "version": "2"}

    made = promoting.create(source, target=target)
    shown = [promoting.client.get(f"/v1/evals/{promoting.eval_id}/runs/{run}").json() for run in runs_of(made)]
    done = promoting.end(made, "passed")

    versions = [run["data_source"]["input_messages"]["prompt"]["version"] for run in shown]
    assert (made["incumbent"], versions) == ("1", ["2", "1"])
    assert (done["status"], promoting.client.get(path).json()["default_version"]) == ("promoted", "2")
    assert [row.details["promotion"] for row in promoting.audit("prompt.update")] == [made["id"]]


def question(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


# ── what happens meanwhile ──


def test_two_promotions_at_the_same_moment_move_the_alias_once(promoting: Promoting) -> None:
    first, second = promoting.create(), promoting.create(promoting.gate(minimum(0.5)))
    for promotion in (first, second):
        promoting.complete_runs(promotion)
    claims = [promoting.claim(promotion) for promotion in (first, second)]

    results = sample_jobs.at_once(2, lambda number: promoting.conclude(claims[number], "passed"))

    assert results == [None, None]
    ended = [promoting.show(promotion) for promotion in (first, second)]
    assert sorted(one["status"] for one in ended) == ["promoted", "refused"]
    assert [one["error"]["code"] for one in ended if one["error"]] == ["target_moved"]
    assert len(promoting.audit("alias.update")) == 1


def test_alias_that_was_moved_or_deleted_meanwhile_is_not_moved(app: FastAPI, promoting: Promoting) -> None:
    other = registered(app, create(promoting.client))
    moved, deleted = promoting.create(), promoting.create(promoting.gate(minimum(0.5)))
    promoting.client.post(f"/v1/aliases/{ALIAS}", json={"model": other}).raise_for_status()

    refused = promoting.end(moved, "passed")
    assert promoting.model() == other
    promoting.client.delete(f"/v1/aliases/{ALIAS}").raise_for_status()
    gone = promoting.end(deleted, "passed")

    assert [(one["status"], one["error"]["code"]) for one in (refused, gone)] == [
        ("refused", "target_moved"), ("refused", "alias_not_found")
    ]  # fmt: skip


def test_candidate_that_is_deleted_meanwhile_is_refused(promoting: Promoting) -> None:
    made = promoting.create()
    promoting.client.delete(f"/v1/models/{promoting.candidate}").raise_for_status()

    done = promoting.end(made, "passed")

    assert (done["status"], done["error"]["code"], promoting.model()) == ("refused", "model_not_found", BASE)


def test_key_that_may_not_move_the_alias_any_more_moves_nothing(app: FastAPI, promoting: Promoting) -> None:
    made = promoting.create()
    promoting.complete_runs(made)
    claim = promoting.claim(made)
    with promoting.db.write() as session:
        session.get_one(ApiKey, claim.job.key_id).revoked_at = now()

    promoting.conclude(claim, "passed")

    job = sample_jobs.job(promoting.db, made["id"])
    assert (promotions.outcome_of(job), (job.errors or [])[0]["code"]) == ("refused", "key_revoked")
    fresh = client_of(app, make_key(app))
    assert fresh.get(f"/v1/aliases/{ALIAS}").json()["model"] == BASE


def test_run_that_is_deleted_makes_its_promotion_inconclusive(promoting: Promoting) -> None:
    made = promoting.create()
    promoting.client.delete(f"/v1/evals/{promoting.eval_id}/runs/{runs_of(made)[0]}").raise_for_status()
    claim = sample_jobs.claim_job(promoting.db, runs_of(made)[0], Task.FINISH)
    with promoting.db.write() as session:
        ledger.close(session, claim, {}, [])
    with promoting.db.write() as session:
        job = session.get_one(Job, made["id"])
        error = ledger.dependency_error(session, job)
        assert error is not None
        ledger.fail_dependent(session, job, error, actor="dispatcher")

    done = promoting.show(made)

    assert (done["status"], done["error"]["code"], promoting.model()) == ("inconclusive", "dependency_failed", BASE)
    assert sample_jobs.told(promoting.db, made["id"])[-1][1] == "promotion.inconclusive"


def test_promotion_is_inconclusive_after_a_day_without_an_end(promoting: Promoting) -> None:
    made = promoting.create()
    job = sample_jobs.job(promoting.db, made["id"])
    assert (job.deadline or 0) - job.created_at == 86_400
    with promoting.db.write() as session:
        session.get_one(Job, made["id"]).deadline = now() - 1
    with promoting.db.write() as session:
        assert ledger.expire(session, made["id"], actor="dispatcher") is not None
    sample_jobs.close(promoting.db, made["id"])

    assert (promoting.show(made)["status"], promoting.model()) == ("inconclusive", BASE)


def test_cancelled_promotion_moves_nothing(promoting: Promoting) -> None:
    made = promoting.create()

    cancelled = promoting.client.post(f"/v1/promotions/{made['id']}/cancel").json()
    sample_jobs.close(promoting.db, made["id"])

    assert (cancelled["status"], promoting.show(made)["status"]) == ("cancelling", "cancelled")
    assert promoting.model() == BASE
    again = promoting.client.post(f"/v1/promotions/{made['id']}/cancel")
    assert again.json()["status"] == "cancelled"
    assert [row.target for row in promoting.audit("promotion.cancel")] == [made["id"]]


# ── killed ──


def test_worker_that_dies_before_the_commit_has_moved_nothing(promoting: Promoting) -> None:
    made = promoting.create()
    promoting.complete_runs(made)
    claim = promoting.claim(made)
    with sample_jobs.rolled_back(promoting.db) as session:
        promotions.conclude(session, claim, promoting.services.registry(), [GateReport(outcome="passed", reasons=[])])
    assert (promoting.model(), promoting.show(made)["status"]) == (BASE, "in_progress")
    with promoting.db.write() as session:  # the lease of the dead worker is revoked
        assert ledger.release(session, made["id"], claim.epoch)

    promoting.conclude(sample_jobs.claim_job(promoting.db, made["id"], Task.FINISH), "passed")

    assert (promoting.model(), promoting.show(made)["status"]) == (promoting.candidate, "promoted")
    assert len(promoting.audit("alias.update")) == 1


def test_worker_that_lost_its_claim_moves_nothing(promoting: Promoting) -> None:
    made = promoting.create()
    promoting.complete_runs(made)
    late = promoting.claim(made)
    with promoting.db.write() as session:
        assert ledger.release(session, made["id"], late.epoch)
    promoting.conclude(sample_jobs.claim_job(promoting.db, made["id"], Task.FINISH), "failed")

    with pytest.raises(ClaimLost):
        promoting.conclude(late, "passed")

    assert (promoting.model(), promoting.show(made)["status"]) == (BASE, "refused")
    assert sample_jobs.state(promoting.db, made["id"]) == JobState.FAILED


# ── bad input ──


def test_bad_promotions_are_refused_and_change_nothing(promoting: Promoting) -> None:
    other = {"model": BASE, "input_messages": MESSAGES}
    asks_base = promoting.gate()
    asks_base["data_source"] |= other
    answered = promoting.gate()
    answered["data_source"] = {"type": "jsonl", "source": {"type": "file_id", "id": promoting.file_id}}
    inline = promoting.gate()
    inline["data_source"] |= {"source": {"type": "file_content", "content": [{"item": {}}]}}
    ask = promoting.post

    assert [
        refusal(answer)
        for answer in (
            ask(),
            ask(promoting.gate(), force=True, reason="r"),
            ask(force=True),
            ask(promoting.gate(), target=to_model(BASE)),
            ask(promoting.gate(), target=to_model("no-model")),
            ask(promoting.gate(), target=to_model(ALIAS)),
            ask(promoting.gate(), target=to_model(promoting.candidate) | {"id": "no-alias"}),
            ask(promoting.gate(eval_id="eval_x")),
            ask(promoting.gate(criterion="other")),
            ask(asks_base),
            ask(answered),
            ask(inline),
            ask(gate(promoting.eval_id, "file-x")),
        )
    ] == [
        (400, "missing_required_parameter", "gates"),
        (400, "mutually_exclusive_parameters", "gates"),
        (400, "missing_required_parameter", "reason"),
        (400, "already_promoted", "target"),
        (400, "model_not_found", "target.model"),
        (400, "alias_of_alias", "target.model"),
        (400, "alias_not_found", "target.id"),
        (404, "not_found", "gates[0].eval_id"),
        (400, "criterion_not_found", "gates[0].criterion"),
        (400, "target_not_asked", "gates[0].data_source.model"),
        (400, "target_not_asked", "gates[0].data_source.model"),
        (400, "unsupported_value", "gates[0].data_source.source.type"),
        (400, "file_not_found", "gates[0].data_source.source.id"),
    ]
    assert ask(promoting.gate({"type": "minimum", "score": "much"})).status_code == 400
    assert ask(*[promoting.gate()] * 11).status_code == 400
    kinds = {job["kind"] for job in promoting.client.get("/v1/jobs").json()["data"]}
    assert kinds == {"finetuning"}
    assert promoting.audit("promotion.create") == []


def test_other_projects_see_no_promotion_and_promote_no_alias(promoting: Promoting, stranger: TestClient) -> None:
    made = promoting.create()

    theirs = {"target": to_model(BASE), "force": True, "reason": "mine"}
    answers = (
        stranger.get(f"/v1/promotions/{made['id']}"),
        stranger.post(f"/v1/promotions/{made['id']}/cancel"),
        stranger.post("/v1/promotions", json=theirs),
    )

    assert [answer.status_code for answer in answers] == [404, 404, 400]
    assert answers[2].json()["error"]["code"] == "alias_not_found"
    assert stranger.get("/v1/promotions").json()["data"] == []


def test_project_has_a_limited_number_of_live_promotions(promoting: Promoting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promotions, "MAX_LIVE", 1)
    promoting.create()

    answer = promoting.post(promoting.gate())

    assert answer.status_code == 429
    assert len(promoting.client.get("/v1/promotions").json()["data"]) == 1


def test_key_needs_the_permission_to_move_the_target(app: FastAPI, promoting: Promoting) -> None:
    with promoting.db.write() as session:
        key = keys.create_key(session, "default", scopes=["api.promotions.write", "api.evals.write"])
    client = client_of(app, key)

    answer = client.post(
        "/v1/promotions", json={"target": to_model(promoting.candidate), "force": True, "reason": "because"}
    )

    assert answer.status_code == 403
    assert "api.aliases.write" in answer.json()["error"]["message"]
