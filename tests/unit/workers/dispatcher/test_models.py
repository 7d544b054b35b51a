"""Jobs whose model nobody has: they say so, and hide none that can be answered."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet import workers
from jobs.ledger import ledger, outbox, pauses
from jobs.ledger.pauses import Scope
from jobs.queues import Queue
from tests.support import sample_jobs
from tests.support.dispatcher import DispatcherHarness, project_of


def test_job_without_a_live_worker_for_its_model_says_so(harness: DispatcherHarness) -> None:
    job = sample_jobs.running(harness.db, [4], project_id=project_of(harness.db, "one"))
    harness.worker(models=["another"])

    harness.tick(6)
    waiting = sample_jobs.job(harness.db, job.id).waiting_for
    claim = sample_jobs.claim_shard(harness.db, job.id)
    claimed = sample_jobs.job(harness.db, job.id).waiting_for
    sample_jobs.answer(harness.db, claim, [0])

    assert (waiting, claimed) == ("model", "model"), "whether the model answers is to be seen"
    assert sample_jobs.job(harness.db, job.id).waiting_for is None


def test_a_job_without_a_model_waits_for_a_worker_of_its_queue(harness: DispatcherHarness) -> None:
    """An eval run or a training that was accepted while its worker starts."""
    project = project_of(harness.db, "one")
    job = sample_jobs.running(harness.db, [1], on=Queue.EVALUATE, project_id=project, model=None)
    harness.worker(models=["tiny"])

    harness.tick(6)
    waiting = sample_jobs.job(harness.db, job.id).waiting_for
    harness.worker("evaluate", queue=Queue.EVALUATE, models=[])
    harness.tick(6)

    assert (waiting, sample_jobs.job(harness.db, job.id).waiting_for) == ("worker", None)


def test_a_job_waits_for_its_model_no_more_once_a_worker_that_has_it_runs_it(harness: DispatcherHarness) -> None:
    """Its first line may take minutes: a long prompt, a slow machine."""
    project = project_of(harness.db, "one")
    jobs = [sample_jobs.running(harness.db, [4], project_id=project, model=model).id for model in ("tiny", "gone")]
    harness.worker(models=["another"])
    harness.tick(6)
    for job_id in jobs:
        sample_jobs.claim_shard(harness.db, job_id)
    before = [sample_jobs.job(harness.db, job_id).waiting_for for job_id in jobs]

    harness.worker(models=["tiny"])
    harness.tick(6)

    assert before == ["model", "model"]
    assert [sample_jobs.job(harness.db, job_id).waiting_for for job_id in jobs] == [None, "model"]


def test_jobs_that_only_wait_for_a_slot_hide_none_that_waits_for_something(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are: here, more than are looked at together."""
    monkeypatch.setattr(ledger, "idle", partial(ledger.idle, limit=2))
    project, held = (project_of(harness.db, name) for name in ("one", "two"))
    slots = [sample_jobs.running(harness.db, project_id=project).id for _ in range(5)]
    waiting = {
        sample_jobs.running(harness.db, project_id=project, model="gone").id: "model",
        sample_jobs.running(harness.db, project_id=held).id: "pause",
        sample_jobs.running(harness.db, project_id=project, not_before=now() + 600).id: "time",
    }
    harness.worker(models=["tiny"])
    with harness.db.write() as session:
        pauses.pause(session, Scope.PROJECT, held, actor="operator")

    for _ in range(2):
        harness.tick(6)

    assert {job_id: sample_jobs.job(harness.db, job_id).waiting_for for job_id in waiting} == waiting
    assert {sample_jobs.job(harness.db, job_id).waiting_for for job_id in slots} == {None}


def test_paused_and_scheduled_jobs_do_not_hide_released_jobs(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "jobs_waiting_for", partial(ledger.jobs_waiting_for, limit=2))
    one, two = (project_of(harness.db, name) for name in ("one", "two"))
    held = [sample_jobs.running(harness.db, project_id=one).id for _ in range(5)]
    early = [sample_jobs.running(harness.db, project_id=two, not_before=now() + 600).id for _ in range(3)]
    goes_on = [sample_jobs.running(harness.db, project_id=two, not_before=at).id for at in (None, now() - 1)]
    harness.worker(models=["tiny"])
    with harness.db.write() as session:
        pauses.pause(session, Scope.PROJECT, one, actor="operator")
        for job_id in (*held, *goes_on[:1]):
            ledger.wait_for(session, job_id, "pause")
        for job_id in (*early, *goes_on[1:]):
            ledger.wait_for(session, job_id, "time")

    harness.tick(6)

    assert {sample_jobs.job(harness.db, job_id).waiting_for for job_id in goes_on} == {None}
    assert {sample_jobs.job(harness.db, job_id).waiting_for for job_id in held} == {"pause"}
    assert {sample_jobs.job(harness.db, job_id).waiting_for for job_id in early} == {"time"}


