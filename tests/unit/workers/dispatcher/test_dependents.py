"""The sweep over jobs that wait for others: released, failed or cancelled, each in a transaction of its own."""

from dataclasses import replace
from itertools import pairwise

import pytest
from sqlalchemy import select

from jobs.db.engine import Database
from jobs.ledger import dependencies, ledger
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.queues import Queue, Task
from jobs.retrieval import attachments
from jobs.retrieval.attachments import Attachment
from jobs.retrieval.tables import VectorStore, VectorStoreFile
from jobs.timings import Timings
from tests.support import sample_jobs
from tests.support.dispatcher import DispatcherHarness, project_of
from workers.dispatcher.loop import Dispatcher

pytestmark = pytest.mark.dialects


def states(db: Database, *job_ids: str) -> list[str]:
    return [sample_jobs.state(db, job_id) for job_id in job_ids]


def test_plan_message_is_published_after_last_predecessor_completes(harness: DispatcherHarness) -> None:
    project = project_of(harness.db, "one")
    harness.worker(queue=Queue.PLAN)
    first = sample_jobs.finishing(harness.db, [1], project_id=project).id
    waiting = sample_jobs.submitted(harness.db, project_id=project, after=[first]).id

    before = harness.tick()
    sample_jobs.close(harness.db, first)

    assert (Task.PLAN, (waiting,)) not in [(task, tuple(ids)) for task, ids in before]
    assert (Task.PLAN, (waiting,)) in harness.tick(1)


