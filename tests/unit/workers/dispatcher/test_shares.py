"""One project never takes all processes of a pool, whatever it has waiting."""

from typing import Any

import pytest
from sqlalchemy import update

from jobs import ids
from jobs.fleet.tables import Worker
from jobs.ledger import ledger
from jobs.ledger.tables import Job, Outbox
from jobs.queues import Queue, Task
from tests.support import sample_jobs
from tests.support.dispatcher import DispatcherHarness, new_file, project_of
from workers.__main__ import process_count
from workers.tasks import CPU_POOL, EVALUATE_POOL

pytestmark = pytest.mark.dialects

Message = tuple[str, tuple[Any, ...]]


class Pools:
    """The processes of both pools, which claim whatever is published and do not end."""

    def __init__(self, harness: DispatcherHarness) -> None:
        self.harness, self.claimed = harness, list[Message]()
        for pool in (CPU_POOL, EVALUATE_POOL):
            for n in range(process_count(pool, 2)):
                harness.worker(f"{pool.name}-{n}", *pool.queues)

    def tick(self, after: float = 0.1) -> list[Message]:
        published = self.harness.tick(after)
        for task, (job_id, *shard) in published:
            if task == Task.RUN:
                sample_jobs.claim_shard(self.harness.db, str(job_id), int(str(shard[0])))
            else:
                sample_jobs.claim_job(self.harness.db, str(job_id), Task(task), "cpu-0")
        self.claimed += published
        return published

    def taken(self, pool: str) -> int:
        """Return how many processes of a pool hold a claim, if every claim takes one."""
        queues = CPU_POOL.queues if pool == "cpu" else EVALUATE_POOL.queues
        return sum(self._queue(message) in queues for message in self.claimed)

    def ingesting(self) -> int:
        return sum(self._queue(message) == Queue.INGEST for message in self.claimed)

    def _queue(self, message: Message) -> str:
        job = sample_jobs.job(self.harness.db, message[1][0])
        return str(job.queue) if message[0] == Task.RUN else Queue.PLAN


def _fill(harness: DispatcherHarness, project: str, shards: int = 300) -> None:
    """Give a project slow work for every queue of both pools."""
    sample_jobs.running(harness.db, [1] * shards, Queue.EVALUATE, kind="evaluation", project_id=project)
    sample_jobs.running(harness.db, [1] * shards, Queue.INGEST, kind="ingestion", project_id=project)
    for _ in range(20):
        sample_jobs.submitted(harness.db, kind="evaluation", project_id=project)
        _submitted_with_file(harness, project, "finetuning", 10)  # a tokenizer reads its small file for minutes


def _submitted_with_file(harness: DispatcherHarness, project: str, kind: str, size: int) -> str:
    job = sample_jobs.new_job(kind=kind, project_id=project, input_file_id=ids.new_id("file-"))
    with harness.db.write() as session:
        session.add(new_file(str(job.input_file_id), bytes=size))
        return ledger.submit(session, job, actor="key:test").id


def test_backlog_of_project_leaves_process_for_each_task_of_other_project(
    harness: DispatcherHarness,
) -> None:
    one, two = project_of(harness.db, "one"), project_of(harness.db, "two")
    pools = Pools(harness)
    _fill(harness, one)
    for _ in range(5):
        pools.tick()
    before = pools.taken("cpu"), pools.taken("evaluate")

    graded = sample_jobs.running(harness.db, [1], Queue.EVALUATE, kind="evaluation", project_id=two).id
    parsed = sample_jobs.running(harness.db, [1], Queue.INGEST, kind="ingestion", project_id=two).id
    small = _submitted_with_file(harness, two, "generation", 10)
    published = pools.tick()

    assert before == (2, 2)
    assert sorted(published) == sorted([(Task.RUN, (graded, 0)), (Task.RUN, (parsed, 0)), (Task.PLAN, (small,))])
    assert (pools.taken("cpu"), pools.taken("evaluate")) == (4, 3)


def test_each_small_training_file_takes_own_planning_process(harness: DispatcherHarness) -> None:
    one, pools = project_of(harness.db, "one"), Pools(harness)
    jobs = [_submitted_with_file(harness, one, "finetuning", 10) for _ in range(9)]

    assert pools.tick() == [(Task.PLAN, (job_id,)) for job_id in jobs[:2]]


def test_ingestion_of_many_projects_leaves_a_process_to_planning(harness: DispatcherHarness) -> None:
    pools = Pools(harness)
    for name in ("one", "two"):
        sample_jobs.running(
            harness.db, [1] * 9, Queue.INGEST, kind="ingestion", project_id=project_of(harness.db, name)
        )
    for _ in range(3):
        pools.tick()

    assert pools.ingesting() == 3


