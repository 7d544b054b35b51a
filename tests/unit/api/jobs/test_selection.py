"""Lists of jobs: the index of the rarest condition finds them, and no job of the project is read in vain."""

from typing import Any

import pytest
from sqlalchemy import Select, exists, select, text
from sqlalchemy.dialects import sqlite as dialect

from api.jobs.selection import select_jobs
from jobs.db.engine import Database
from jobs.files.tables import File
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from tests.support.sample_jobs import new_job

FAILED, SUCCEEDED = [JobState.FAILED], [JobState.SUCCEEDED]
SEVERAL = [JobState.FINISHING, JobState.EXPIRING]
IDS = "USING INDEX sqlite_autoindex_job_1 (id=?)"


def plan(db: Database, selected: dict[str, Any]) -> list[str]:
    """Return the steps by which SQLite reads a page of the selected jobs."""
    statement = select_jobs("p", **selected).order_by(Job.created_at.desc(), Job.id.desc()).limit(21)
    compiled = statement.compile(dialect=dialect.dialect(), compile_kwargs={"literal_binds": True})
    with db.read() as session:
        return [row[3] for row in session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}")]


@pytest.mark.parametrize(
    ("selected", "index"),
    [
        ({}, "created (project_id=?)"),
        ({"kind": "k"}, "kind (project_id=? AND kind=?)"),
        ({"model": "m"}, "model (project_id=? AND model=?)"),
        ({"states": FAILED}, "state (project_id=? AND state=?)"),
        ({"states": FAILED, "model": "m", "kind": "k"}, "state (project_id=? AND state=?)"),
        ({"states": SUCCEEDED, "model": "m"}, "model (project_id=? AND model=?)"),
        ({"states": SUCCEEDED, "kind": "k"}, "kind (project_id=? AND kind=?)"),
        ({"states": SUCCEEDED}, "state (project_id=? AND state=?)"),
        ({"model": "m", "kind": "k"}, "model (project_id=? AND model=?)"),
    ],
)
def test_page_query_uses_single_index_without_sorting(sqlite: Database, selected: dict[str, Any], index: str) -> None:
    assert plan(sqlite, selected) == [f"SEARCH job USING INDEX ix_job_project_{index}"]


@pytest.mark.parametrize("others", [{}, {"kind": "k", "model": "m"}, {"states": FAILED}, {"idempotency_key": "i"}])
def test_the_jobs_of_a_file_are_found_by_its_id(sqlite: Database, others: dict[str, Any]) -> None:
    steps = " ".join(plan(sqlite, {"file_id": "f", **others}))

    assert IDS in steps
    indexes = ("ix_job_input_file (input", "ix_job_output (output", "ix_job_errors (error")
    assert all(f"{index}_file_id=?)" in steps for index in indexes)
    assert "ix_job_project" not in steps
    assert "SCAN job" not in steps


def test_status_with_several_states_uses_state_index(sqlite: Database) -> None:
    steps = plan(sqlite, {"states": SEVERAL, "model": "m", "kind": "k"})

    assert IDS in steps[0]
    assert sum("ix_job_project_state (project_id=? AND state=?)" in step for step in steps) == len(SEVERAL)
    assert not any("ix_job_project_created" in step or "SCAN job" in step for step in steps)


def test_the_runs_of_a_schedule_are_read_in_their_order(sqlite: Database) -> None:
    steps = plan(sqlite, {"schedule_id": "s", "states": SUCCEEDED})

    assert steps == ["SEARCH job USING INDEX ix_job_scheduled (project_id=? AND schedule_id=?)"]


def plan_of_parameters(db: Database, statement: Select[Any]) -> str:
    """Return the plan of a statement whose values are parameters, as the product sends them."""
    with db.engine.connect() as connection:
        compiled = statement.compile(connection, compile_kwargs={"render_postcompile": True})
        values = compiled.params
        if not db.sqlite:
            return str(connection.exec_driver_sql(f"EXPLAIN {compiled}", values).all())
        ordered = tuple(values[name] for name in compiled.positiontup or ())
        return str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", ordered).all())


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (select_jobs("p", idempotency_key="i"), "ix_job_idempotency_key"),
        (select_jobs("p", schedule_id="s"), "ix_job_scheduled"),
        (select_jobs("p", file_id="f"), "ix_job_output"),
        (select_jobs("p", file_id="f"), "ix_job_errors"),
        (select(File.id).where(File.id == "f", exists().where(Job.output_file_id == File.id)), "ix_job_output"),
    ],
)
def test_an_index_without_the_jobs_that_lack_the_value_finds_the_others(
    db: Database, statement: Select[Any], index: str
) -> None:
    if not db.sqlite:  # to PostgreSQL all indexes of an empty table cost the same
        with db.write() as session:
            session.add_all([new_job(project_id="p") for _ in range(1000)])
            session.flush()
            session.execute(text("ANALYZE job"))

    assert index in plan_of_parameters(db, statement)
