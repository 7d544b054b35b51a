"""Enqueued tokens of a project's batches, of a model or of all."""

from typing import Any

import pytest

from jobs.clock import now
from jobs.db.engine import Database
from jobs.files.tables import File
from jobs.fleet import enqueued_tokens
from jobs.fleet.models_file import Registry
from jobs.ledger.states import JobState
from jobs.security import keys
from jobs.settings import Settings
from jobs.usage.project_limits import set_limits
from jobs.usage.rate_limits import set_limits as set_rates
from tests.support import sample_jobs

MODEL, ALIAS, OTHER = "smollm2-135m-instruct", "gpt-4o-mini", "all-minilm-l6-v2"
CONFIG: Any = Settings(openai_aliases=True)


@pytest.fixture
def project_id(db: Database) -> str:
    with db.write() as session:
        return keys.ensure_project(session, "a").id


def enqueue(db: Database, project_id: str, tokens: int, **facts: Any) -> None:
    """Add a live job with so many tokens of input."""
    job = sample_jobs.new_job(project_id=project_id, state=JobState.RUNNING, in_progress_at=now(), event_seq=1, **facts)
    job.input_file_id = f"file-{job.id}"
    with db.write() as session:
        session.add(
            File(
                id=job.input_file_id, project_id=project_id, purpose="batch", filename="a", bytes=4 * tokens,
                path="a", created_at=now(),
            )
        )  # fmt: skip
        session.add(job)


def refusal(db: Database, project_id: str, tokens: int, model: str = MODEL) -> str | None:
    """Return the message of the refusal of a batch of so many tokens."""
    with db.read() as session:
        limit = enqueued_tokens.limit_for(session, CONFIG, Registry.load(CONFIG), project_id, model)
        refused = limit.refusal(session, 4 * tokens) if limit else None
    return None if refused is None else f"{refused.code}: {refused.message}"


def test_limit_of_a_model_counts_its_names_and_its_tuned_models_alone(db: Database, project_id: str) -> None:
    with db.write() as session:
        set_rates(session, project_id, MODEL, {"enqueued_tokens": 100})
    for model in (MODEL, ALIAS, f"ft:{MODEL}:acme::abc"):
        enqueue(db, project_id, 20, model=model)
    enqueue(db, project_id, 500, model=OTHER)

    assert refusal(db, project_id, 40) is refusal(db, project_id, 40, ALIAS) is None
    assert refusal(db, project_id, 1_000_000, OTHER) is None
    assert refusal(db, project_id, 41) == (
        f"token_limit_exceeded: Enqueued token limit reached for {MODEL} in this project. Limit: 100 enqueued tokens. "
        "Used: 60. Requested: 41. Please try again once some in_progress batches have been completed."
    )


def test_limit_of_a_model_goes_before_that_of_all_models(db: Database, project_id: str) -> None:
    with db.write() as session:
        project = keys.ensure_project(session, "a")
        set_limits(session, project, {"max_queued_tokens": 10}, actor="operator")
        set_rates(session, project_id, MODEL, {"enqueued_tokens": 100})

    assert refusal(db, project_id, 50) is None
    assert "for this project. Limit: 10" in str(refusal(db, project_id, 50, OTHER))


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.EXPIRED, JobState.CANCELLED])
def test_job_that_has_ended_holds_no_tokens(db: Database, project_id: str, state: JobState) -> None:
    with db.write() as session:
        set_rates(session, project_id, MODEL, {"enqueued_tokens": 100})
    enqueue(db, project_id, 100, model=MODEL)
    assert refusal(db, project_id, 1) is not None

    with db.write() as session:
        session.query(sample_jobs.Job).update({"state": state})

    assert refusal(db, project_id, 100) is None


def test_deleted_input_file_of_a_live_job_still_counts(db: Database, project_id: str) -> None:
    with db.write() as session:
        set_rates(session, project_id, MODEL, {"enqueued_tokens": 100})
    enqueue(db, project_id, 100, model=MODEL)

    with db.write() as session:
        session.query(File).update({"deleted_at": now()})

    assert refusal(db, project_id, 1) is not None


def test_limit_of_nothing_refuses_every_batch(db: Database, project_id: str) -> None:
    with db.write() as session:
        set_rates(session, project_id, MODEL, {"enqueued_tokens": 0})

    assert "Limit: 0 enqueued tokens" in str(refusal(db, project_id, 1))