def test_removals_count_as_ingestion(harness: DispatcherHarness) -> None:
    pools = Pools(harness)
    with harness.db.write() as session:
        session.execute(update(Worker).where(Worker.id == "cpu-0").values(other_work=[[Queue.INGEST, "", "", 2]]))
    sample_jobs.running(harness.db, [1] * 9, Queue.INGEST, kind="ingestion", project_id=project_of(harness.db, "one"))
    pools.tick()

    assert pools.ingesting() == 1


def test_queues_of_pool_share_project_limit(harness: DispatcherHarness) -> None:
    """Neither of the two waits for the end of the other: when a process becomes free, the other one is next."""
    one, pools = project_of(harness.db, "one"), Pools(harness)
    job = sample_jobs.running(harness.db, [1] * 50, Queue.INGEST, kind="ingestion", project_id=one)
    for _ in range(50):
        sample_jobs.submitted(harness.db, kind="evaluation", project_id=one)

    tasks = [[task for task, _ in pools.tick()]]
    for n in range(2):
        with harness.db.write() as session:  # both processes become free
            session.execute(update(Job).values(worker_id=None))
        for claimed in [n for task, (_, *shard) in pools.claimed if task == Task.RUN for n in shard]:
            if sample_jobs.shard(harness.db, job.id, claimed).state == "running":
                sample_jobs.lose(harness.db, job.id, claimed)
        tasks.append([task for task, _ in pools.tick()])

    assert {task for round_ in tasks for task in round_} == {Task.PLAN, Task.RUN}
    assert all(len(round_) == 2 for round_ in tasks)


def test_the_next_tick_comes_soon_while_messages_wait_for_a_share(harness: DispatcherHarness) -> None:
    one = project_of(harness.db, "one")
    sample_jobs.running(harness.db, [1] * 3, Queue.EVALUATE, kind="evaluation", project_id=one)
    for n in range(3):
        harness.worker(f"evaluate-{n}", Queue.EVALUATE)
    ticks = [harness.dispatcher.tick() for _ in range(3)]
    with harness.db.write() as session:
        session.execute(update(Outbox).values(published_at=1.0))

    assert (ticks, harness.dispatcher.tick()) == ([True] * 3, False)


def test_finish_claim_in_other_pool_takes_no_planning_process(harness: DispatcherHarness) -> None:
    one, pools = project_of(harness.db, "one"), Pools(harness)
    for _ in range(5):
        job = sample_jobs.finishing(harness.db, [1], project_id=one)
        sample_jobs.claim_job(harness.db, job.id, Task.FINISH, "gpu-1")
    job = sample_jobs.submitted(harness.db, project_id=one)

    assert pools.tick() == [(Task.PLAN, (job.id,))]


def test_finish_claim_of_grader_counts_in_its_own_pool(harness: DispatcherHarness) -> None:
    one, pools = project_of(harness.db, "one"), Pools(harness)
    for n in range(2):
        job = sample_jobs.finishing(harness.db, [1], project_id=one)
        sample_jobs.claim_job(harness.db, job.id, Task.FINISH, f"evaluate-{n}")
    sample_jobs.running(harness.db, [1], Queue.EVALUATE, kind="evaluation", project_id=one)
    job = sample_jobs.submitted(harness.db, project_id=one)

    assert pools.tick() == [(Task.PLAN, (job.id,))]


def test_messages_beyond_a_share_that_became_smaller_are_not_redelivered(harness: DispatcherHarness) -> None:
    one = project_of(harness.db, "one")
    sample_jobs.running(harness.db, [1] * 9, Queue.EVALUATE, kind="evaluation", project_id=one)
    harness.worker("many", Queue.EVALUATE, slots=8)
    published = harness.tick()
    harness.worker("many", Queue.EVALUATE, slots=3)

    again = harness.tick(11)

    assert len(published) == 4
    assert again == published[:2]


def test_a_training_that_runs_has_no_other_of_its_project_published_behind_it(harness: DispatcherHarness) -> None:
    one, two = project_of(harness.db, "one"), project_of(harness.db, "two")
    first, _ = [_training(harness, one) for _ in range(2)]
    harness.worker("trainer", Queue.FINETUNE)
    alone = harness.tick()
    sample_jobs.claim_shard(harness.db, first)
    still = harness.tick(0.1)
    other = _training(harness, two)

    assert (alone, still) == ([(Task.RUN, (first, 0))], [])
    assert harness.tick(0.1) == [(Task.RUN, (other, 0))]


def _training(harness: DispatcherHarness, project: str) -> str:
    return sample_jobs.running(harness.db, [1], Queue.FINETUNE, kind="finetuning", project_id=project).id