def test_dependents_that_no_transaction_released_are_released_by_the_sweep(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = project_of(harness.db, "one")
    first = sample_jobs.finishing(harness.db, [1], project_id=project).id
    waiting = [sample_jobs.submitted(harness.db, project_id=project, after=[first]).id for _ in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(dependencies, "dependents", lambda *_: [])
        sample_jobs.close(harness.db, first)
    assert [sample_jobs.outbox_messages(harness.db, job_id) for job_id in waiting] == [[]] * 3

    harness.tick(6)

    assert [sample_jobs.outbox_messages(harness.db, job_id) for job_id in waiting] == [[("plan", -1)]] * 3


def test_failure_propagates_along_chain_and_names_each_predecessor(harness: DispatcherHarness) -> None:
    project = project_of(harness.db, "one")
    first = sample_jobs.planning(harness.db, project_id=project)
    chain = [first.job.id]
    for _ in range(4):
        chain.append(sample_jobs.submitted(harness.db, project_id=project, after=[chain[-1]]).id)
    with harness.db.write() as session:
        ledger.reject(session, first, [{"code": "empty_file"}])

    harness.tick(6)

    assert states(harness.db, *chain) == [JobState.FAILED] * 5
    for before, job_id in pairwise(chain):
        errors = sample_jobs.job(harness.db, job_id).errors
        assert errors is not None
        assert (errors[0]["code"], before in errors[0]["message"]) == ("dependency_failed", True)
        assert sample_jobs.told(harness.db, job_id)[-1] == (2, "batch.failed")
        assert sample_jobs.history(harness.db, job_id)[-1] == ("queued", "failed")


def test_a_file_batch_that_waited_in_vain_fails_with_its_files_some_at_a_time(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachments, "STOPPED_AT_ONCE", 2)
    project = project_of(harness.db, "one")
    first = sample_jobs.planning(harness.db, project_id=project)
    facts = {"name": "n", "model": "m", "chunking": {}, "dimensions": 4, "created_at": 1.0, "active_at": 1.0}
    with harness.db.write() as session:
        store = VectorStore(id="vs_1", project_id=project, **facts)
        session.add(store)
        job = sample_jobs.new_job(
            id="vsfb_1", kind="ingestion", payload={"store_id": "vs_1"}, total=5, project_id=project
        )
        ledger.submit(session, job, actor="key:test", after=[first.job.id])
        attachments.attach(session, store, job, [Attachment(f"file-{n}", "f.txt") for n in range(5)])
    with harness.db.write() as session:
        ledger.reject(session, first, [{"code": "empty_file"}])

    harness.tick(6)

    assert sample_jobs.told(harness.db, "vsfb_1")[1:] == [
        *((n, "vector_store.file.failed") for n in range(2, 7)),
        (7, "vector_store.file_batch.failed"),
    ]
    with harness.db.read() as session:
        files = session.execute(select(VectorStoreFile.status, VectorStoreFile.error_message)).all()
    assert files == [("failed", f"The job waited for '{first.job.id}', which ended in state 'failed'.")] * 5


def test_the_children_of_a_cancelled_job_are_cancelled_and_theirs(harness: DispatcherHarness) -> None:
    project = project_of(harness.db, "one")
    parent = sample_jobs.running(harness.db, project_id=project).id
    child = sample_jobs.submitted(harness.db, project_id=project, parent_id=parent).id
    grandchild = sample_jobs.running(harness.db, project_id=project, parent_id=child).id
    done = sample_jobs.finishing(harness.db, [1], project_id=project, parent_id=parent).id
    other = sample_jobs.running(harness.db, project_id=project, parent_id=done).id
    with harness.db.write() as session:
        ledger.cancel(session, parent, actor="key:test")

    harness.tick(6)

    stopped = [JobState.CANCELLING] * 3
    assert states(harness.db, parent, child, grandchild, done, other) == [
        *stopped,
        JobState.FINISHING,
        JobState.RUNNING,
    ]


@pytest.mark.parametrize("time_for_one", [False, True])
def test_children_of_a_cancelled_job_do_not_fail_because_of_each_other(
    harness: DispatcherHarness, *, time_for_one: bool
) -> None:
    """A child that waits for another one is cancelled too, however late the sweep comes to it."""
    if time_for_one:
        timings = replace(Timings(), dependents_pass=0.0)
        harness.dispatcher = Dispatcher(
            harness.config, harness.db, harness.storage, harness.broker, harness.clock, timings
        )
    project = project_of(harness.db, "one")
    parent = sample_jobs.running(harness.db, project_id=project).id
    first = sample_jobs.submitted(harness.db, project_id=project, parent_id=parent).id
    second = sample_jobs.submitted(harness.db, project_id=project, parent_id=parent, after=[first]).id
    other = sample_jobs.submitted(harness.db, project_id=project, after=[first]).id
    with harness.db.write() as session:
        ledger.cancel(session, parent, actor="key:test")
        ledger.cancel(session, first, actor="dispatcher")
    sample_jobs.close(harness.db, first)

    for _ in range(3):
        harness.tick(6)

    assert states(harness.db, parent, first, second, other) == [
        JobState.CANCELLING,
        JobState.CANCELLED,
        JobState.CANCELLING,
        JobState.FAILED,
    ]


def test_jobs_that_wait_for_live_ones_are_left_alone(harness: DispatcherHarness) -> None:
    project = project_of(harness.db, "one")
    first = sample_jobs.running(harness.db, project_id=project).id
    waiting = sample_jobs.submitted(harness.db, project_id=project, after=[first]).id

    harness.tick(6)

    with harness.db.read() as session:
        row = session.get_one(Job, waiting)
    assert (row.state, row.waiting_for, row.epoch) == (JobState.QUEUED, "job", 0)


def test_job_with_failed_and_completed_predecessors_fails(harness: DispatcherHarness) -> None:
    project = project_of(harness.db, "one")
    good = sample_jobs.finishing(harness.db, [1], project_id=project).id
    bad = sample_jobs.planning(harness.db, project_id=project)
    waiting = sample_jobs.submitted(harness.db, project_id=project, after=[good, bad.job.id]).id
    with harness.db.write() as session:
        ledger.reject(session, bad, [{"code": "empty_file"}])
    sample_jobs.close(harness.db, good)

    harness.tick(6)

    assert sample_jobs.state(harness.db, waiting) == JobState.FAILED


def test_a_long_cascade_goes_on_a_second_later(harness: DispatcherHarness) -> None:
    timings = replace(Timings(), dependents_pass=0.0)  # one job a pass
    harness.dispatcher = Dispatcher(harness.config, harness.db, harness.storage, harness.broker, harness.clock, timings)
    project = project_of(harness.db, "one")
    first = sample_jobs.planning(harness.db, project_id=project)
    waiting = [sample_jobs.submitted(harness.db, project_id=project, after=[first.job.id]).id for _ in range(3)]
    with harness.db.write() as session:
        ledger.reject(session, first, [{"code": "empty_file"}])

    harness.tick(5)
    failed = [sum(state == JobState.FAILED for state in states(harness.db, *waiting))]
    for _ in range(2):
        harness.tick(1)
        failed.append(sum(state == JobState.FAILED for state in states(harness.db, *waiting)))

    assert failed == [1, 2, 3]