def test_work_for_unserved_model_takes_no_slot_of_served_work(harness: DispatcherHarness) -> None:
    project = project_of(harness.db, "one")
    gone = sample_jobs.running(harness.db, [1] * 5, project_id=project, model="gone", priority=10, deadline=now() + 100)
    job = sample_jobs.running(harness.db, [1] * 3, project_id=project)
    harness.worker(models=["tiny"])

    before = harness.tick()
    with harness.db.write() as session:
        workers.heartbeat(session, "w", models=["tiny", "gone"], slots=2)
    after = harness.tick(0.1)

    assert before == [("run", (job.id, n)) for n in range(2)]
    assert after == [("run", (gone.id, n)) for n in range(2)], "it goes on as soon as somebody has the model"


def test_a_project_of_which_nothing_can_be_answered_is_looked_through_once_a_second(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (project_of(harness.db, name) for name in ("one", "two"))
    sample_jobs.running(harness.db, [1] * 5, project_id=one, model="gone")
    harness.worker(models=["tiny"])
    looks: list[str] = []
    due = outbox.due

    def looked(session: Session, queue: str, project: str, *rest: Any, **named: Any) -> Sequence[outbox.DueMessage]:
        looks.append(project)
        return due(session, queue, project, *rest, **named)

    monkeypatch.setattr(outbox, "due", looked)

    assert [harness.tick(after) for after in (0, 0.1, 0.1)] == [[], [], []]
    at_first = looks.count(one)
    job = sample_jobs.running(harness.db, [1], project_id=one)
    other = sample_jobs.running(harness.db, [1], project_id=two)

    assert harness.tick(0.1) == [("run", (other.id, 0))], "others are served meanwhile"
    assert (at_first, looks.count(one)) == (2, 2), "once what can be answered, once whether there is more"
    assert harness.tick(1) == [("run", (job.id, 0))]


@pytest.mark.parametrize("end", [ledger.cancel, ledger.expire], ids=["cancelled", "expired"])
def test_stopped_job_for_unserved_model_gets_finish_message(
    harness: DispatcherHarness, end: Callable[..., object]
) -> None:
    gone = sample_jobs.running(
        harness.db, [1] * 5, project_id=project_of(harness.db, "one"), model="gone", deadline=now() - 1
    )
    harness.worker(models=["tiny"])
    harness.worker("planner", queue=Queue.PLAN, models=[])
    with harness.db.write() as session:
        end(session, gone.id, actor="test")

    assert ("finish", (gone.id,)) in harness.tick(6)


def test_other_names_of_a_model_are_its_own(db: Database, tmp_path: Path) -> None:
    _models(tmp_path, "aliases: [small]")
    harness = DispatcherHarness(db, tmp_path)
    job = sample_jobs.running(db, [1], project_id=project_of(db, "one"), model="small")
    sample_jobs.running(db, [1], project_id=project_of(db, "one"), model="large")
    harness.worker(models=["tiny"])

    assert harness.tick() == [("run", (job.id, 0))]


def test_an_endpoint_that_takes_any_name_is_not_meant_by_those_of_the_file(db: Database, tmp_path: Path) -> None:
    _models(tmp_path, "aliases: [small]")
    harness = DispatcherHarness(db, tmp_path)
    for name in ("tiny", "small"):
        sample_jobs.running(db, [1], project_id=project_of(db, "one"), model=name)
    job = sample_jobs.running(db, [1], project_id=project_of(db, "one"), model="anything")
    harness.worker(slots=2)

    assert harness.tick() == [("run", (job.id, 0))]


def test_work_is_published_while_models_file_is_invalid(db: Database, tmp_path: Path) -> None:
    file = _models(tmp_path, "engine: warp")
    harness = DispatcherHarness(db, tmp_path)
    job = sample_jobs.running(db, [1], project_id=project_of(db, "one"), model="small")
    harness.worker(models=["tiny"])

    assert harness.tick(6) == [("run", (job.id, 0))]
    assert file.exists()


def test_models_that_were_known_stay_so_while_their_file_is_wrong(db: Database, tmp_path: Path) -> None:
    file = _models(tmp_path, "aliases: [small]")
    harness = DispatcherHarness(db, tmp_path)
    job = sample_jobs.running(db, [1], project_id=project_of(db, "one"), model="small")
    gone = sample_jobs.running(db, [1], project_id=project_of(db, "one"), model="large")
    harness.worker(models=[])
    harness.tick()
    file.write_text("models: {x: {engine: warp}}")
    with db.write() as session:
        workers.heartbeat(session, "w", models=["tiny"])

    assert harness.tick(6) == [("run", (job.id, 0))]
    assert sample_jobs.job(db, gone.id).waiting_for == "model"


def _models(folder: Path, line: str) -> Path:
    """Write a models file with one model, `tiny`, and this line about it."""
    file = folder / "models.yaml"
    file.write_text(f"models:\n  tiny:\n    source: {{urls: [http://localhost:1]}}\n    engine: http\n    {line}\n")
    return file
