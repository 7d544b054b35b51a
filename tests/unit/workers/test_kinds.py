"""The table of kinds: both halves of each row, what an unknown kind meets, and what a new kind needs."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from jobs.batches import batches
from jobs.db.engine import Database
from jobs.files.tables import File
from jobs.ids import new_id
from jobs.inference import responses
from jobs.ledger import kinds, ledger, slot_weights
from jobs.ledger.kinds import Kind, Payload, UnknownKind
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.retrieval.ingestion_kind import INGESTION
from jobs.security import keys
from jobs.settings import Settings
from tests.support import counting, counting_kind, sample_jobs
from tests.support.counting_kind import COUNTING
from tests.support.inline_deployment import InlineDeployment, running
from workers.kinds import HANDLERS

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def inline(db: Database, tmp_path: Path) -> Iterator[InlineDeployment]:
    with running(db, tmp_path) as inline:
        yield inline


def test_every_kind_has_both_halves() -> None:
    assert HANDLERS.keys() == kinds.TABLE.keys()
    assert all(kinds.of(name).name == name for name in kinds.TABLE)


def test_each_kind_tells_of_its_end_in_its_own_words() -> None:
    assert batches.KINDS[1].event("batch_1", JobState.SUCCEEDED) == "batch.completed"
    assert responses.RESPONSE.event("resp_1", JobState.EXPIRED) == "response.failed"
    assert INGESTION.event("vsfb_1", JobState.CANCELLED) == "vector_store.file_batch.cancelled"
    assert INGESTION.event("ing_1", JobState.CANCELLED) == "job.cancelled"
    assert responses.RESPONSE.event("resp_1", JobState.RUNNING) == "job.running"


def test_job_of_an_unknown_kind_is_not_submitted(db: Database) -> None:
    with pytest.raises(UnknownKind, match="no jobs of kind 'nothing'"), db.write() as session:
        ledger.submit(session, sample_jobs.new_job(kind="nothing"), actor="test")

    with db.read() as session:
        assert session.query(Job).count() == 0


def test_no_job_moves_in_a_process_that_knows_no_kinds(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    job = sample_jobs.submitted(db)
    monkeypatch.setattr(kinds, "TABLE", {})

    with pytest.raises(RuntimeError, match="known_kinds"), db.write() as session:
        ledger.cancel(session, job.id, actor="test")

    assert sample_jobs.state(db, job.id) == JobState.QUEUED


def test_empty_kinds_table_raises_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without the table would tell no webhook of an event, and delete files that live jobs read."""
    monkeypatch.setattr(kinds, "TABLE", {})

    for ask in (
        kinds.event_types,
        partial(kinds.names, bool),
        partial(kinds.is_read, File.id),
        partial(slot_weights.weight_of_shards, Settings()),
    ):
        with pytest.raises(RuntimeError, match="known_kinds"):
            ask()


def test_job_of_a_kind_that_only_a_later_version_knows_fails_and_says_so(
    inline: InlineDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setitem(kinds.TABLE, "later", Kind("later", "Later", "later_", Payload, {}))
        job_id = inline.submit(b"{}\n", id=new_id("later_"), kind="later")

    (job,) = inline.drain(job_id)

    assert (job.state, [error["code"] for error in job.errors or []]) == (JobState.FAILED, ["unknown_kind"])
    assert "no jobs of kind 'later'" in (job.errors or [{}])[0]["message"]
    assert sample_jobs.told(inline.db, job_id)[-1][1] == "job.failed"


def test_cancelled_job_of_an_unknown_kind_ends_too(inline: InlineDeployment, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setitem(kinds.TABLE, "later", Kind("later", "Later", "later_", Payload, {}))
        job_id = inline.submit(b"{}\n", id=new_id("later_"), kind="later")
    with inline.db.write() as session:
        ledger.cancel(session, job_id, actor="test")

    (job,) = inline.drain(job_id)

    assert (job.state, [error["code"] for error in job.errors or []]) == (JobState.FAILED, ["unknown_kind"])


def test_new_kind_is_planned_run_and_finished_by_its_two_rows_alone(
    inline: InlineDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kinds.TABLE, COUNTING.name, COUNTING)
    monkeypatch.setitem(HANDLERS, COUNTING.name, counting.HANDLER)
    counting_kind.ENDED.clear()
    with inline.db.write() as session:
        owner = keys.ensure_project(session, "default")
        job = counting_kind.submit(session, owner.id, actor="test")

    (job,) = inline.drain(job.id)

    assert (job.state, job.completed, job.failed, job.deadline) == (JobState.SUCCEEDED, 5, 0, None)
    assert [f"{job.id} succeeded"] == counting_kind.ENDED
    told = [kind for _, kind in sample_jobs.told(inline.db, job.id)]
    assert told == ["job.created", "job.running", "job.finishing", "counting.counted"]
    assert "counting.counted" in kinds.event_types()


def test_new_kind_is_known_to_every_shared_place_by_its_two_rows_alone(sqlite_url: str, tmp_path: Path) -> None:
    """Another process registers it as `jobs.known_kinds` does, before the API reads the table."""
    script = """if True:
        import sys
        from jobs.ledger import kinds
        from tests.support.counting_kind import COUNTING
        kinds.register(COUNTING)
        from tests.support import counting
        counting.main(*sys.argv[1:])"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), sqlite_url], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)

    retry, job = shown["listed"]
    assert (job["kind"], job["state"], job["eval_id"], job["vector_store_id"]) == (
        "counting", "succeeded", "eval_1", None,
    )  # fmt: skip
    assert (retry["state"], retry["retry_of"]) == ("succeeded", job["id"])
    assert [event["type"] for event in shown["events"]] == [
        "job.created", "job.running", "job.finishing", "counting.counted",
    ]  # fmt: skip
    assert [delivery["event_type"] for delivery in shown["deliveries"]] == ["counting.counted"] * 2
    assert {"counting.counted", "counting.number.said"} <= set(shown["event_types"])
    assert shown["stored"]["numbers"] == 10
    assert [kind for kind in shown["console"] if kind["name"] == "counting"] == [
        {
            "name": "counting",
            "label": "Counting",
            "prefix": "count_",
            "events": ["counting.counted", "counting.number.said"],
            "resources": ["numbers"],
            "has_lines": True,
            "retryable": True,
        }
    ]
    assert [kind["name"] for kind in shown["console"] if kind["name"] != "counting"] == list(kinds.TABLE)
