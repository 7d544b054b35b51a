"""The records of a training: only the holder of the claim writes them, each step once."""

from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import select

from jobs.db.engine import Database
from jobs.errors import ClaimLost
from jobs.finetuning import jobs
from jobs.finetuning.tables import FinetuneEvent, FinetunePlan, FinetuneStep
from jobs.ledger import shards
from jobs.ledger.shards import ShardClaim
from jobs.security.tables import Project
from jobs.settings import Settings
from jobs.usage.minutes import TRAINING
from jobs.usage.tables import UsageChange
from tests.support import sample_jobs
from workers.engines.training.protocol import EvaluationReport, Started, Step
from workers.finetuning.limits import TrainingTime
from workers.finetuning.recorder import Recorder

PAYLOAD = {"model": "tiny", "base": "tiny", "result": "ft:tiny:one::abc", "seed": 7}


@pytest.fixture
def claim(db: Database) -> ShardClaim:
    with db.write() as session:
        session.add(Project(id="proj_1", name="one", created_at=1.0))
    job = sample_jobs.running(db, (1,), kind=jobs.NAME, id="ftjob-1", endpoint=None, deadline=None, payload=PAYLOAD)
    with db.write() as session:
        session.add(
            FinetunePlan(
                job_id=job.id, n_epochs=1, batch_size=2, learning_rate_multiplier=1.0, rows=8, validation_rows=0,
                tokens=80, steps=4,
            )
        )  # fmt: skip
    return sample_jobs.claim_shard(db, job.id)


def recorder_of(db: Database, claim: ShardClaim) -> Recorder:
    context: Any = SimpleNamespace(db=db, config=Settings())
    with db.read() as session:
        spent = TrainingTime(session.get_one(FinetunePlan, claim.job.id))
    recorder = Recorder(context, claim, spent)
    recorder.record_start(Started(4, 8, 80, "float32", "cpu", 0, {}, {}))
    return recorder


def step(number: int, loss: float) -> Step:
    return Step(number, number / 4, loss, 0.5, 1.0, 1e-4, 100.0, 1)


def losses(db: Database) -> dict[int, float]:
    with db.read() as session:
        return {row.step: row.train_loss for row in session.scalars(select(FinetuneStep))}


def count_events(db: Database) -> int:
    with db.read() as session:
        return len(session.scalars(select(FinetuneEvent)).all())


def test_repeated_training_step_has_single_row(db: Database, claim: ShardClaim) -> None:
    recorder = recorder_of(db, claim)
    for number, loss in ((1, 3.0), (2, 2.0), (1, 3.5)):
        recorder.record_step(step(number, loss))
        recorder.flush()
    recorder.record_evaluation(EvaluationReport(2, 2.5, None))
    recorder.flush()

    assert losses(db) == {1: 3.5, 2: 2.0}
    with db.read() as session:
        assert session.scalars(select(FinetuneStep.valid_loss).order_by(FinetuneStep.step)).all() == [None, 2.5]


def test_events_of_metrics_have_the_rewards_of_preferences(db: Database, claim: ShardClaim) -> None:
    recorder = recorder_of(db, claim)
    recorder.record_step(replace(step(1, 0.6), preference={"rewards/margins": 0.25, "logps/chosen": -3.0}))
    recorder.record_evaluation(EvaluationReport(1, 0.5, 0.75, {"rewards/margins": 0.5}))
    recorder.flush()

    with db.read() as session:
        rows = session.scalars(select(FinetuneEvent).where(FinetuneEvent.type == "metrics")).all()
    trained, evaluated = (row.data or {} for row in rows)
    assert (trained["rewards/margins"], trained["logps/chosen"]) == (0.25, -3.0)
    assert evaluated["full_valid_rewards/margins"] == 0.5


def test_former_holder_of_the_claim_records_nothing(db: Database, claim: ShardClaim) -> None:
    recorder = recorder_of(db, claim)
    recorder.record_step(step(1, 3.0))
    with db.write() as session:
        shards.release(session, claim)
    sample_jobs.claim_shard(db, claim.job.id, worker="another")
    before = count_events(db)

    with pytest.raises(ClaimLost):
        recorder.flush()

    assert losses(db) == {}
    assert count_events(db) == before


def test_tokens_of_a_step_that_is_trained_twice_count_once(db: Database, claim: ShardClaim) -> None:
    for last in (2, 3):  # the second trainer goes on after a checkpoint at the first step
        recorder = recorder_of(db, claim)
        for number in range(1, last + 1):
            recorder.record_step(step(number, 2.0))
            recorder.flush()

    with db.read() as session:
        rows = [row for change in session.scalars(select(UsageChange.rows)) for row in change if row[4] == TRAINING]
    assert sum(row[9] for row in rows) == round(80 * 3 / 4)
    assert {row[3] for row in rows} == {"tiny"}
